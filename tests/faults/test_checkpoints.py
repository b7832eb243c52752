"""Agents that are hurt while they keep checkpoints, or lay them back: no set is ever half a set."""

import hashlib
import signal
from pathlib import Path

import pytest

from faults.lab import FULL, PATIENCE, Lab
from faults.test_failpoints import each
from simagent.domain.keys import TaskKeys
from simagent.domain.state import Checkpoint

EVERY = 1 if FULL else 5
FIELDS = {"checkpoint": {"paths": ["*.rst"], "every": 0.5}}


def counting(lab: Lab, number: float) -> TaskKeys:
    return lab.task(("counting", number), **FIELDS)


def whole(lab: Lab, task: TaskKeys) -> Checkpoint | None:
    """Give what the state names, which has to be there as it was stored."""
    while (named := lab.client.state(task).checkpoint) is not None:
        try:
            data = (lab.folder / "store" / named.archive).read_bytes()
        except FileNotFoundError:
            # A later one may have taken its place since the state was read.
            assert lab.client.state(task).checkpoint != named, f"{named.archive} is gone"
            continue
        assert hashlib.sha256(data).hexdigest() == named.sha256, f"{named.archive} is damaged"
        return named
    return None


def sets(lab: Lab, task: TaskKeys) -> list[Path]:
    return list((lab.folder / "store").rglob(f"{task.id}/a/*/checkpoints/*.zip"))


def points(folder: Path) -> list[str]:
    """Record which points are passed by keeping two checkpoints, and by nothing else."""
    with Lab(folder) as lab:
        lab.go()
        task = counting(lab, 3)
        lab.start(record=str(folder / "points"))
        assert lab.finish(task).status == "succeeded"
        lab.check(calm=True)
    lines = sorted((folder / "points").read_text().splitlines())
    return [line for line in lines if "checkpoint" in line]


def killed_at(lab: Lab, point: str) -> bool:
    lab.go()
    task = counting(lab, 3)
    if not lab.dies(lab.start(point=point, act="kill")):
        return False
    whole(lab, task)
    lab.start()
    assert lab.finish(task).status == "succeeded"
    lab.check(calm=True)
    assert not sets(lab, task), "sets are left of a task that needs none"
    return True


@pytest.mark.timeout(20 * PATIENCE)
def test_kill_9_at_every_point_of_keeping_checkpoints(tmp_path: Path) -> None:
    (tmp_path / "record").mkdir()
    found = points(tmp_path / "record")
    assert len(found) > 10
    each(found[::EVERY], killed_at, tmp_path)


@pytest.mark.parametrize(
    "moment",
    [
        "store.upload a/N/checkpoints/N.H.zip after",
        pytest.param("store.open a/N/checkpoints/N.H.zip after", marks=pytest.mark.full),
    ],
)
def test_an_agent_that_lost_the_task_before_it_named_a_set_takes_nothing_back(
    lab: Lab, moment: str
) -> None:
    task = counting(lab, 2)
    frozen = lab.start("frozen", point=moment, act="stop", times=2)
    lab.stopped(frozen)
    lab.start("other")

    def second() -> Checkpoint | None:
        named = whole(lab, task)
        return named if named is not None and named.epoch == 2 else None

    lab.until(second)
    frozen.send_signal(signal.SIGCONT)
    lab.until(lambda: any(e.get("event") == "lease_lost" for e in lab.log_of("frozen")) or None)
    assert second() is not None
    lab.go()
    state = lab.finish(task)
    assert (state.status, state.epoch) == ("succeeded", 2)
    assert state.attempts[-1].restart == 1
    lab.check()


@pytest.mark.timeout(20 * PATIENCE)
def test_kill_9_at_every_point_of_laying_one_back(tmp_path: Path) -> None:
    found = [
        "store.head a/N/checkpoints/N.H.zip before",
        "store.open a/N/checkpoints/N.H.zip before",
        "store.open a/N/checkpoints/N.H.zip after",
        "journal.write attempt,prepared before",
        "journal.write attempt,prepared after",
    ]
    each(found if FULL else found[2:4], killed_while_laying, tmp_path)


def killed_while_laying(lab: Lab, point: str) -> bool:
    task = counting(lab, 3)
    first = lab.start("first")
    lab.until(lambda: whole(lab, task))
    first.kill()
    first.wait()
    if not lab.dies(lab.start("second", point=point, act="kill")):
        return False
    lab.go()
    lab.start("second")
    state = lab.finish(task)
    assert (state.status, state.attempts[-1].restart) == ("succeeded", 1)
    lab.start("first")
    lab.check()
    return True
