"""The folder that the hosts of a cluster share, as the head uses it: in processes of their own.

Where its file server does not answer, a call waits for ever. Such a process is given up; it ends by
itself when the server is back.
"""

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import structlog

from simagent.cluster import holder
from simagent.ports.clock import SystemClock
from simagent.transfer import removal

WITHIN = 20.0
"""Seconds in which the file server has to have answered."""
REMOVED_WITHIN = 5.0
"""Seconds for which the end of a removal is waited for."""
_LIST = "import os, sys; print('\\0'.join(os.listdir(sys.argv[1])), end='')"

log = structlog.get_logger()


class StalledError(Exception):
    """The file server of the shared folder does not answer; the message says what to do."""


class ForeignFolderError(Exception):
    """A folder in the shared one, where the agent's own should be, belongs to another user."""


@contextmanager
def held(base: Path, name: str, token: str) -> Iterator[None]:
    """Make a folder with a file ``name`` in it that holds a token and is locked meanwhile.

    Raises `StalledError`, `ForeignFolderError`, OSError.
    """
    process = _start((holder.__file__, str(base), name), stdin=subprocess.PIPE)
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        with process.stdin as told:
            told.write(f"{token}\n".encode())
            told.flush()
            _judge(_answer(process.stdout, base), base)
            yield
    finally:
        _leave(process)


def _answer(stdout: IO[bytes], base: Path) -> int:
    if not SystemClock().wait(WITHIN, stdout):
        raise _stalled(base.parent.parent)
    line = stdout.readline().strip()
    if not line:
        raise OSError(f"the process that was to make {base} ended")
    return int(line)


def _judge(answer: int, base: Path) -> None:
    if answer == holder.FOREIGN:
        raise ForeignFolderError(
            f"{base.parent} belongs to another user, who could put other files in the place of the "
            "task's: remove it, or name another mpi.shared_dir"
        )
    if answer:
        raise OSError(answer, os.strerror(answer), str(base))


def names_in(folder: Path) -> list[str]:
    """List the names in a folder; none where there is no such folder. Raises `StalledError`."""
    process = _start(("-c", _LIST, str(folder)))
    try:
        told, _ = process.communicate(timeout=WITHIN)
    except subprocess.TimeoutExpired:
        raise _stalled(folder) from None
    finally:
        _leave(process)
    return [os.fsdecode(name) for name in told.split(b"\0") if name]


def remove(*folders: Path, within: float | None = None) -> bool:
    """Remove folders and all in them; tell whether that was done after ``within`` seconds.

    By default these are `REMOVED_WITHIN`. Where it was not done, it goes on.
    """
    within = REMOVED_WITHIN if within is None else within
    try:
        process = _start((removal.__file__, *map(str, folders)))
    except OSError as error:
        log.warning("shared folder not removed", path=str(folders[0]), error=str(error))
        return False
    try:
        process.wait(within)
    except subprocess.TimeoutExpired:
        why = f"it does not answer within {within:g} s"
        log.warning("shared folder not removed yet", path=str(folders[0]), error=why)
        threading.Thread(target=process.wait, name="removing", daemon=True).start()
        return False
    finally:
        if process.stdout is not None:
            process.stdout.close()
    return True


def _start(words: tuple[str, ...], stdin: int = subprocess.DEVNULL) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        (sys.executable, "-I", "-S", *words),
        stdin=stdin,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        cwd="/",
        env={},
        start_new_session=True,
    )


def _leave(process: subprocess.Popen[bytes]) -> None:
    """Let a process go: in the midst of a call to a file server it stays, whatever it is sent."""
    if process.stdout is not None:
        process.stdout.close()
    if process.poll() is None:
        process.kill()
        threading.Thread(target=process.wait, name="waiting", daemon=True).start()


def _stalled(shared: Path) -> StalledError:
    return StalledError(f"{shared} does not answer within {WITHIN:g} s: look after its file server")
