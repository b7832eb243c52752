"""A member of a cluster as a process, and a head that reaches it by its relay, without ssh."""

import fcntl
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

import psutil

from fakes.steps import LIMIT
from simagent.cluster import relay
from simagent.cluster.messages import TOKEN, Check, Enter
from simagent.domain.cluster import Head, HeadLease, Member, Spanning
from simagent.domain.keys import cluster_head, cluster_member

CLUSTER = "grid"
_T = TypeVar("_T")


def wait_for(look: Callable[[], _T | None], what: str, seconds: float = LIMIT) -> _T:
    """Look until there is something to see."""
    deadline = time.monotonic() + seconds
    while not (seen := look()):
        assert time.monotonic() < deadline, f"waited in vain for {what}"
        time.sleep(0.02)
    return seen


class MemberLab:
    """A store, a shared folder and a member agent, all beneath one folder."""

    def __init__(self, folder: Path, **mpi: object) -> None:
        """``mpi`` are settings of that table."""
        self.folder = folder
        self.python: tuple[str, ...] = (sys.executable,)
        self.shared = folder / "shared"
        self.store = folder / "store"
        self.state = folder / "state"
        self.attempt = Spanning(project="default", task="melt", epoch=2)
        self.name = "grid/default.melt.2"
        self.work = self.shared / self.name
        self.work.mkdir(parents=True)
        self.agent = "vm2"
        self.process: subprocess.Popen[bytes] | None = None
        self.lines: list[str] = []
        self.settings: dict[str, str] = {}
        self._mpi = {
            "shared_dir": str(self.shared),
            "interface": "lo",
            "ssh_port": 22999,
            "slots": 3,
            **mpi,
        }
        self.name_attempts(self.attempt)

    # --- The member ---------------------------------------------------------------------------

    def start(
        self,
        *command: str,
        **settings: str,
    ) -> subprocess.Popen[bytes]:
        """Start the member's agent, or what the command says, with its settings."""
        own = {
            "STATE_DIR": str(self.state),
            "STORE": f"file://{self.store}",
            "QUEUE": f"sqlite://{self.folder}/queue.db",
            "AGENT": self.agent,
            "LOG_FORMAT": "json",
            "TIMES": json.dumps({"heartbeat_every": 1.0, "renew_every": 0.5, "agent_ttl": 3.0}),
            "MPI": json.dumps(self._mpi),
        }
        given = own | self.settings | settings
        env = {f"SIMAGENT_{name}": value for name, value in given.items()}
        argv = command or ("agent", "--role", "member", "--cluster", CLUSTER)
        self.process = subprocess.Popen(
            [*self.python, "-m", "simagent", *argv],
            env=os.environ | env,
            stderr=subprocess.PIPE,
        )
        threading.Thread(target=self._read, args=(self.process,), daemon=True).start()
        return self.process

    def _read(self, process: subprocess.Popen[bytes]) -> None:
        assert process.stderr is not None
        with process.stderr:
            self.lines.extend(line.decode() for line in process.stderr)

    def ready(self) -> None:
        """Start the member's agent, and wait until it answers."""
        before = self.record()
        self.start()

        def shown() -> bool:
            now = self.record()
            return now is not None and (before is None or now.incarnation != before.incarnation)

        wait_for(shown, "the member")

    def kill(self) -> None:
        """End the agent as a crash would, and nothing else."""
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def drain(self) -> None:
        """Drain the agent; it ends."""
        env = os.environ | {
            "SIMAGENT_STATE_DIR": str(self.state),
            "SIMAGENT_STORE": f"file://{self.store}",
        }
        drain = [sys.executable, "-m", "simagent", "drain", "--wait"]
        subprocess.run(drain, env=env, check=True, timeout=60, stdout=subprocess.DEVNULL)
        assert self.process is not None
        assert self.process.wait(LIMIT) == 0

    def end(self) -> None:
        """End the agent, and all that is left of its runs; fail where something is."""
        if self.process is not None and self.process.poll() is None:
            self.kill()
        left = self.left()
        for process in left:
            with suppress(psutil.Error):
                process.send_signal(signal.SIGKILL)

    def left(self) -> list[psutil.Process]:
        """List the processes that the member runs for its head."""
        found = []
        for process in psutil.process_iter():
            with suppress(psutil.Error):
                ours = process.environ().get("SIMAGENT_LAB") == str(self.folder)
                if ours and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
        return found

    def record(self) -> Member | None:
        """Read what the member tells of itself."""
        path = self.store / cluster_member(CLUSTER, self.agent)
        try:
            return Member.model_validate_json(path.read_bytes())
        except (FileNotFoundError, NotADirectoryError):
            return None

    # --- The head -----------------------------------------------------------------------------

    def name_attempts(self, *attempts: Spanning, key: str = "") -> None:
        """Write the head's record."""
        path = self.store / cluster_head(CLUSTER)
        path.parent.mkdir(parents=True, exist_ok=True)
        head = Head(
            lease=HeadLease(agent="vm1", incarnation="1"), public_key=key, attempts=attempts
        )
        part = path.with_suffix(".part")
        part.write_text(head.model_dump_json())
        part.replace(path)

    def lead(self, beat: int) -> None:
        """Renew the head's lease."""
        path = self.store / cluster_head(CLUSTER)
        head = json.loads(path.read_text())
        head["lease"]["beat"] = beat
        part = path.with_suffix(".part")
        part.write_text(json.dumps(head))
        part.replace(path)

    @contextmanager
    def token(self, token: str = "secret", *, locked: bool = True) -> Iterator[None]:
        """Lay a token into the attempt's folder, and lock it."""
        path = self.work / TOKEN
        path.write_text(token)
        with path.open("r+") as file:
            if locked:
                fcntl.lockf(file, fcntl.LOCK_EX)
            yield

    def check(self, **changes: Any) -> Check:
        fields = {"folder": self.name, "token": "secret", "uid": os.geteuid(), "version": "1"}
        return Check.model_validate(fields | changes)

    def enter(self, command: str, entry: str = "melt.2.0.1", **changes: Any) -> Enter:
        fields = {
            "entry": entry,
            "attempt": self.attempt,
            "agent": "vm1",
            "step": 0,
            "runtime": "process",
            "image": None,
            "folder": self.name,
            "uid": os.geteuid(),
            "gid": os.getegid(),
            "env": {"SIMAGENT_LAB": str(self.folder)},
            "command": command,
            "grace": 5.0,
            "sample_every": 0.5,
        }
        return Enter.model_validate(fields | changes)

    def relay(self, **times: float) -> tuple[str, ...]:
        """Give the command line that leads to the member, as ssh would run it there."""
        seconds = {"beat": 1.0, "silent": 15.0, "again": 30.0} | times
        script = [sys.executable, "-I", "-S", relay.__file__, str(self.socket)]
        return (*script, *map(str, seconds.values()))

    @property
    def socket(self) -> Path:
        return self.state / "member" / "entrance"


def pid_in(path: Path) -> int:
    """Wait for a number in a file."""
    return wait_for(lambda: (path.exists() and int(path.read_text() or 0)) or None, str(path))
