"""The disk of the state folder: what is free there, what is kept back for the agent's records."""

import errno
import os
import sys
from contextlib import suppress
from pathlib import Path

import structlog

from simagent.transfer.removal import walk

_FILES = 16
_FILE_BYTES = 512 * 1024
_FEW_BYTES = 1 << 20
_FEW_INODES = 32
_MOST_COUNTED = 100_000

log = structlog.get_logger()


def free_bytes(folder: Path) -> int:
    """Tell how many bytes are free where a folder lies, for those who are not root.

    A great many where the file system does not tell, as some in user space. Raises OSError.
    """
    status = os.statvfs(folder)
    return status.f_bavail * status.f_frsize if status.f_blocks else sys.maxsize


def is_no_space(error: OSError) -> bool:
    """Tell whether an error says that a disk, or somebody's share of it, is full."""
    return error.errno in (errno.ENOSPC, errno.EDQUOT)


def on_same_disk(path: Path, other: Path) -> bool:
    """Tell whether two paths, of which the first need not exist, are on one file system.

    Raises OSError.
    """
    existing = next(place for place in (path, *path.absolute().parents) if place.exists())
    return existing.stat().st_dev == other.stat().st_dev


def used_bytes(folder: Path) -> tuple[int, bool]:
    """Tell what a folder's files take on disk, and whether that is all of them.

    Not more than some 100,000 are looked at.
    """
    used = 0
    for looked, entry in enumerate(walk(folder)):
        if looked == _MOST_COUNTED:
            return used, False
        with suppress(OSError):  # it was removed meanwhile
            used += entry.stat(follow_symlinks=False).st_blocks * 512
    return used, True


class Reserve:
    """Space and inodes that the agent keeps back, so that it can write on a full disk.

    They are given up piece by piece: a program that goes on writing takes whatever is free.
    """

    def __init__(self, state_dir: Path) -> None:
        self._folder = state_dir / "reserve"

    def fill(self) -> None:
        """Take up what is missing of it, where there is room for much more."""
        try:
            self._folder.mkdir(mode=0o700, exist_ok=True)
            for number in range(_FILES):
                path = self._folder / f"{number:02d}"
                if not _is_whole(path) and free_bytes(self._folder) > 2 * _FILES * _FILE_BYTES:
                    _take_up(path)
        except OSError as error:
            log.debug("no space was reserved", path=str(self._folder), error=str(error))

    def give_up(self) -> bool:
        """Free half of what is left of it; False where nothing is left. Raises nothing."""
        try:
            left = sorted(self._folder.iterdir())
            for path in left[: (len(left) + 1) // 2]:
                path.unlink(missing_ok=True)
        except OSError:
            return False
        if left:
            log.warning("the disk is full, reserved space is used", path=str(self._folder))
        return bool(left)

    def give_up_if_full(self) -> bool:
        """Free half of what is left where the disk has next to nothing free."""
        try:
            status = os.statvfs(self._folder)
        except OSError:
            return False
        no_bytes = status.f_bavail * status.f_frsize < _FEW_BYTES
        no_inodes = status.f_files > 0 and status.f_favail < _FEW_INODES
        return (no_bytes or no_inodes) and self.give_up()


def _is_whole(path: Path) -> bool:
    try:
        return path.stat().st_size == _FILE_BYTES
    except FileNotFoundError:
        return False


def _take_up(path: Path) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        os.posix_fallocate(descriptor, 0, _FILE_BYTES)
    except OSError:
        path.unlink()
        raise
    finally:
        os.close(descriptor)
