"""What a step prints beyond what is kept of it: the disk gets that space back while it prints.

The file keeps its size, for whoever appends to it: the space of a range in it is freed, which then
reads as zeros. What is kept, from its beginning and at its end, is never touched.
"""

import ctypes
import os
import stat
from pathlib import Path

KEPT_END = 1 << 20
"""Bytes kept of the end, for people who want to see what was said last."""

_STEP = 1 << 20
_FLAGS = os.O_WRONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
_KEEP_SIZE, _PUNCH_HOLE = 1, 2  # linux/falloc.h


class Spool:
    """One log file of which the first ``max_bytes`` are kept, and a little of the end."""

    def __init__(self, path: Path, max_bytes: int) -> None:
        self._path = path
        self._max_bytes = max_bytes
        self._freed = max_bytes

    def trim(self) -> int:
        """Free what lies between, where that is much; return the bytes.

        Raises OSError, with EOPNOTSUPP where the file system cannot do that.
        """
        try:
            size = os.stat(self._path, follow_symlinks=False).st_size
        except FileNotFoundError:
            return 0
        if size < self._freed:  # it was begun anew
            self._freed = self._max_bytes
        length = size - KEPT_END - self._freed
        if length < _STEP:
            return 0
        descriptor = os.open(self._path, _FLAGS)
        try:
            status = os.fstat(descriptor)
            # The task may write to the folder, and put another file in this one's place.
            if not stat.S_ISREG(status.st_mode) or status.st_nlink > 1 or status.st_size < size:
                return 0
            _allocate(descriptor, _KEEP_SIZE | _PUNCH_HOLE, self._freed, length)
        finally:
            os.close(descriptor)
        self._freed += length
        return length


def cut_line(max_bytes: int) -> bytes:
    """Give the line that a log ends with of which only the first bytes are kept."""
    return f"\n[simagent: the log is cut here, after {max_bytes} bytes]\n".encode()


def count_line(left_out: int) -> bytes:
    """Give the line after it, once it is known how many bytes are left out."""
    return f"[simagent: {left_out} bytes are left out]\n".encode()


def allot(path: Path, length: int) -> None:
    """Make a log file, empty, with disk space for its first bytes.

    So a program may still say what was wrong when it was that the disk is full. Raises OSError.
    """
    path.touch(mode=0o644)
    descriptor = os.open(path, _FLAGS)
    try:
        _allocate(descriptor, _KEEP_SIZE, 0, length)
    finally:
        os.close(descriptor)


def _allocate(descriptor: int, mode: int, start: int, length: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.fallocate64(descriptor, mode, ctypes.c_int64(start), ctypes.c_int64(length)) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
