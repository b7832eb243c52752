"""Folders to make images in, and calls that can be left alone: what making images needs of both."""

import fcntl
import hashlib
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TypeVar

from simagent.domain.reasons import Reason
from simagent.ports.clock import SystemClock, Waitable, Wake
from simagent.ports.images import ImageError, PullInterruptedError

T = TypeVar("T")

_PREFIX = "making-"
_NEW = 60.0


@contextmanager
def workplace(folder: Path, key: str) -> Iterator[Path]:
    """Give an empty folder in ``folder`` that is gone afterwards. Raises OSError.

    To be called under the lock of what ``key`` names.
    """
    place = folder / f"{_PREFIX}{hashlib.sha256(key.encode()).hexdigest()[:16]}"
    remove_folder(place)
    place.mkdir(mode=0o700)
    if os.geteuid() == 0:
        place.chmod(0o711)  # another user may have to make something in a folder of its own there
    held = os.open(place, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(held, fcntl.LOCK_SH)
        yield place
    finally:
        os.close(held)
        remove_folder(place)


def clear_workplaces(folder: Path) -> None:
    """Remove what killed agents left."""
    for place in folder.glob(f"{_PREFIX}*"):
        with suppress(OSError):
            held = os.open(place, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                its = os.fstat(held)
                if time.time() - its.st_mtime < _NEW:
                    continue  # its maker may be about to lock it
                fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if os.path.samestat(its, place.stat()):  # else somebody makes the same anew
                    remove_folder(place)
            finally:
                os.close(held)


def remove_folder(folder: Path) -> None:
    """Remove a folder of what images hold, also what not even its owner may enter.

    What is a thousand folders deep stays: Python's own means call themselves for each.
    """
    with suppress(RecursionError):
        for path, folders, _ in os.walk(folder):
            for name in folders:
                each = Path(path, name)
                with suppress(OSError):
                    if not each.is_symlink():
                        each.chmod(0o700)
    with suppress(RecursionError):
        shutil.rmtree(folder, ignore_errors=True)


def aside(call: Callable[[], T], *wakes: Waitable, limit: float) -> T:
    """Give what a call gives that takes no wakes itself: it is left alone when one is ready.

    Raises what it raises; `PullInterruptedError`, and `ImageError` after ``limit`` seconds.
    """
    done = Wake()
    given: list[T] = []
    raised: list[BaseException] = []

    def run() -> None:
        try:
            given.append(call())
        except BaseException as error:  # noqa: BLE001 - raised where it was called
            raised.append(error)
        finally:
            done.set()

    threading.Thread(target=run, name="registry", daemon=True).start()
    clock = SystemClock()
    clock.wait(limit, done, *wakes)
    if not done.is_set():
        if wakes and clock.wait(0, *wakes):
            raise PullInterruptedError
        raise ImageError(
            Reason.IMAGE_PULL, f"the registry did not answer in {limit:g} seconds", retryable=True
        )
    if raised:
        raise raised[0]
    return given[0]
