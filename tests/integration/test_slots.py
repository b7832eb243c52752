"""Tasks side by side on one agent."""

import sys
from pathlib import Path

import pytest

from fakes.rig import Rig
from simagent.domain.keys import TaskKeys
from simagent.domain.state import State


@pytest.fixture
def rig(tmp_path: Path) -> Rig:
    return Rig(tmp_path)


def until_there(path: Path) -> str:
    """A command that prints what it was given, and runs until a file is there."""
    code = (
        "import os, pathlib, time; print(sorted(os.sched_getaffinity(0)), flush=True)\n"
        f"while not pathlib.Path({str(path)!r}).exists(): time.sleep(0.02)"
    )
    return f'{sys.executable} -c "{code}"'


def running(rig: Rig, *tasks: TaskKeys) -> list[State] | None:
    """Give the states of the tasks where all of them run."""
    states = [rig.client.state(task) for task in tasks]
    return states if all(state.status == "running" for state in states) else None


def test_as_many_tasks_run_as_there_are_slots(rig: Rig, tmp_path: Path) -> None:
    go = tmp_path / "go"
    with rig.agent(slots=3):
        tasks = [rig.submit(until_there(go)) for _ in range(4)]
        rig.until(lambda: sum(bool(rig.running(task)) for task in tasks) == 3)
        assert sum(rig.client.state(task).status == "queued" for task in tasks) == 1
        go.touch()
        states = [rig.finish(task) for task in tasks]
    assert {state.status for state in states} == {"succeeded"}
