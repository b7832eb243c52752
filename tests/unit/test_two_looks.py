"""What another thread takes away between two looks at it is no error of the agent."""

from collections import deque
from pathlib import Path
from types import SimpleNamespace

from fakes.clock import FakeClock
from fakes.hosts import member
from fakes.queue import MemoryQueue
from fakes.store import MemoryStore
from fakes.vanishing import with_once
from simagent.api import Task
from simagent.cluster.ssh import HeadKey
from simagent.domain.cluster import HeadLease
from simagent.domain.keys import TaskKeys
from simagent.domain.times import Times
from simagent.ledger import Ledger
from simagent.worker.bells import BellKeeper
from simagent.worker.head import Head, Leadership
from simagent.worker.journal import Place
from simagent.worker.roster import Roster, _Seen
from simagent.worker.silence import Silence
from simagent.worker.steps import StepRunner


class Doors:
    def take_samples(self) -> list[dict[str, object]]:
        return [{"host": "b"}]


def test_the_doors_of_a_step_may_go_while_they_are_asked_for_samples() -> None:
    kind = with_once(StepRunner, _beside=Doors())
    runner = kind.__new__(kind)
    runner._untaken = deque([{"host": "a"}])  # of the step before
    assert runner.samples() == [{"host": "b"}, {"host": "a"}]
    assert runner.samples() == []


def test_the_record_of_a_member_may_go_while_members_are_listed() -> None:
    for look in (Roster.members, Roster.amiss):
        clock = FakeClock()
        roster = Roster(Ledger(MemoryStore()), clock, "c")
        trouble = "" if look is Roster.members else "no room"
        kind = with_once(_Seen, record=member("a", 1, trouble=trouble))
        roster._seen = {"a": kind("etag", clock.now(), proven=True)}
        assert len(look(roster)) <= 1


def test_another_head_may_be_gone_while_it_is_named() -> None:
    ledger, clock, times = Ledger(MemoryStore()), FakeClock(), Times()
    own = Place(name="head", address="10.0.0.1", slots=4, agent="h")
    other = HeadLease(agent="other", incarnation="1")
    it = Leadership(cluster="c", own=own, shared_dir=Path("/shared"))
    gone = with_once(Head, _other=other, _silence=Silence(ledger, clock, times, other))
    head = gone(it, ledger, clock, times, incarnation="1", key=HeadKey(Path("/nowhere")))
    assert head.status == "cluster c is led by other"
    assert not head._is_dead(clock.now())
    assert head.status == "cluster c is led by nobody yet"


class Deleting(MemoryQueue):
    def __init__(self, clock: FakeClock) -> None:
        super().__init__(clock)
        self.deleted: list[str] = []

    def delete(self, receipt: str) -> None:
        self.deleted.append(receipt)


def test_a_bell_may_be_replaced_while_it_is_silenced() -> None:
    clock = FakeClock()
    queue = Deleting(clock)
    task = TaskKeys("p", "t")
    kind = with_once(BellKeeper, receipt="r")
    kind(queue, clock, Times(), task, None).silence()
    kind(queue, clock, Times(), task, None).silence()
    assert queue.deleted == ["r"]


def test_a_task_may_be_deleted_while_it_is_shown() -> None:
    for look in (repr, Task._repr_html_):
        kind = with_once(Task, _last=SimpleNamespace(status="queued"))
        task = kind(lambda: None, TaskKeys("p", "t"))  # type: ignore[arg-type, return-value]
        assert "queued" in look(task)
        assert "queued" not in look(task)
