"""A machine in miniature on which real agents are hurt, and the recorder looks at the result."""

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
from typing import Any, Protocol, TypeVar

from fakes.rig import TIMES as RIG_TIMES
from fakes.rig import Rig
from faults.recorder import Recorder, Watch, engines_of
from simagent.config import Config
from simagent.config_load import load_config
from simagent.domain.keys import TaskKeys
from simagent.domain.spec import Spec
from simagent.domain.state import State

_T = TypeVar("_T")

FULL = bool(os.environ.get("SIMAGENT_FAULTS_FULL"))
SHARE = os.environ.get("SIMAGENT_FAULTS_SHARE") or None
"""Such as 0/2: the first half of the long cases, and no others."""
"""Whether every case is run, or a choice that takes a minute."""

TIMES = RIG_TIMES | {
    "lease_ttl": 6.0,  # a busy machine may keep an agent from renewing for seconds
    "hide_alive": 2.0,
    "bell_visibility": 3.0,
    "sweep_every": 1.0,
}
SCALE = 60.0 / TIMES["lease_ttl"]
"""By how much the protocol's times are shorter here than in earnest."""

PATIENCE = 60.0 + 30 * sum(TIMES.values())
"""Seconds to wait for what has to happen in the end. Of use only where it does not: the protocol's
waits, one after the other, each many times over, and as much again for a machine that is busy: a
run each of whose operations is harmed takes 120 beside fourteen others on two cores."""
LONG = 2 * PATIENCE
"""Seconds that a payload may go on where the test is to end it."""

_CALM = 10 * TIMES["sweep_every"]
_HERE = Path(__file__).parent


class Lab(Rig):
    """Everything beneath one folder; tasks do what payload.py can do."""

    _watch_every = 0.05

    def __init__(self, folder: Path, **times: float) -> None:
        super().__init__(folder, **TIMES | times)
        self.truth = folder / "truth"
        (self.truth / "agents").mkdir(parents=True, exist_ok=True)
        self.agents: list[subprocess.Popen[bytes]] = []
        self.engines = engines_of(folder)
        self._watch = Watch(folder, every=self._watch_every, engines=self.engines)

    def config(self, name: str = "state") -> Config:
        return load_config(None, **self._settings(name))

    def _settings(self, name: str) -> dict[str, Any]:
        return {
            "state_dir": str(self.folder / name),
            "queue": f"sqlite://{self.folder}/queue.db",
            "store": f"file://{self.folder}/store",
            "times": self._times,
            "sample_every": 1.0,
            "agent": name,
        }

    # --- Tasks ---------------------------------------------------------------------------------

    def payload(self, step: int, mode: str, number: float = 1.0) -> list[str]:
        """Give the command of a step."""
        argv = [sys.executable, "-I", "-S", str(_HERE / "payload.py")]
        return [*argv, str(self.truth), str(step), mode, str(number)]

    def task(self, *steps: tuple[str, float], **fields: object) -> TaskKeys:
        """Submit a task of these steps."""
        commands = [self.payload(step, *what) for step, what in enumerate(steps)]
        return self.submit(*commands, **{"grace": 1.0} | fields)

    def submit(self, *commands: object, **fields: object) -> TaskKeys:
        spec = Spec.model_validate({"commands": commands, **fields})
        task = self._submit(spec)
        with (self.folder / "accepted").open("a") as file:
            file.write(f"{task.id}\n")
        return task

    def _submit(self, spec: Spec) -> TaskKeys:
        return self.client.submit(spec, base=self.folder)

    def canonical(self) -> TaskKeys:
        """Submit the task whose run passes every point: an input, two steps, outputs."""
        source = self.folder / "input"
        source.mkdir(exist_ok=True)
        (source / "given.txt").write_text("given")
        return self.task(("known", 20.0), ("tick", 1.0), inputs=["input"])

    def go(self) -> None:
        """Let the payloads end that wait for it."""
        (self.truth / "go").touch()

    def pid(self, task: TaskKeys, step: str = "1.0") -> int:
        """Wait for a step's start and give its process id."""
        ran = self.truth / task.id / step / "ran"
        started = self.until(lambda: ran.read_text().split() or None if ran.exists() else None)
        return int(started[0])

    # --- Waiting -------------------------------------------------------------------------------

    def until(self, look: Callable[[], _T | None], seconds: float = PATIENCE) -> _T:
        """Look until there is something to see."""
        return super().until(look, seconds)

    def finish(self, task: TaskKeys, seconds: float = PATIENCE) -> State:
        """Wait for the task's end."""
        return super().finish(task, seconds)

    def dies(self, process: subprocess.Popen[bytes]) -> bool:
        """Wait until an agent is killed at its point; False where it never comes to that.

        It does not once nothing has been under way for as long as agents do anything by themselves.
        """
        recorder, all_of_it, calm = self.recorder(), Stopwatch(), Stopwatch()
        while process.poll() is None and calm.running() < _CALM:
            if recorder.unsettled():
                calm = Stopwatch()
            assert all_of_it.running() < PATIENCE, "waited in vain"
            threading.Event().wait(0.2)
        assert process.returncode in (None, -signal.SIGKILL), f"it ended: {process.returncode}"
        return process.returncode is not None

    # --- Agents --------------------------------------------------------------------------------

    def start(self, name: str = "state", **options: object) -> subprocess.Popen[bytes]:
        """Start an agent as a process of its own, to be hurt as the options of driver.py say."""
        note = str(self.truth / "agents" / name)
        options = {"config": self._settings(name), "note": note, **options}
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        with (self.folder / f"{name}.log").open("ab") as log:
            process = subprocess.Popen(
                [sys.executable, str(_HERE / "driver.py"), json.dumps(options)],
                env=environment,
                stderr=log,
            )
        self.agents.append(process)
        return process

    @contextmanager
    def kept(self, first: "subprocess.Popen[bytes]", name: str = "state") -> Iterator[list[int]]:
        """Start an agent again whenever it ends of itself, as systemd does; give its exit codes."""
        over = threading.Event()
        codes: list[int] = []

        def keep() -> None:
            process = first
            while not over.is_set():
                if process.poll() is not None:
                    codes.append(process.returncode)
                    process = self.start(name)
                over.wait(0.3)

        thread = threading.Thread(target=keep)
        thread.start()
        try:
            yield codes
        finally:
            over.set()
            thread.join()
            self.stop()

    def forget(self, name: str) -> None:
        """Strike an agent that has ended off the list of those whom a payload may kill."""
        (self.truth / "agents" / name).unlink()

    def log_of(self, name: str = "state") -> list[dict[str, Any]]:
        """Read the events that an agent has logged, but for the line that it may be writing."""
        written, _, _ = (self.folder / f"{name}.log").read_text().rpartition("\n")
        return [json.loads(line) for line in written.splitlines() if line.startswith("{")]

    def stop(self) -> None:
        """Stop all agents, which has to work."""
        alive = [process for process in self.agents if process.poll() is None]
        for process in alive:
            process.send_signal(signal.SIGCONT)
            process.terminate()
        for process in alive:
            process.wait(PATIENCE)

    def stopped(self, process: subprocess.Popen[bytes]) -> None:
        """Wait until a process is stopped by a signal."""
        stat = Path(f"/proc/{process.pid}/stat")
        self.until(lambda: stat.read_text().rpartition(")")[2].split()[0] == "T")

    # --- The promise ---------------------------------------------------------------------------

    def __enter__(self) -> "Lab":
        self._watch.__enter__()
        return self

    def __exit__(self, failed: object, *_: object) -> None:
        self._watch.__exit__()
        self.go()
        if failed is None:
            self.stop()
        for process in self.agents:
            if process.poll() is None:
                process.kill()
                process.wait()
        for left in self.recorder().processes() if failed is not None else ():
            with suppress(ProcessLookupError):
                os.kill(left[0], signal.SIGKILL)

    def check(self, *, calm: bool = False, seconds: float = PATIENCE) -> None:
        """Wait until nothing is under way any more; fail with what is not as it was promised."""
        found = self.recorder(calm=calm).settled(seconds)
        assert not (found := self._watch.findings + found), "\n".join(found)

    def recorder(self, *, calm: bool = False) -> Recorder:
        """Make what holds the run against the promise."""
        return Recorder(self.folder, calm=calm, engines=self.engines)


class Stopwatch:
    """Times a recovery."""

    def __init__(self) -> None:
        self._begun = time.monotonic()
        self.seconds: float | None = None

    def stop(self) -> float:
        """Give the seconds from its making to the first stop."""
        if self.seconds is None:
            self.seconds = self.running()
        return self.seconds

    def running(self) -> float:
        """Give the seconds since its making."""
        return time.monotonic() - self._begun


class Measured(Protocol):
    """Notes the times of a recovery, for the table that `make faults` prints at its end.

    ``scaled`` where they consist of the protocol's own times, which are shortened here.
    """

    def __call__(self, what: str, *watches: Stopwatch, scaled: bool = False) -> None:
        """Note it."""
