"""A member's entrance: the unix socket at which relays of its head come in."""

import os
import socket
import struct
import threading
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path

import structlog

from simagent.cluster.conversation import Conversation
from simagent.cluster.duties import Duties
from simagent.ports.clock import Clock, Wake

_MOST_CONNECTIONS = 1024
_LONGEST_PATH = 107
"""Bytes of a path of a socket (unix(7))."""
_CREDENTIALS = struct.Struct("3i")

log = structlog.get_logger()


class EntranceError(Exception):
    """The socket cannot be made; the message says why, and what to do."""


class Entrance:
    """Listens at ``path`` for the ``users`` (user numbers); one thread a connection.

    The group ``gid`` may open it, too, where one is named: the number of the user is checked all
    the same. What goes on when it ends is left alone.
    """

    def __init__(
        self,
        path: Path,
        duties: Duties,
        clock: Clock,
        *,
        users: Collection[int],
        gid: int | None = None,
    ) -> None:
        self._path = path
        self._duties = duties
        self._clock = clock
        self._users = frozenset(users)
        self._gid = gid
        self._open = 0
        self._lock = threading.Lock()

    def listen(self) -> socket.socket:
        """Make the socket, in the place of one that an earlier agent left. Raises `EntranceError`.

        The folder must be such that nobody else can put something in its place.
        """
        if len(os.fsencode(self._path)) > _LONGEST_PATH:
            raise EntranceError(
                f"{self._path} is longer than a socket's path may be: name a shorter state_dir"
            )
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        try:
            self._path.unlink(missing_ok=True)
            # The file gets the mode of the socket; a umask would be that of all threads.
            os.fchmod(listener.fileno(), 0o600)
            listener.bind(str(self._path))
            if self._gid is not None:
                os.chown(self._path, -1, self._gid)
                self._path.chmod(0o660)
            listener.listen(128)
        except OSError as error:
            listener.close()
            raise EntranceError(f"cannot listen at {self._path}: {error.strerror}") from error
        return listener

    def serve(self, listener: socket.socket, stop: Wake) -> None:
        """Take connections until ``stop`` is set."""
        with listener:
            while not stop.is_set():
                if not self._clock.wait(None, listener, stop) or stop.is_set():
                    continue
                try:
                    connection, _ = listener.accept()
                except OSError as error:  # it is gone already, or there are no more files
                    log.warning("connection not taken", error=str(error))
                    self._clock.wait(0.5, stop)
                    continue
                self._take(connection, stop)

    def _take(self, connection: socket.socket, stop: Wake) -> None:
        pid, uid = _peer(connection)
        with self._lock:
            taken = uid in self._users and self._open < _MOST_CONNECTIONS
            self._open += taken
        if not taken:
            why = "too many" if uid in self._users else "of another user"
            log.warning("connection refused", pid=pid, uid=uid, why=why)
            connection.close()
            return
        threading.Thread(
            target=self._converse, args=(connection, stop), name=f"relay {pid}", daemon=True
        ).start()

    def _converse(self, connection: socket.socket, stop: Wake) -> None:
        try:
            with connection:
                Conversation(connection, self._duties, self._clock, stop).run()
        finally:
            with self._lock:
                self._open -= 1


def _peer(connection: socket.socket) -> tuple[int, int]:
    """Tell the process and the user at the other end, by the kernel's word (unix(7))."""
    with suppress(OSError):
        told = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
        pid, uid, _ = _CREDENTIALS.unpack(told)
        return pid, uid
    return -1, -1
