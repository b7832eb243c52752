"""Apptainer as tests call it to make images and to compare with."""

import os
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from shutil import which

# Twenty times as fast as the default, for a few percent more bytes.
_FAST = ("--mksquashfs-args", "-comp zstd -Xcompression-level 1")


def missing() -> str | None:
    """Say why Apptainer cannot be used here, if that is so."""
    if which("apptainer") is None:
        return "apptainer is missing (make engines installs it)"
    return None


@dataclass(frozen=True, slots=True)
class Apptainer:
    """The installed Apptainer, with a cache of its own in ``folder``."""

    folder: Path

    @property
    def env(self) -> Mapping[str, str]:
        """Give the variables it is run with: without privileges, as root, too."""
        own = {"APPTAINER_CACHEDIR": str(self.folder), "APPTAINER_TMPDIR": str(self.folder)}
        return os.environ | own | ({} if os.geteuid() else {"APPTAINER_USERNS": "1"})

    def run(
        self, *args: str, check: bool = True, cwd: Path | None = None, seconds: float = 300
    ) -> subprocess.CompletedProcess[str]:
        """Run it; its errors are in the exception.

        Raises:
            RuntimeError: It failed, and ``check`` is set.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        done = subprocess.run(
            ["apptainer", *args],
            env=self.env,
            cwd=cwd,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=seconds,
            check=False,
        )
        if check and done.returncode:
            raise RuntimeError(f"apptainer {' '.join(args)}: {done.returncode}:\n{done.stderr}")
        return done

    def build(self, sif: Path, source: str, *options: str) -> Path:
        """Make an image file of any source Apptainer knows, as ``docker-archive:FILE``."""
        self.run("--quiet", "build", "--force", *_FAST, *options, str(sif), source)
        return sif
