"""What agents and clients ask of S3 and SQS, which charge for every request.

Agents with their real times, on clocks that run many times as fast. docs/operations.md has the
numbers, and prices them: change both.
"""

import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from fakes.clock import FastClock
from fakes.metering import MeteredQueue, MeteredStore
from fakes.queue import MemoryQueue
from fakes.rig import Rig
from fakes.store import MemoryStore
from simagent.client import Tasks
from simagent.client.pace import REMOTE_POLLS
from simagent.domain.keys import TaskKeys
from simagent.domain.spec import Spec
from simagent.domain.times import Times
from simagent.ledger import Ledger
from simagent.ports.clock import SystemClock
from simagent.telemetry.pump import REMOTE_PACE
from simagent.worker.context import Context
from simagent.worker.control import REMOTE_LOOKS

HOUR = 3600.0
SPEED = 240.0


class Fleet:
    """An agent and a client with the paces of S3; each has a meter."""

    def __init__(self, folder: Path, speed: float = SPEED) -> None:
        self.folder = folder
        self.speed = speed
        self.clock = FastClock(speed) if speed > 1 else SystemClock()
        self.store = MemoryStore()
        self.queue = MemoryQueue(self.clock)
        self.agent_meter, self.client_meter = Counter[str](), Counter[str]()
        self.rig = Rig(folder)
        queue = MeteredQueue(self.queue, self.client_meter)
        self.client = Tasks(
            Ledger(MeteredStore(self.store, self.client_meter)),
            lambda _: queue,
            self.clock,
            project="default",
            polls=REMOTE_POLLS,
        )

    @contextmanager
    def agent(self) -> Iterator[None]:
        def change(ctx: Context) -> Context:
            store = MeteredStore(self.store, self.agent_meter)
            return replace(
                ctx,
                ledger=Ledger(store),
                lease_ledger=Ledger(store),
                queue=MeteredQueue(self.queue, self.agent_meter),
                clock=self.clock,
                times=Times(),
                settings=replace(
                    ctx.settings, pace=replace(REMOTE_PACE, sample=60.0), looks=REMOTE_LOOKS
                ),
            )

        with self.rig.agent(change=change, in_fleet=True):
            yield

    def submit(self, code: str) -> TaskKeys:
        spec = {"commands": [[sys.executable, "-c", code]], "grace": 1}
        return self.client.submit(Spec.model_validate(spec), base=self.folder)

    def run(self, task: TaskKeys) -> None:
        self.rig.until(lambda: self.client.state(task).status == "running" or None)

    def pass_(self, seconds: float) -> float:
        """Let some time pass by the fast clock; give what it really was, in hours."""
        began = self.clock.now()
        self.clock.wait(seconds)
        return (self.clock.now() - began) / HOUR


PRINTING = f"import time\nwhile True: print('x', flush=True); time.sleep({5 / SPEED})"


def within(meter: Counter[str], hours: float, **most: int) -> None:
    """Check that no more was asked in an hour, nor anything else."""
    per_hour = {kind: count / hours for kind, count in meter.items()}
    assert {kind: n for kind, n in per_hour.items() if n > most.get(kind, 0)} == {}, per_hour


def test_an_idle_agent(tmp_path: Path) -> None:
    fleet = Fleet(tmp_path)
    with fleet.agent():
        fleet.pass_(60)
        fleet.agent_meter.clear()
        hours = fleet.pass_(HOUR)
        seen = fleet.agent_meter.copy()
    within(seen, hours, SQS=400, PUT=90, GET=30, LIST=30)


def test_a_running_task_that_nobody_follows(tmp_path: Path) -> None:
    fleet = Fleet(tmp_path)
    with fleet.agent():
        task = fleet.submit(PRINTING)
        fleet.run(task)
        fleet.pass_(120)
        fleet.agent_meter.clear()
        hours = fleet.pass_(HOUR)
        seen = fleet.agent_meter.copy()
        fleet.client.kill(task, by="me")
        fleet.rig.until(lambda: fleet.client.state(task).terminal or None)
    within(seen, hours, SQS=120, GET=800, PUT=500, LIST=30, DELETE=90)


def test_a_running_task_that_is_followed(tmp_path: Path) -> None:
    fleet = Fleet(tmp_path, speed=60.0)
    code = PRINTING.replace(str(5 / SPEED), str(5 / 60.0))
    with fleet.agent():
        task = fleet.submit(code)
        fleet.run(task)
        pieces = fleet.client.logs(task, ["stdout"], follow=True)
        next(pieces)
        began = fleet.clock.now()
        fleet.agent_meter.clear()
        fleet.client_meter.clear()
        while fleet.clock.now() - began < HOUR / 6:
            next(pieces)
        hours = (fleet.clock.now() - began) / HOUR
        agent, client = fleet.agent_meter.copy(), fleet.client_meter.copy()
        fleet.client.kill(task, by="me")
        fleet.rig.until(lambda: fleet.client.state(task).terminal or None)
    within(agent, hours, SQS=120, GET=4500, PUT=1800, LIST=420, DELETE=1500)
    within(client, hours, GET=9000, PUT=420, LIST=9000)


@pytest.mark.parametrize("array", [False, True])
def test_a_task_by_itself_from_its_submission_to_its_end(tmp_path: Path, array: bool) -> None:
    fleet, tasks = Fleet(tmp_path, speed=1.0), 20
    spec = Spec.model_validate(
        {"commands": ["true"], **({"array": {"size": tasks}} if array else {})}
    )
    with fleet.agent():
        if array:
            found = fleet.client.submit_array(spec, base=tmp_path, array_id="A")
            keys = fleet.client.arrays.tasks(found.id)
        else:
            keys = [fleet.client.submit(spec, base=tmp_path) for _ in range(tasks)]
        submitted = fleet.client_meter.copy()
        fleet.rig.until(lambda: all(fleet.client.state(k).terminal for k in keys) or None, 100)
        done = fleet.agent_meter.copy()
    within(submitted, tasks, SQS=1, GET=1 if array else 2, PUT=5, LIST=0)
    within(done, tasks, SQS=5, GET=14, PUT=14, LIST=8, DELETE=4)
