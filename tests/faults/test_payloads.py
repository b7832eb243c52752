"""Simulators that resist, hide, flood and hoard; a kill at every stage."""

import signal
from collections.abc import Callable

import pytest

from faults.lab import LONG, Lab, Measured, Stopwatch
from faults.test_engines import needs_mount, small_disk
from simagent.domain.state import State


@pytest.mark.parametrize(
    ("mode", "number"),
    [
        ("strange", 10.0),
        ("daemonise", LONG),
        ("flood", 20.0),
        pytest.param("flood", 1024.0, marks=pytest.mark.full),
        pytest.param("eat", 200.0, marks=pytest.mark.full),
        pytest.param("known", 20_000.0, marks=pytest.mark.full),
    ],
)
def test_it_ends_with_all_that_it_wrote_and_leaves_nothing(
    lab: Lab, mode: str, number: float
) -> None:
    task = lab.task((mode, number), ("known", 1.0))
    lab.start()
    assert lab.finish(task).status == "succeeded"
    lab.check(calm=True)


@pytest.mark.parametrize("mode", ["stubborn", "children", "fork", "daemonise"])
def test_a_kill_ends_all_of_it(lab: Lab, measured: Measured, mode: str) -> None:
    task = lab.task((mode, LONG), ("tick", LONG), grace=0.5)
    lab.start()
    lab.pid(task)
    if mode != "children":  # it says nothing before its end
        lab.until(lambda: lab.log(task) or None)
    watch = Stopwatch()
    lab.client.kill(task, by="tester")
    state = lab.finish(task)
    measured("`kill` with 0.5 s of grace, of what ignores SIGTERM or hides → ended", watch)
    assert (state.status, state.epoch) == ("killed", 1)
    lab.check(calm=True)


def test_a_time_limit_ends_what_resists(lab: Lab) -> None:
    task = lab.task(("stubborn", LONG), time_limit=1.0, grace=0.5)
    lab.start()
    assert lab.finish(task).reason == "time_limit"
    lab.check(calm=True)


@needs_mount
def test_a_simulator_that_fills_the_disk(lab: Lab) -> None:
    with small_disk(lab.folder / "state"):
        task = lab.task(("tick", 0.2), ("fill", 100.0))
        lab.start()
        state = lab.finish(task)
        assert (state.status, state.reason, state.epoch) == ("failed", "disk_full", 1)
        after = lab.task(("known", 1.0))
        assert lab.finish(after).status == "succeeded"
        lab.check(calm=True)
        lab.stop()


STAGES = {
    "claim": "journal.create before",
    "claimed": "store.put state.json:preparing after",
    "input": "store.open inputs/N.zip before",
    "prepared": "journal.write attempt,prepared after",
    "running": "store.put state.json:running before",
    "step": "runtime.start step 0 before",
    "started": "runtime.start step 0 after",
    "second": "runtime.start step 1 before",
    "ended": "journal.write attempt,outcome,reason before",
    "outcome": "journal.write attempt,outcome,reason after",
    "finalizing": "store.put state.json:finalizing before",
    "fixed": "store.put state.json:finalizing after",
    "upload": "store.upload a/N/output.zip within",
    "publish": "store.put state.json:succeeded before",
    "tidy": "store.delete open/ID before",
}
# The commands are over, and what they came to is not thrown away.
TOO_LATE = {"ended", "outcome", "finalizing", "fixed", "upload", "publish", "tidy"}
QUICK = {"claimed", "started", "finalizing", "upload"}


def _agent_lives(lab: Lab) -> None:
    lab.agents[-1].send_signal(signal.SIGCONT)


def _agent_dies(lab: Lab) -> None:
    lab.agents[-1].kill()
    lab.agents[-1].wait()
    lab.start()


@pytest.mark.parametrize("then", [_agent_lives, _agent_dies], ids=["lives", "dies"])
@pytest.mark.parametrize(
    "stage",
    [pytest.param(s, marks=[] if s in QUICK else pytest.mark.full) for s in STAGES],
)
def test_a_kill_at_every_stage(lab: Lab, stage: str, then: Callable[[Lab], None]) -> None:
    """The agent is stopped at the stage while the kill is written, and goes on, or is killed."""
    task = lab.canonical()
    process = lab.start(point=STAGES[stage], act="stop")
    lab.stopped(process)
    asked = lab.client.kill(task, by="tester", grace=0.5)
    then(lab)
    state = lab.finish(task)
    assert state.status == ("succeeded" if stage in TOO_LATE else "killed"), describe(state)
    if stage == "claim":
        assert (asked.terminal, state.epoch) == (True, 0)
    lab.check(calm=True)


def test_a_killed_task_that_waits_is_never_started(lab: Lab) -> None:
    task = lab.task(("known", 1.0))
    assert lab.client.kill(task, by="tester").terminal
    lab.start()
    other = lab.task(("known", 1.0))
    lab.finish(other)
    assert not (lab.truth / task.id).exists()
    lab.check(calm=True)


def describe(state: State) -> str:
    return f"{state.status}: {state.reason}: {state.message}"
