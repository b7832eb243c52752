"""The database file of the embedded queue: made, opened, and set aside when it is damaged."""

import errno
import fcntl
import os
import sqlite3
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TypeVar

import structlog

from simagent.ports.clock import Clock
from simagent.ports.queue import QueueError, QueueRefusedError, QueueUnavailableError

_APPLICATION = 0x73696D71  # "simq"
_FORMAT = 1
_LOCK_SECONDS = 10.0
_LOCK_PAUSE = 0.005
_TRIES = 3
_REFUSED_CODES = {sqlite3.SQLITE_PERM, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_AUTH}
_REFUSED_ERRNOS = {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.ENAMETOOLONG}
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")

# `visible_at` is in seconds of CLOCK_BOOTTIME, which all processes of the machine share and nobody
# can set. It begins anew with each boot, so `boot` tells which boot the times belong to.
_SCHEMA = """
CREATE TABLE messages (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    queue TEXT NOT NULL,
    body TEXT NOT NULL,
    visible_at REAL NOT NULL,
    receives INTEGER NOT NULL DEFAULT 0,
    receipt TEXT UNIQUE
);
CREATE INDEX messages_by_time ON messages (queue, visible_at, id);
CREATE TABLE dead_letters (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    queue TEXT NOT NULL,
    body TEXT NOT NULL,
    reason TEXT NOT NULL,
    receives INTEGER NOT NULL,
    rejected_at REAL NOT NULL
);
CREATE TABLE boot (id TEXT NOT NULL);
INSERT INTO boot VALUES ('');
"""

T = TypeVar("T")
Work = Callable[[sqlite3.Connection], T]


class SqliteFile:
    """One connection to the database at ``path``, shared by the threads of the process.

    A call waits up to ``busy`` seconds for another's transaction. It notices when another process
    has put a new file in the place of a damaged one. `read` and `write` raise
    `QueueUnavailableError` and `QueueRefusedError`.
    """

    def __init__(self, path: Path, clock: Clock, busy: float) -> None:
        self._path = path
        self._clock = clock
        self._busy = busy
        self._mutex = threading.Lock()
        self._connection: sqlite3.Connection | None = None
        self._identity: tuple[int, int] | None = None

    def read(self, work: Work[T]) -> T:
        """Give what ``work`` reads."""
        return self._run(work)

    def write(self, work: Work[T]) -> T:
        """Do ``work`` in a transaction of its own. It may be called anew on a new database."""

        def transaction(database: sqlite3.Connection) -> T:
            database.execute("BEGIN IMMEDIATE")
            try:
                result = work(database)
                database.execute("COMMIT")
            finally:
                if database.in_transaction:
                    database.execute("ROLLBACK")
            return result

        return self._run(transaction)

    def close(self) -> None:
        """Close the connection; the next call opens it again."""
        with self._mutex:
            self._disconnect()

    def _run(self, work: Work[T]) -> T:
        with self._mutex:
            for _ in range(_TRIES):
                try:
                    return work(self._connected())
                except sqlite3.Error as error:
                    if not _is_damage(error):
                        raise self._classified(error) from error
                    self._set_aside(str(error))
                except OSError as error:
                    raise self._classified_os(error) from error
            raise QueueUnavailableError(f"the queue database {self._path} keeps being damaged")

    def _connected(self) -> sqlite3.Connection:
        if self._connection is not None and self._identity == self._found():
            return self._connection
        self._disconnect()
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with self._locked():
            # One connection serves all threads, one at a time: the mutex sees to it.
            connection = sqlite3.connect(
                self._path, timeout=self._busy, isolation_level=None, check_same_thread=False
            )
            self._connection, self._identity = connection, self._found()
            try:
                self._prepare(connection)
            except (sqlite3.Error, QueueError):
                connection.close()
                self._connection = None
                raise
        return connection

    def _prepare(self, database: sqlite3.Connection) -> None:
        application, version, tables = (
            database.execute(query).fetchone()[0]
            for query in (
                "PRAGMA application_id",
                "PRAGMA user_version",
                "SELECT count(*) FROM sqlite_master",
            )
        )
        if not tables:
            database.execute("PRAGMA journal_mode = WAL")
            database.executescript("BEGIN IMMEDIATE;" + _SCHEMA)
            database.execute(f"PRAGMA application_id = {_APPLICATION}")
            database.execute(f"PRAGMA user_version = {_FORMAT}")
            database.execute("COMMIT")
        elif application != _APPLICATION:
            raise QueueRefusedError(f"{self._path} is the database of another program")
        elif version > _FORMAT:
            raise QueueRefusedError(
                f"{self._path} was written by a newer version of simagent (format {version}): "
                "update this one"
            )
        # The last messages may be lost with the power, and the file stays sound. That is enough:
        # the sweep rings again for every open task, so no call need wait for the disk.
        database.execute("PRAGMA synchronous = NORMAL")
        boot = _boot_id()
        if database.execute("SELECT id FROM boot").fetchone() != (boot,):
            # Too early is harmless where too late is not.
            database.executescript("BEGIN IMMEDIATE; UPDATE messages SET visible_at = 0;")
            database.execute("UPDATE boot SET id = ?", (boot,))
            database.execute("COMMIT")

    def _set_aside(self, why: str) -> None:
        damaged = self._identity
        self._disconnect()
        with self._locked():
            if damaged is None or self._found() != damaged:
                return
            suffix = f".damaged-{int(self._clock.wall())}"
            # The log goes first: no new database may ever find the old one's.
            for part in ("-wal", "-shm", ""):
                file = self._path.with_name(self._path.name + part)
                with suppress(FileNotFoundError):
                    file.rename(file.with_name(file.name + suffix))
        structlog.get_logger().warning(
            "queue_set_aside", path=str(self._path), suffix=suffix, error=why
        )

    def _disconnect(self) -> None:
        connection, self._connection, self._identity = self._connection, None, None
        if connection is not None:
            connection.close()

    def _found(self) -> tuple[int, int] | None:
        try:
            status = os.stat(self._path)
        except FileNotFoundError:
            return None
        return status.st_dev, status.st_ino

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Keep the other processes from making, opening or replacing the file meanwhile."""
        path = self._path.with_name(self._path.name + ".lock")
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            deadline = self._clock.now() + _LOCK_SECONDS
            while True:
                try:
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if self._clock.now() >= deadline:
                        raise QueueUnavailableError(f"another process keeps {path}") from None
                self._clock.wait(_LOCK_PAUSE)
            yield
        finally:
            os.close(descriptor)

    def _classified(self, error: sqlite3.Error) -> QueueError:
        message = f"the queue database {self._path}: {error}"
        code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR)
        if code == sqlite3.SQLITE_READONLY_DBMOVED:
            return QueueUnavailableError(message)
        if code & 0xFF in _REFUSED_CODES:
            return QueueRefusedError(message)
        if code & 0xFF == sqlite3.SQLITE_CANTOPEN and not _may_write(self._path):
            return QueueRefusedError(f"{message}: no permission")
        return QueueUnavailableError(message)

    def _classified_os(self, error: OSError) -> QueueError:
        message = f"the queue database {self._path}: {error.strerror or error}"
        if error.errno in _REFUSED_ERRNOS or isinstance(error, FileExistsError):
            return QueueRefusedError(message)
        return QueueUnavailableError(message)


def _is_damage(error: sqlite3.Error) -> bool:
    code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR) & 0xFF
    return code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)


def _may_write(path: Path) -> bool:
    return os.access(path if path.exists() else path.parent, os.R_OK | os.W_OK)


def _boot_id() -> str:
    try:
        return _BOOT_ID.read_text().strip()
    except OSError:
        return "unknown"
