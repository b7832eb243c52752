"""One engine for all who test at a time: the first starts it, the last ends it.

Everybody who uses it holds a shared lock that the kernel takes back from whoever dies. Its images
are kept in build/engines, so that none is made twice.
"""

import fcntl
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from engines.dockerd import Engine

STATE = Path(__file__).parents[2] / "build" / "engines"


@contextmanager
def _locked(name: str, how: int) -> Iterator[int]:
    STATE.mkdir(parents=True, exist_ok=True)
    handle = os.open(STATE / name, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(handle, how)
        yield handle
    finally:
        os.close(handle)


def _the_engine() -> Engine:
    """Give the engine there is, or one that is to be started."""
    note = STATE / "folder"
    folder = Path(note.read_text()) if note.exists() else None
    if folder is None or not folder.is_dir():
        # Sockets have short paths, which build/ need not have.
        folder = Path(tempfile.mkdtemp(prefix="simagent-engine-", dir="/tmp"))
        folder.chmod(0o755)
        note.write_text(str(folder))
    return Engine(folder, STATE / "data")


@contextmanager
def shared_engine() -> Iterator[Engine]:
    """Give the running engine.

    Raises:
        EngineError: It does not start.
    """
    with _locked("users", fcntl.LOCK_SH) as users:
        with _locked("door", fcntl.LOCK_EX):
            engine = _the_engine()
            engine.start()
        try:
            yield engine
        finally:
            with _locked("door", fcntl.LOCK_EX):
                _close_if_last(engine, users)


def _close_if_last(engine: Engine, users: int) -> None:
    fcntl.flock(users, fcntl.LOCK_UN)
    try:
        fcntl.flock(users, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return
    engine.close(keep_data=True)
    (STATE / "folder").unlink(missing_ok=True)


def remove() -> None:
    """End the engine and remove its images, unless somebody uses it.

    Raises:
        BlockingIOError: Somebody does.
    """
    with _locked("door", fcntl.LOCK_EX), _locked("users", fcntl.LOCK_EX | fcntl.LOCK_NB):
        _the_engine().close()
        (STATE / "folder").unlink(missing_ok=True)
