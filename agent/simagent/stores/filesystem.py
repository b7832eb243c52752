"""What the directory store needs of a file system: named errors, durable files, locks."""

import errno
import fcntl
import io
import os
import select
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from simagent.ports.store import (
    NoSpaceError,
    NotFoundError,
    StoreError,
    StoreRefusedError,
    StoreUnavailableError,
)

_MISSING = {errno.ENOENT, errno.ENOTDIR}
_REFUSED = {
    errno.EACCES,
    errno.EPERM,
    errno.EROFS,
    errno.ENAMETOOLONG,
    errno.EISDIR,
    errno.ELOOP,
    errno.EINVAL,
    errno.EXDEV,
    errno.EFBIG,
    errno.EOPNOTSUPP,
}

# Here flock works between processes and times keep their fractions of a second.
_LOCAL = {"bcachefs", "btrfs", "ext2", "ext3", "ext4", "f2fs", "jfs", "overlay", "ramfs"}
_LOCAL |= {"tmpfs", "xfs", "zfs"}

# About 20 s in all. Holders rename one file, so the first few tries nearly always do.
_LOCK_PAUSES = (0.0005,) * 20 + (0.005,) * 200 + (0.05,) * 380

_ABANDONED = 3600.0
_SELF_TEST_SECONDS = 20.0
_HOLDER = """
import fcntl, os, sys
fcntl.flock(os.open(sys.argv[1], os.O_RDWR), fcntl.LOCK_EX)
os.write(1, b"held")
os.read(0, 1)
"""


@contextmanager
def mapped(
    action: str, path: Path, *, missing: type[StoreError] = StoreUnavailableError
) -> Iterator[None]:
    """Turn an OSError into the store error that tells callers what to do about it.

    ``missing`` is what a missing file means. Raises `StoreRefusedError` where trying again is
    useless and `StoreUnavailableError` for all that may pass.
    """
    try:
        yield
    except OSError as error:
        message = f"cannot {action} {path}: {error.strerror or error}"
        if error.errno in _MISSING:
            raise missing(message) from error
        if error.errno in _REFUSED:
            raise StoreRefusedError(message) from error
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise NoSpaceError(message, path) from error
        raise StoreUnavailableError(message) from error


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Map errors as `mapped` does, a missing file to `NotFoundError`."""
    with mapped("read", path, missing=NotFoundError):
        yield


class FilePart(io.RawIOBase):
    """The next ``length`` bytes of a file, as a stream whose errors are the store's."""

    def __init__(self, file: io.FileIO, length: int, path: Path) -> None:
        super().__init__()
        self._file, self._left, self._path = file, length, path

    def readable(self) -> bool:
        """Say yes."""
        return True

    def readinto(self, buffer: "memoryview | bytearray") -> int:  # type: ignore[override]
        """Fill the buffer as far as one read does. Raises `StoreError`."""
        with reading(self._path):
            count = self._file.readinto(memoryview(buffer)[: self._left])
        self._left -= count
        return count


def write_all(descriptor: int, data: bytes) -> None:
    """Write all of the bytes, in as many calls as it takes. Raises OSError."""
    left = memoryview(data)
    while left:
        left = left[os.write(descriptor, left) :]


def sync_folder(folder: Path) -> None:
    """Make the names in a folder survive a power cut; nothing if it is gone. Raises OSError."""
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def make_folder(folder: Path) -> None:
    """Make a folder and those above it so that they survive a power cut. Raises OSError."""
    if folder.is_dir():
        return
    make_folder(folder.parent)
    folder.mkdir(exist_ok=True)
    sync_folder(folder.parent)


def remove_abandoned(folder: Path) -> None:
    """Remove the files of crashed writers: an hour old, and not locked as a living writer's are.

    Raises OSError where the folder cannot be listed.
    """
    for path in folder.iterdir():
        with suppress(OSError):
            if time.time() - path.stat().st_mtime < _ABANDONED:
                continue
            descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                path.unlink()
            finally:
                os.close(descriptor)


@contextmanager
def exclusive(path: Path) -> Iterator[None]:
    """Hold the lock file, which is never removed, against all other threads and processes.

    Raises `StoreUnavailableError` when another keeps it for more than about 20 s.
    """
    descriptor = _open_lock(path)
    try:
        for pause in _LOCK_PAUSES:
            with suppress(BlockingIOError):
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            time.sleep(pause)
        else:
            raise StoreUnavailableError(f"another process keeps {path} locked: is it stopped?")
        yield
    finally:
        os.close(descriptor)


def _open_lock(path: Path) -> int:
    flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC
    try:
        return os.open(path, flags, 0o666)
    except FileNotFoundError:
        path.parent.mkdir(parents=True, exist_ok=True)
        return os.open(path, flags, 0o666)


def filesystem_type(path: Path) -> str:
    """Name the type of the file system that holds the path, or would; empty if unknown.

    From /proc/self/mountinfo, see proc_pid_mountinfo(5): field 5 is the mount point, with
    spaces and the like in octal, and the type follows a lone ``-``.
    """
    real = os.path.realpath(path)
    best, kind = -1, ""
    with suppress(OSError):
        for line in Path("/proc/self/mountinfo").read_bytes().splitlines():
            fields = line.split(b" ")
            point = os.fsdecode(fields[4].decode("unicode_escape").encode("latin-1")).rstrip("/")
            # Of two mounts on one point the later one hides the other.
            if len(point) >= best and (real + "/").startswith(point + "/"):
                best, kind = len(point), os.fsdecode(fields[fields.index(b"-", 6) + 1])
    return kind


def is_known_local(path: Path) -> bool:
    """Tell whether locks between processes can be relied on without trying them."""
    return filesystem_type(path) in _LOCAL


def self_test(folder: Path) -> None:
    """Try whether a lock that another process holds keeps this one out.

    Two processes of one machine are all it can try: folders that several machines share are not
    what the store is for. Raises `StoreRefusedError` saying what to do.
    """
    with mapped("test locks in", folder):
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = _open_lock(folder / "self-test.lock")
        try:
            _try_lock(descriptor, folder)
        finally:
            os.close(descriptor)


def _try_lock(descriptor: int, folder: Path) -> None:
    argv = [sys.executable, "-I", "-S", "-c", _HOLDER, str(folder / "self-test.lock")]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        try:
            ready = select.select([child.stdout], [], [], _SELF_TEST_SECONDS)[0]
            held = bool(ready) and child.stdout.read(4) == b"held"
            excluded = held and not _lock(descriptor)
        finally:
            child.kill()
    if not excluded or not _lock(descriptor):
        kind = filesystem_type(folder) or "unknown"
        raise StoreRefusedError(
            f"{folder} is on a file system ({kind}) where locks do not work between processes: "
            "use a folder on a local disk, or an s3:// store"
        )


def _lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
