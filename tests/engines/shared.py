"""One engine of each kind for all who test at a time: the first starts it, the last ends it.

Everybody who uses one holds a shared lock that the kernel takes back from whoever dies. Docker's
images are kept in build/engines, so that none is made twice.
"""

import fcntl
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from pathlib import Path
from typing import Protocol, TypeVar

from engines.daemons import as_root
from engines.dockerd import Engine
from engines.s3_servers import RGW, ROOTS, SWIFT, Kind, S3Server

STATE = Path(__file__).parents[2] / "build" / "engines"


class _Started(Protocol):
    def start(self) -> None: ...


T = TypeVar("T", bound=_Started)


@contextmanager
def _locked(name: str, how: int) -> Iterator[int]:
    STATE.mkdir(parents=True, exist_ok=True)
    handle = os.open(STATE / name, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(handle, how)
        yield handle
    finally:
        os.close(handle)


@contextmanager
def alone(name: str) -> Iterator[None]:
    """Let one process at a time make what all tests share; ``name`` says what."""
    with _locked(name, fcntl.LOCK_EX):
        yield


def _folder(name: str) -> Path:
    """Give the folder of the engine there is, or that of one that is to be started."""
    note = STATE / f"{name}folder"
    folder = Path(note.read_text()) if note.exists() else None
    if folder is None or not folder.is_dir():
        # Sockets have short paths, which build/ need not have.
        folder = Path(tempfile.mkdtemp(prefix="simagent-engine-", dir="/tmp"))
        folder.chmod(0o755)
        note.write_text(str(folder))
    return folder


@contextmanager
def _shared(name: str, make: Callable[[Path], T], close: Callable[[T], None]) -> Iterator[T]:
    with _locked(f"{name}users", fcntl.LOCK_SH) as users:
        with _locked(f"{name}door", fcntl.LOCK_EX):
            engine = make(_folder(name))
            engine.start()
        try:
            yield engine
        finally:
            with _locked(f"{name}door", fcntl.LOCK_EX):
                if _was_last(users):
                    close(engine)
                    (STATE / f"{name}folder").unlink(missing_ok=True)


def _was_last(users: int) -> bool:
    fcntl.flock(users, fcntl.LOCK_UN)
    try:
        fcntl.flock(users, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def shared_engine() -> AbstractContextManager[Engine]:
    """Give the running Docker Engine.

    Raises:
        EngineError: It does not start.
    """
    return _shared("", _docker, lambda engine: engine.close(keep_data=True))


def shared_s3(kind: Kind) -> AbstractContextManager[S3Server]:
    """Give the running server of S3; what is in it is lost with its last user.

    Raises:
        EngineError: It does not start.
    """
    return _shared(f"{kind.name}-", partial(S3Server, kind), S3Server.close)


def _docker(folder: Path) -> Engine:
    return Engine(folder, STATE / "data")


def remove() -> None:
    """End the engines and remove what is kept for them, unless somebody uses one.

    Raises:
        BlockingIOError: Somebody does.
    """
    _end("", lambda folder: _docker(folder).close())
    for kind in (RGW, SWIFT):
        _end(f"{kind.name}-", partial(_close, kind))
    as_root("rm", "-rf", str(ROOTS))


def _close(kind: Kind, folder: Path) -> None:
    S3Server(kind, folder).close()


def _end(name: str, close: Callable[[Path], None]) -> None:
    with (
        _locked(f"{name}door", fcntl.LOCK_EX),
        _locked(f"{name}users", fcntl.LOCK_EX | fcntl.LOCK_NB),
    ):
        close(_folder(name))
        (STATE / f"{name}folder").unlink(missing_ok=True)
