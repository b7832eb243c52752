"""Simulators that write a checkpoint when a signal asks for it."""

import sys
import time
from io import BytesIO
from pathlib import Path
from zipfile import ZipFile

import pytest

from fakes.rig import Rig
from simagent.domain.keys import TaskKeys
from simagent.domain.state import State
from simagent.engines import open_store
from simagent.ports.clock import SystemClock
from simagent.ports.store import NotFoundError
from simagent.worker.journal import ARTIFACTS
from simagent.worker.orders import Preempted

# Writes nothing unless asked, and heeds no SIGTERM.
SIMULATOR = """
import os, pathlib, signal, sys, time
how = sys.argv[1]
state, twin = pathlib.Path("count.rst"), pathlib.Path("twin.rst")
count = int(state.read_text()) if os.environ["SIMAGENT_RESTART"] == "1" else 0
print("from", count, flush=True)
asked = 0

def ask(*_):
    global asked
    asked += 1

if how != "deaf":
    signal.signal(signal.SIGUSR1, ask)
signal.signal(signal.SIGTERM, signal.SIG_IGN)
pathlib.Path("ready").touch()
while count < 1000 and not pathlib.Path("enough").exists():
    count += 1
    if asked and how != "idle":
        asked -= 1
        state.write_text(str(count))
        time.sleep(0.5)
        twin.write_text(str(count))
        print("saved", count, flush=True)
        if how == "ends":
            sys.exit(0)
    if os.environ["SIMAGENT_RESTART"] == "1":
        break
    time.sleep(0.02)
"""


class Simulations:
    """A rig whose simulation can be asked for a checkpoint."""

    def __init__(self, folder: Path) -> None:
        self.rig = Rig(folder)
        (folder / "sim.py").write_text(SIMULATOR)

    def submit(self, how: str, **checkpoint: object) -> TaskKeys:
        # A shell in between, which the signal would end.
        command = {"run": f"{sys.executable} sim.py {how}; exit $?", "shell": True}
        asked = {"paths": ["*.rst"], "every": "1h", "signal": "SIGUSR1"} | checkpoint
        return self.rig.submit(command, inputs=["sim.py"], checkpoint=asked, grace=60.0)

    def ready(self) -> bool:
        return any(self.rig.folder.glob(f"first/attempts/*/{ARTIFACTS}/ready"))

    def preempted(self, how: str, seconds: float) -> tuple[State, float]:
        """Take the machine away; give the state then, and how long that took."""
        clock = SystemClock()
        with self.rig.agent("first") as agent:
            task = self.submit(how)
            self.rig.until(self.ready)
            began = time.monotonic()
            agent.interrupt(Preempted("the machine goes away", clock.now() + seconds))
            state = self.rig.until(
                lambda: s if (s := self.rig.client.state(task)).status == "queued" else None
            )
            return state, time.monotonic() - began

    def contents(self, state: State) -> dict[str, str]:
        assert state.checkpoint is not None
        data = open_store(self.rig.config()).get(state.checkpoint.archive).data
        with ZipFile(BytesIO(data)) as archive:
            return {name: archive.read(name).decode() for name in archive.namelist()}


@pytest.fixture
def simulations(tmp_path: Path) -> Simulations:
    return Simulations(tmp_path)


@pytest.mark.parametrize("how", ["goes-on", "ends"])
def test_a_preempted_simulator_writes_its_checkpoint_before_it_is_ended(
    simulations: Simulations, how: str
) -> None:
    state, seconds = simulations.preempted(how, 24.0)
    assert seconds < 24.0
    assert (state.counters.preemptions, state.lease) == (1, None)
    kept = simulations.contents(state)
    assert kept.keys() == {"count.rst", "twin.rst"}
    assert kept["count.rst"] == kept["twin.rst"]
    rig = simulations.rig
    task = task_of(state)
    with rig.agent("second"):
        assert rig.finish(task).status == "succeeded"
    assert rig.log(task).startswith(f"from {kept['count.rst']}\n".encode())


def task_of(state: State) -> TaskKeys:
    """Tell which task a checkpoint is of, by its key."""
    assert state.checkpoint is not None
    _, project, _, task, *_ = state.checkpoint.archive.split("/")
    return TaskKeys(project, task)


def test_nothing_is_waited_for_where_no_program_heeds_the_signal(simulations: Simulations) -> None:
    state, seconds = simulations.preempted("deaf", 30.0)
    assert seconds < 10.0 + 8.0, "a third of the time is for its end, none for files"
    assert (state.attempts[0].reason, state.checkpoint) == ("preempted", None)


def test_a_simulator_that_writes_nothing_is_given_back_in_time(simulations: Simulations) -> None:
    state, seconds = simulations.preempted("idle", 18.0)
    assert seconds < 18.0
    assert (state.attempts[0].reason, state.checkpoint) == ("preempted", None)


def test_every_so_often_a_simulator_is_asked_for_its_checkpoint(simulations: Simulations) -> None:
    rig = simulations.rig
    with rig.agent("first"):
        task = simulations.submit("goes-on", every=0.2)
        first = rig.until(lambda: rig.client.state(task).checkpoint)
        rig.until(
            lambda: (kept := rig.client.state(task).checkpoint) and kept.number > first.number
        )
        found = rig.until(lambda: newest(simulations, task))
        assert found["count.rst"] == found["twin.rst"]
        for folder in rig.folder.glob(f"first/attempts/*/{ARTIFACTS}"):
            (folder / "enough").touch()
        assert rig.finish(task).status == "succeeded"


def newest(simulations: Simulations, task: TaskKeys) -> dict[str, str] | None:
    """Read a task's checkpoint; None where a newer one took its place just now."""
    try:
        return simulations.contents(simulations.rig.client.state(task))
    except NotFoundError:
        return None
