"""Looking at processes of other users as these users, for which no capability is needed.

What a process has open, its variables and what it reads and writes Linux shows to its own user, and
to who may trace any process of the machine, which root's agent may not under its unit.
"""

import ctypes
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

_KEEP = -1
_GENERIC = (147, 149)
_CALLS = {
    "x86_64": (117, 119),
    "aarch64": _GENERIC,
    "loongarch64": _GENERIC,
    "ppc64le": (164, 169),
    "riscv64": _GENERIC,
}
"""Numbers of setresuid(2) and setresgid(2) by machine."""


@contextmanager
def as_owner(process: Path) -> Iterator[None]:
    """Be the user of the process of a folder of /proc, where root's agent looks at another user's.

    In this thread alone, so not by `os.seteuid`, which changes all. Nothing else may be done
    meanwhile than read in /proc. Raises OSError where there is no such process.
    """
    owner = process.stat()
    calls = _CALLS.get(platform.machine())
    if calls is None or os.geteuid() != 0 or owner.st_uid == 0:
        yield
        return
    set_uid, set_gid = calls
    try:
        _call(set_gid, owner.st_gid)
        _call(set_uid, owner.st_uid)
        yield
    finally:
        _restore(set_uid, set_gid)


def _restore(set_uid: int, set_gid: int) -> None:
    try:
        _call(set_uid, 0)
        _call(set_gid, 0)
    except OSError:
        os.abort()  # a thread that is somebody else must not go on


def _call(number: int, effective: int) -> None:
    if _libc().syscall(ctypes.c_long(number), _KEEP, ctypes.c_uint(effective), _KEEP) != 0:
        raise OSError(ctypes.get_errno(), f"system call {number}")


@cache
def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)
