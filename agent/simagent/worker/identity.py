"""Who this agent is, and that it is alone on its state folder."""

import fcntl
import json
import os
import platform
import secrets
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

from simagent import __version__
from simagent.worker.context import Identity


class StateFolderInUseError(Exception):
    """Another agent runs on this state folder; ``pid`` is its process where known."""

    def __init__(self, path: Path, pid: int | None) -> None:
        super().__init__(
            f"an agent{f' (pid {pid})' if pid else ''} is already running on {path}: "
            "stop it, or give this one another --state-dir"
        )
        self.pid = pid


@contextmanager
def alone_on(state_dir: Path) -> Iterator[None]:
    """Hold the state folder for this process. Raises `StateFolderInUseError`, OSError."""
    state_dir.mkdir(parents=True, exist_ok=True)
    with (state_dir / "lock").open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            pid = file.read().strip()
            raise StateFolderInUseError(state_dir, int(pid) if pid.isdigit() else None) from None
        file.seek(0)
        file.truncate()
        file.write(str(os.getpid()))
        file.flush()
        yield


def holder_of(state_dir: Path) -> int | None:
    """Tell which process holds the state folder, 0 where it cannot be told; None if none does.

    Raises OSError.
    """
    try:
        file = (state_dir / "lock").open()
    except FileNotFoundError:
        return None
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            pid = file.read().strip()
            return int(pid) if pid.isdigit() else 0
    return None


def identify(state_dir: Path, name: str | None = None) -> Identity:
    """Tell who this agent is: the id kept in the state folder, made anew on another machine."""
    return Identity(
        agent=name or _persistent_id(state_dir / "agent.json"),
        incarnation=secrets.token_hex(8),
        boot_id=boot_id(),
        version=__version__,
        machine={
            "hostname": socket.gethostname(),
            "os": platform.platform(terse=True),
            "cpus": os.cpu_count() or 1,
            "memory_bytes": psutil.virtual_memory().total,
        },
    )


def boot_id() -> str:
    """Tell the id of this boot of the machine (random(4): /proc/sys/kernel/random/boot_id)."""
    return _read("/proc/sys/kernel/random/boot_id")


def _persistent_id(path: Path) -> str:
    machine = _read("/etc/machine-id")
    try:
        fields = json.loads(path.read_text())
        if fields["machine"] == machine:
            return str(fields["agent"])
    except (OSError, ValueError, KeyError, TypeError):
        fields = {}  # first start, a cloned image, or a damaged file: a new identity is safe
    agent = f"{socket.gethostname().split('.')[0]}-{secrets.token_hex(3)}"
    temporary = path.with_suffix(".new")
    temporary.write_text(json.dumps({"format": 1, "agent": agent, "machine": machine}))
    temporary.replace(path)
    return agent


def _read(path: str) -> str:
    try:
        return Path(path).read_text().strip()
    except OSError:
        return ""
