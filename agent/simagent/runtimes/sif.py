"""Apptainer's image files (SIF): what a look at the first bytes tells of one, and checksums.

The layout is that of https://github.com/apptainer/sif: a header of 128 bytes, little endian.
"""

import hashlib
import os
import platform
import stat
import struct
from pathlib import Path

from simagent.domain.reasons import Reason
from simagent.ports.clock import SystemClock, Waitable
from simagent.ports.images import ImageError, Progress, PullInterruptedError

CHUNK = 1 << 20

_HEADER = struct.Struct("<32s10s3s3s16s8q")
_MAGIC = b"SIF_MAGIC\0"
_ARCHITECTURES = {
    b"01": "386",
    b"02": "amd64",
    b"03": "arm",
    b"04": "arm64",
    b"05": "ppc64",
    b"06": "ppc64le",
    b"11": "s390x",
    b"12": "riscv64",
}
_MACHINES = {
    "x86_64": "amd64",
    "i686": "386",
    "aarch64": "arm64",
    "armv7l": "arm",
    "armv6l": "arm",
}


def architecture() -> str:
    """Name this machine's kind of processor as images do."""
    machine = platform.machine()
    return _MACHINES.get(machine, machine)


def check_sif(path: Path, *, size: int | None = None) -> None:
    """See that a file is an image for this machine, and all there.

    It costs next to nothing: what is damaged within is not found. ``size`` is what is known of it,
    in bytes. Raises `ImageError`.
    """
    try:
        check_kind(path)
        with path.open("rb") as file:
            head = file.read(_HEADER.size)
            found = os.fstat(file.fileno()).st_size
    except OSError as error:
        raise unreadable(path, error) from None
    if len(head) < _HEADER.size:
        raise _corrupt(path, f"has {found} bytes only")
    _, magic, _, arch, _, *numbers = _HEADER.unpack(head)
    if magic != _MAGIC:
        raise _corrupt(path, "is no SIF file")
    end = numbers[6] + numbers[7]
    if found < end or (size is not None and found != size):
        raise _corrupt(path, f"has {found} bytes of {max(end, size or 0)}")
    made_for = _ARCHITECTURES.get(arch[:2], "")
    if made_for and made_for != architecture():
        raise ImageError(
            Reason.IMAGE_PLATFORM, f"{path} is for {made_for}, this machine is {architecture()}"
        )


def check_kind(path: Path) -> os.stat_result:
    """Look at a file without opening it, as a pipe can be waited for without an end.

    Raises OSError, and `ImageError` where it is neither a file nor a folder.
    """
    status = path.stat()
    if not stat.S_ISREG(status.st_mode) and not stat.S_ISDIR(status.st_mode):
        raise ImageError(Reason.IMAGE_CORRUPT, f"{path} is a pipe or a device: name a file")
    return status


def unreadable(path: Path, error: OSError) -> ImageError:
    """Tell why an image file of this machine cannot be opened, and what would help."""
    match error:
        case FileNotFoundError() | NotADirectoryError():
            message = f"there is no {path} on the agent's machine: put it there"
            return ImageError(Reason.IMAGE_NOT_FOUND, message)
        case IsADirectoryError():
            message = f"{path} is a folder: name a SIF file"
            return ImageError(Reason.IMAGE_CORRUPT, message)
        case _:
            message = f"{path}: {error.strerror}: let the agent's user read it"
            return ImageError(Reason.IMAGE_DENIED, message)


def checksum(path: Path, *wakes: Waitable, progress: Progress | None = None) -> str:
    """Give ``sha256:`` and the digest of a file. Raises OSError, `PullInterruptedError`."""
    found = hashlib.sha256()
    clock = SystemClock()
    with path.open("rb") as file:
        total, done = os.fstat(file.fileno()).st_size, 0
        while chunk := file.read(CHUNK):
            found.update(chunk)
            done += len(chunk)
            if progress is not None:
                progress(done, total)
            if wakes and clock.wait(0, *wakes):
                raise PullInterruptedError
    return f"sha256:{found.hexdigest()}"


def _corrupt(path: Path, why: str) -> ImageError:
    return ImageError(Reason.IMAGE_CORRUPT, f"{path} {why}: make it again")
