"""Who this agent is, and that it is alone on its state folder."""

import errno
import fcntl
import json
import os
import platform
import secrets
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from dataclasses import fields as dataclass_fields
from pathlib import Path
from typing import TextIO

import psutil

from simagent import __version__
from simagent.ports.clock import SystemClock
from simagent.ports.passing import passes
from simagent.worker.context import Identity

_NAMED_WITHIN = 1.0
_LOOK_EVERY = 0.05


@dataclass(frozen=True, slots=True, kw_only=True)
class Occupant:
    """Who holds a state folder: an agent, or a `simagent run`, which takes only its own task."""

    pid: int | None = None
    role: str = "agent"
    group: str = ""
    queue: str = ""
    store: str = ""

    def __str__(self) -> str:
        what = "a `simagent run`" if self.role == "run" else "an agent"
        return f"{what} (pid {self.pid or 'unknown'})"

    def takes_from(self, other: "Occupant") -> bool:
        """Tell whether it is an agent that takes the tasks which the other would."""
        mine, theirs = (self.group, self.queue, self.store), (other.group, other.queue, other.store)
        return self.role == "agent" and mine == theirs


class StateFolderInUseError(Exception):
    """Another agent runs on this state folder."""

    def __init__(self, path: Path, occupant: Occupant) -> None:
        super().__init__(
            f"{occupant} is already running on {path}: "
            "stop it, or give this one another --state-dir"
        )


class StateFolderError(OSError):
    """The state folder cannot be written to; the message says why, and what to do."""

    def __init__(self, path: Path, error: OSError) -> None:
        what = f"{error.filename}: " if error.filename not in {None, str(path)} else ""
        why = {
            errno.EROFS: "it is on a file system that is read-only: mount it for writing",
            errno.EACCES: f"uid {os.geteuid()} may not write there: chown it to that",
            errno.ENOSPC: "its disk is full: free some of it",
            errno.EDQUOT: "its disk quota is used up: free some of it",
            errno.ENOTDIR: "there is a file in its place, or above it: remove that",
            errno.EEXIST: "there is a file in its place: remove that",
        }.get(error.errno or 0, f"{what}{error.strerror or error}: mend that")
        super().__init__(f"state_dir: {path}: {why}, or name another --state-dir")


@contextmanager
def alone_on(state_dir: Path, occupant: Occupant | None = None) -> Iterator[None]:
    """Hold the state folder for this process.

    Raises `StateFolderInUseError`, `StateFolderError`.
    """
    with _lock_file(state_dir) as file:
        other = _lock(file, fcntl.LOCK_EX)
        if other is not None:
            raise StateFolderInUseError(state_dir, other)
        named = asdict(replace(occupant or Occupant(), pid=os.getpid()))
        os.ftruncate(file.fileno(), 0)
        with suppress(OSError):  # on a full disk nobody is told who it is
            os.write(file.fileno(), json.dumps(named).encode())
        try:
            yield
        finally:
            os.ftruncate(file.fileno(), 0)


def _lock_file(state_dir: Path) -> TextIO:
    try:
        state_dir.mkdir(parents=True, exist_ok=True)
        return (state_dir / "lock").open("a+")
    except OSError as error:
        raise StateFolderError(state_dir, error) from error


def holder_of(state_dir: Path) -> Occupant | None:
    """Tell who holds the state folder; None if nobody does. Raises OSError."""
    try:
        file = (state_dir / "lock").open()
    except FileNotFoundError:
        return None
    with file:
        return _lock(file, fcntl.LOCK_SH)


def _lock(file: TextIO, how: int) -> Occupant | None:
    """Lock the file, or tell who has it.

    Who that is stands there a moment after it was locked; until then the last one may, and one
    who only looks, as `holder_of` does, holds it as shortly. So it is tried for a while.
    """
    clock = SystemClock()
    deadline = clock.now() + _NAMED_WITHIN
    while True:
        try:
            fcntl.flock(file, how | fcntl.LOCK_NB)
        except BlockingIOError:
            occupant = _occupant(file)
            if occupant.pid is not None or clock.now() > deadline:
                return occupant
            clock.wait(_LOOK_EVERY)
        else:
            return None


def _occupant(file: TextIO) -> Occupant:
    """Read who has the lock; one without a pid where that does not stand there (yet)."""
    file.seek(0)
    try:
        fields = json.loads(file.read())
        occupant = Occupant(**{f.name: fields[f.name] for f in dataclass_fields(Occupant)})
    except (ValueError, KeyError, TypeError):
        return Occupant()
    alive = isinstance(occupant.pid, int) and psutil.pid_exists(occupant.pid)
    return occupant if alive else Occupant()


def identify(state_dir: Path, name: str | None = None) -> Identity:
    """Tell who this agent is: the id kept in the state folder, made anew on another machine.

    Raises `StateFolderError`.
    """
    try:
        agent, boot = name or _persistent_id(state_dir / "agent.json"), boot_id()
    except OSError as error:
        raise StateFolderError(state_dir, error) from error
    return Identity(
        agent=agent,
        incarnation=secrets.token_hex(8),
        boot_id=boot,
        version=__version__,
        machine={
            "hostname": socket.gethostname(),
            "os": platform.platform(terse=True),
            "cpus": os.cpu_count() or 1,
            "memory_bytes": psutil.virtual_memory().total,
        },
    )


def boot_id() -> str:
    """Tell the id of this boot of the machine (random(4): /proc/sys/kernel/random/boot_id).

    Raises OSError where that cannot be read just now.
    """
    return _read("/proc/sys/kernel/random/boot_id")


def _persistent_id(path: Path) -> str:
    machine = _read("/etc/machine-id")
    try:
        fields = json.loads(path.read_text())
        if fields["machine"] == machine:
            return str(fields["agent"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        if passes(error):
            raise  # it stands there: another identity would end what this agent runs
        # First start, a cloned image, or a damaged file: a new identity is safe.
    agent = f"{socket.gethostname().split('.')[0]}-{secrets.token_hex(3)}"
    temporary = path.with_suffix(".new")
    temporary.write_text(json.dumps({"format": 1, "agent": agent, "machine": machine}))
    temporary.replace(path)
    return agent


def _read(path: str) -> str:
    try:
        return Path(path).read_text().strip()
    except OSError as error:
        if passes(error):
            raise
        return ""
