"""What is done about a suspect: also by an agent that cannot take the task itself just now."""

from pathlib import Path

import pytest

from fakes.clock import FakeClock
from fakes.launchers import Launchers
from fakes.queue import MemoryQueue
from fakes.store import MemoryStore
from fakes.tasks import place, refusing, watch
from simagent.domain import bell
from simagent.domain.state import Status
from simagent.domain.times import Times
from simagent.ledger import Ledger
from simagent.ports.clock import Wake
from simagent.worker.context import Context, Identity
from simagent.worker.journal import Journals
from simagent.worker.queueing import Line
from simagent.worker.receive import Judge
from simagent.worker.reception import Reception

TTL = Times().lease_ttl


class Fixture:
    """An agent, and what it works with. ``started`` is what it has claimed."""

    def __init__(self, folder: Path, refusal: str | None = None) -> None:
        self.clock = FakeClock()
        self.queue = MemoryQueue(self.clock)
        self.ledger = Ledger(MemoryStore())
        self.judge = Judge(self.ledger, self.clock, Times(), can_run=refusing(refusal))
        self.started: list[object] = []
        ctx = Context(
            launchers=Launchers(),
            ledger=self.ledger,
            lease_ledger=self.ledger,
            queue=self.queue,
            clock=self.clock,
            times=Times(),
            identity=Identity(agent="me", incarnation="i1", boot_id="b", version="1", machine={}),
            journals=Journals(folder),
            runtimes={},
        )
        self.line = Line(self.clock, Times())
        self.reception = Reception(
            ctx,
            self.judge,
            lambda *claimed: self.started.append(claimed),
            lambda _: None,
            line=self.line,
        )

    def suspect(self, *, heard: bool, **fields: object) -> str | None:
        """Watch a task of a dead holder until the next reading proves it; give its receipt."""
        self.task = place(self.ledger, "running", **fields)  # type: ignore[arg-type]
        receipt = None
        if heard:
            self.queue.send(bell.encode(self.task))
            message = self.queue.receive(visibility=600.0, wait=0, wake=Wake())
            assert message is not None
            receipt = message.receipt
        self.judge.judge(self.task, receipt)
        watch(self.clock, self.judge, TTL, self.task)
        assert self.judge.suspects.due() == [(self.task, receipt)]
        return receipt

    def to_be_heard(self) -> int:
        """Count the bells that any agent would hear at once."""
        count = 0
        while self.queue.receive(visibility=600.0, wait=0, wake=Wake()) is not None:
            count += 1
        return count


@pytest.mark.parametrize("heard", [True, False])
def test_a_busy_agent_rings_for_others_where_a_holder_is_dead(tmp_path: Path, heard: bool) -> None:
    it = Fixture(tmp_path)
    receipt = it.suspect(heard=heard)
    it.reception.reconsider(it.task, receipt, free=False)
    assert it.to_be_heard() == 1
    assert it.started == []
    assert it.ledger.state(it.task).epoch == 1


def test_an_agent_that_cannot_run_it_rings_for_others_where_no_bell_was_heard(
    tmp_path: Path,
) -> None:
    it = Fixture(tmp_path, "no mpirun here")
    it.suspect(heard=False)
    it.reception.reconsider(it.task, None)
    assert it.to_be_heard() == 1


def test_a_busy_agent_ends_what_nobody_may_run_any_more(tmp_path: Path) -> None:
    it = Fixture(tmp_path)
    receipt = it.suspect(heard=True, kill={"by": "u", "at": 1.0})
    it.reception.reconsider(it.task, receipt, free=False)
    assert it.ledger.state(it.task).status is Status.KILLED
    assert it.queue.bodies() == []


def test_a_free_agent_takes_the_task(tmp_path: Path) -> None:
    it = Fixture(tmp_path)
    receipt = it.suspect(heard=True)
    it.reception.reconsider(it.task, receipt)
    assert len(it.started) == 1
    assert it.ledger.state(it.task).epoch == 2


def test_a_refused_task_that_nobody_held_is_not_rung_for(tmp_path: Path) -> None:
    it = Fixture(tmp_path, "no mpirun here")
    task = place(it.ledger, "queued")
    it.reception.reconsider(task, None)
    assert it.to_be_heard() == 0
    assert it.line.again(0) == []
    assert it.line.again(0, 1) == [(task, None)], "a host joined the cluster"


def test_a_task_keeps_its_place_in_the_line_where_another_took_the_last_slot(
    tmp_path: Path,
) -> None:
    it = Fixture(tmp_path)
    task = place(it.ledger, "queued")
    it.line.refused(task, None)
    it.reception.reconsider(task, None, free=False)
    assert it.line.again(1) == [(task, None)]
    it.reception.reconsider(task, None)
    assert len(it.started) == 1
    assert it.line.again(2) == []


def test_no_room_is_kept_for_a_task_that_cannot_be_read_any_more(tmp_path: Path) -> None:
    it = Fixture(tmp_path)
    task = place(it.ledger, "queued")
    it.line.refused(task, None)
    it.ledger.store.put(task.state, b"not a state")
    it.reception.reconsider(task, None)
    assert it.line.again(1) == []
