"""The embedded queue: one SQLite file for all groups of a machine, and a bell file for each.

Receivers do not poll. Whatever can make a message visible earlier than they expect touches the
group's bell file, which inotify(7) tells them of; else they sleep until the next message becomes
visible by itself.
"""

import os
import secrets
import sqlite3
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from inotify_simple import INotify, flags

from simagent.domain.ids import check_name
from simagent.ports.clock import Clock, Waitable
from simagent.ports.queue import Message
from simagent.queues.sqlite_file import SqliteFile

_BELL_EVENTS = flags.ATTRIB | flags.DELETE_SELF | flags.MOVE_SELF
# Where the kernel has no inotify instance left for this user, receivers look once a second.
_DEAF_PAUSE = 1.0
_MAX_DEAD_LETTERS = 10_000


class SqliteQueue:
    """The queue of one group in the database at ``path``. Safe between threads and processes.

    Cheap to make: the database is opened by the first call. A call waits up to ``busy`` seconds
    for other processes' writes. Raises ValueError if ``group`` is no valid name.
    """

    def __init__(self, path: Path, group: str, clock: Clock, *, busy: float = 5.0) -> None:
        self._group = check_name(group)
        self._clock = clock
        self._bell = path.absolute().with_name(f"{path.name}.bell-{group}")
        # One for each thread that waits. Kept, for closing one takes the kernel some 10 ms.
        self._idle_bells: list[_Bell] = []
        self._file = SqliteFile(path.absolute(), clock, busy)

    def close(self) -> None:
        """Close the files; a later call opens them again."""
        self._file.close()
        with suppress(IndexError):  # until there is none, whoever takes one meanwhile
            while True:
                self._idle_bells.pop().close()

    def send(self, body: str, *, delay: float = 0.0) -> None:
        """Add a message, visible after ``delay`` seconds."""
        self._add((body,), delay)

    def send_many(self, bodies: Sequence[str]) -> None:
        """Add messages, all or none."""
        self._add(bodies, 0.0)

    def _add(self, bodies: Sequence[str], delay: float) -> None:
        def insert(database: sqlite3.Connection) -> None:
            visible_at = self._clock.now() + delay
            database.executemany(
                "INSERT INTO messages (queue, body, visible_at) VALUES (?, ?, ?)",
                [(self._group, body, visible_at) for body in bodies],
            )

        self._file.write(insert)
        self._ring()

    def receive(self, *, visibility: float, wait: float, wake: Waitable) -> Message | None:
        """Take one visible message and hide it from others for ``visibility`` seconds.

        Waits up to ``wait`` seconds; a ``wake`` that is ready goes before any message.
        """
        if self._clock.wait(0, wake):
            return None
        message = self._take(visibility)
        if message is not None or wait <= 0:
            return message
        deadline = self._clock.now() + wait
        try:
            bell = self._idle_bells.pop()
        except IndexError:
            bell = _Bell(self._bell)
        try:
            return self._await(bell, visibility, deadline, wake)
        finally:
            self._idle_bells.append(bell)

    def _await(
        self, bell: "_Bell", visibility: float, deadline: float, wake: Waitable
    ) -> Message | None:
        while True:
            # Armed before looking: what is sent in between rings.
            listening = bell.arm()
            message = self._take(visibility)
            if message is not None:
                return message
            left = deadline - self._clock.now()
            if left <= 0:
                return None
            pause = min(left, self._until_next())
            if not listening:
                pause = min(pause, _DEAF_PAUSE)
            self._clock.wait(pause, wake, *([bell] if listening else []))
            if self._clock.wait(0, wake):
                return None

    def hide(self, receipt: str, seconds: float) -> None:
        """Let the message become visible ``seconds`` from now; 0 is at once."""

        def update(database: sqlite3.Connection) -> bool:
            visible_at = self._clock.now() + seconds
            row = database.execute(
                "SELECT id, visible_at FROM messages WHERE receipt = ?", (receipt,)
            ).fetchone()
            if row is None:
                return False
            database.execute(
                "UPDATE messages SET visible_at = ? WHERE id = ?", (visible_at, row[0])
            )
            return bool(visible_at < row[1])

        if self._file.write(update):
            self._ring()

    def delete(self, receipt: str) -> None:
        """Remove the message."""
        self._file.write(
            lambda database: database.execute("DELETE FROM messages WHERE receipt = ?", (receipt,))
        )

    def reject(self, message: Message, reason: str) -> None:
        """Move the message to the dead letters, with the reason; the oldest make room.

        One that lies there with the same body and reason is not kept twice.
        """

        def move(database: sqlite3.Connection) -> None:
            cursor = database.execute(
                "INSERT INTO dead_letters (queue, body, reason, receives, rejected_at)"
                " SELECT queue, body, ?, receives, ? FROM messages WHERE receipt = ?"
                " AND NOT EXISTS (SELECT 1 FROM dead_letters AS d WHERE d.queue = messages.queue"
                " AND d.body = messages.body AND d.reason = ?)",
                (reason, self._clock.wall(), message.receipt, reason),
            )
            database.execute("DELETE FROM messages WHERE receipt = ?", (message.receipt,))
            if cursor.rowcount:
                database.execute(
                    "DELETE FROM dead_letters WHERE id <= (SELECT max(id) FROM dead_letters) - ?",
                    (_MAX_DEAD_LETTERS,),
                )

        self._file.write(move)

    def dead_letters(self) -> list[tuple[str, str]]:
        """List the bodies and reasons of the rejected messages, oldest first."""
        return self._file.read(
            lambda database: database.execute(
                "SELECT body, reason FROM dead_letters WHERE queue = ? ORDER BY id", (self._group,)
            ).fetchall()
        )

    def _take(self, visibility: float) -> Message | None:
        # Of many agents that one bell woke, most only read.
        if self._until_next() > 0:
            return None

        def take(database: sqlite3.Connection) -> Message | None:
            now = self._clock.now()
            row = database.execute(
                "SELECT id, body, receives FROM messages WHERE queue = ? AND visible_at <= ?"
                " ORDER BY visible_at, id LIMIT 1",
                (self._group, now),
            ).fetchone()
            if row is None:
                return None
            message = Message(row[1], secrets.token_hex(16), row[2] + 1)
            database.execute(
                "UPDATE messages SET visible_at = ?, receipt = ?, receives = ? WHERE id = ?",
                (now + visibility, message.receipt, message.receives, row[0]),
            )
            return message

        return self._file.write(take)

    def _until_next(self) -> float:
        """Tell the seconds until some message is visible, infinite if there is none."""
        (visible_at,) = self._file.read(
            lambda database: database.execute(
                "SELECT min(visible_at) FROM messages WHERE queue = ?", (self._group,)
            ).fetchone()
        )
        return float("inf") if visible_at is None else max(0.0, visible_at - self._clock.now())

    def _ring(self) -> None:
        # No bell file, no listener: listeners make it. And the message is in the database by now:
        # a bell that cannot be rung delays it until the receiver's `wait` is over, no more.
        with suppress(OSError):
            os.utime(self._bell)


class _Bell:
    """Waits for others to touch the bell file."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._inotify: INotify | None = None

    def close(self) -> None:
        """Stop listening."""
        if self._inotify is not None:
            self._inotify.close()

    def fileno(self) -> int:
        """Give the file descriptor; only where `arm` returned True."""
        assert self._inotify is not None
        return int(self._inotify.fileno())

    def arm(self) -> bool:
        """Forget what rang so far, and tell whether `fileno` becomes ready when it rings again."""
        try:
            if self._inotify is None:
                self._inotify = INotify()
            os.close(os.open(self._path, os.O_RDONLY | os.O_CREAT | os.O_CLOEXEC, 0o666))
            # The same watch if the file is still the same.
            self._inotify.add_watch(self._path, _BELL_EVENTS)
            self._inotify.read(timeout=0)
        except OSError:
            return False
        return True
