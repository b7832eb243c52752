"""Small file systems, to be filled."""

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


@contextmanager
def small_disk(folder: Path, *, mib: int = 24, inodes: int = 2000) -> Iterator[Path]:
    """Mount a file system of some MiB on a folder; skips the test where this user may not."""
    with _mounted(folder, "tmpfs", f"size={mib}m,nr_inodes={inodes},mode=755"):
        yield folder


@contextmanager
def plain_disk(folder: Path) -> Iterator[Path]:
    """Mount a file system that can free no part of a file, and does not tell what is free."""
    with _mounted(folder, "ramfs", "mode=755"):
        yield folder


@contextmanager
def _mounted(folder: Path, kind: str, options: str) -> Iterator[None]:
    folder.mkdir(exist_ok=True)
    command = ["mount", "-t", kind, "-o", options, kind, str(folder)]
    if os.geteuid() != 0 or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("a full disk needs the right to mount a small one: run as root")
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def fill(folder: Path) -> Path:
    """Take all space that is left, to the last byte."""
    ballast = folder / "ballast"
    with ballast.open("wb", buffering=0) as file:
        for size in (2**16, 4096, 1):
            try:
                while True:
                    file.write(b"x" * size)
            except OSError:
                continue
    return ballast
