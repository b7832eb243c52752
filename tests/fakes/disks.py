"""Small file systems, to be filled, and one that answers nothing."""

import os
import shutil
import signal
import subprocess
import tempfile
import time
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


@contextmanager
def stalled_disk(folder: Path) -> Iterator[Path]:
    """Mount a file system on a folder, every call to which waits, as that of a dead file server.

    Skips the test where the programs are missing, or FUSE is.
    """
    for program in ("mksquashfs", "squashfuse", "fusermount3"):
        if shutil.which(program) is None:
            pytest.skip(f"{program} is missing: make engines installs it")
    with tempfile.TemporaryDirectory() as made:
        image = Path(made, "image")
        subprocess.run(["mksquashfs", folder, image, "-quiet"], capture_output=True, check=True)
        server = subprocess.Popen(["squashfuse", "-f", image, folder], stderr=subprocess.DEVNULL)
        try:
            deadline = time.monotonic() + 60
            while not os.path.ismount(folder) and server.poll() is None:
                assert time.monotonic() < deadline
                time.sleep(0.02)
            if server.poll() is not None:
                pytest.skip("machine: no file systems can be mounted by FUSE")
            server.send_signal(signal.SIGSTOP)
            yield folder
        finally:
            server.kill()
            server.wait()
            subprocess.run(["fusermount3", "-u", "-z", folder], check=False)


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
