"""The local socket at which an agent tells how it stands, in a line of JSON a connection."""

import json
import os
import socket
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import structlog

from simagent.ports.clock import Clock, Waitable

NAME = "status"
_LONGEST_PATH = 107
"""Bytes of a path of a socket (unix(7))."""
_CREDENTIALS = struct.Struct("3i")
_ANSWER_WITHIN = 2.0
_AGAIN = 30.0
_PAUSE = 0.5
_MOST = 1 << 24

log = structlog.get_logger()


class NoAnswerError(Exception):
    """Nobody answers at the socket; the message says why."""


class StatusSocket:
    """A thread of the agent that answers root, and the user that it runs as."""

    def __init__(self, state_dir: Path, clock: Clock, tell: Callable[[], dict[str, Any]]) -> None:
        self._path = state_dir / NAME
        self._clock = clock
        self._tell = tell

    def run(self, stop: Waitable) -> None:
        """Answer until ``stop`` is ready; where the socket cannot be made, try again and again."""
        told = ""
        while True:
            try:
                listener = self._listen()
            except OSError as error:
                if told != str(error):
                    told = str(error)
                    log.warning("status cannot be asked for", path=str(self._path), error=told)
                if self._clock.wait(_AGAIN, stop):
                    return
                continue
            with listener:
                self._serve(listener, stop)
            with suppress(OSError):
                self._path.unlink()
            return

    def _listen(self) -> socket.socket:
        """Make the socket, in the place of one that an earlier agent left. Raises OSError.

        Who may open it is checked twice, by its mode and when somebody comes.
        """
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        try:
            self._path.unlink(missing_ok=True)
            with _short(self._path) as address:
                listener.bind(address)
            self._path.chmod(0o600)
            listener.listen(16)
            listener.setblocking(False)
        except OSError:
            listener.close()
            raise
        return listener

    def _serve(self, listener: socket.socket, stop: Waitable) -> None:
        while True:
            self._clock.wait(None, listener, stop)
            if self._clock.wait(0.0, stop):
                return
            try:
                connection, _ = listener.accept()
            except BlockingIOError:
                continue
            except OSError as error:  # there are no more files
                log.debug("connection not taken", error=str(error))
                if self._clock.wait(_PAUSE, stop):
                    return
                continue
            with connection:
                self._answer(connection)

    def _answer(self, connection: socket.socket) -> None:
        try:
            told = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
            if _CREDENTIALS.unpack(told)[1] not in (0, os.geteuid()):
                return
            connection.settimeout(_ANSWER_WITHIN)
            connection.sendall(json.dumps(self._tell()).encode() + b"\n")
        except OSError as error:  # whoever asked has gone
            log.debug("status not told", error=str(error))
        except Exception as error:  # the agent works all the same
            log.warning("status not told", error=repr(error), exc_info=error)


def ask(state_dir: Path, within: float) -> dict[str, Any]:
    """Ask the agent of a state folder how it stands. Raises `NoAnswerError`."""
    path = state_dir / NAME
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as asking:
        asking.settimeout(within)
        try:
            with _short(path) as address:
                asking.connect(address)
            data = bytearray()
            while piece := asking.recv(1 << 16):
                data += piece
                if len(data) > _MOST:
                    raise NoAnswerError(f"what answers at {path} is no agent")
        except TimeoutError:
            raise NoAnswerError(f"nothing came from {path} within {within:g} s") from None
        except OSError as error:
            raise NoAnswerError(f"{path}: {error.strerror or error}") from error
    try:
        fields = json.loads(data)
    except ValueError:
        why = f"{path} tells root and the agent's user alone" if not data else f"{path}: no JSON"
        raise NoAnswerError(why) from None
    if not isinstance(fields, dict):
        raise NoAnswerError(f"what answers at {path} is no agent")
    return fields


@contextmanager
def _short(path: Path) -> Iterator[str]:
    """Give a name for a socket that is not too long: by way of its open folder where it is."""
    if len(os.fsencode(path)) <= _LONGEST_PATH:
        yield str(path)
        return
    folder = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{folder}/{path.name}"
    finally:
        os.close(folder)
