"""What the client leaves in the store and the queue, also after it was interrupted."""

import socket
from pathlib import Path

import pytest

from fakes.clock import FakeClock
from fakes.faults import UNAVAILABLE, Fault, Faults, FaultyStore
from fakes.queue import MemoryQueue
from fakes.store import MemoryStore
from fakes.tasks import place
from simagent.client import ClientError, Tasks, UsageError
from simagent.domain import bell, keys
from simagent.domain.keys import TaskKeys
from simagent.domain.spec import Spec
from simagent.domain.state import Status
from simagent.ledger import Ledger

DAY = 86_400.0
HELLO = Spec.model_validate({"commands": ["echo hello"]})


class _Died(BaseException):
    """The client's process ended here."""


class Desk:
    """A client of a store that can fail."""

    def __init__(self) -> None:
        self.clock = FakeClock()
        self.store = MemoryStore()
        self.good = Ledger(self.store)
        self.faults = Faults(self.clock)
        self.queue = MemoryQueue(self.clock)
        ledger = Ledger(FaultyStore(self.store, self.faults))
        self.client = Tasks(ledger, lambda _group: self.queue, self.clock, project="default")

    def ended(self, name: str) -> TaskKeys:
        """Place a task that ended just now, with something of each kind that one leaves."""
        wall = self.clock.wall()
        task = place(self.good, "failed", id=name, submitted_at=wall, ended_at=wall)
        self.store.put(keys.index_entry(task.project, task.id, wall), b"")
        for key in (task.input(0), task.attempt(1).output_zip, task.attempt(2).metrics + "1"):
            self.store.put(key, b"data")
        return task

    def of(self, task: TaskKeys) -> list[str]:
        return [entry.key for entry in self.store.scan(task.root)]

    def index(self) -> list[str]:
        return [entry.key for entry in self.store.scan(keys.index_prefix("default"))]

    def die_at(self, call: str, key: str) -> None:
        def die(made: str, at: str) -> None:
            if made == call and at == key:
                raise _Died

        self.faults.before = die

    def come_back(self) -> None:
        self.faults.before = lambda _call, _key: None


def test_a_user_without_a_name_may_submit(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("LOGNAME", "USER", "LNAME", "USERNAME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("os.getuid", lambda: 12345)
    client = Desk().client
    state = client.state(client.submit(HELLO, base=Path()))
    assert state.submitted_by == f"12345@{socket.gethostname()}"


def test_a_submission_that_died_before_its_bell_rings_when_it_is_repeated() -> None:
    desk = Desk()
    task = desk.client.submit(HELLO, base=Path(), task_id="T", ring=False)
    assert desk.queue.bodies() == []
    assert desk.client.submit(HELLO, base=Path(), task_id="T") == task
    assert desk.queue.bodies() == [bell.encode(task)]


@pytest.mark.parametrize("status", ["running", "failed"])
def test_a_submission_that_came_through_is_not_rung_for_again(status: str) -> None:
    desk = Desk()
    place(desk.good, status, id="T", spec={"commands": ["echo hello"]})
    desk.client.submit(HELLO, base=Path(), task_id="T")
    assert desk.queue.bodies() == []


def test_an_interrupted_delete_is_finished_by_the_next_prune() -> None:
    desk = Desk()
    task = desk.ended("T")
    desk.die_at("delete", task.attempt(1).output_zip)
    with pytest.raises(_Died):
        desk.client.delete(task)
    desk.come_back()
    assert task.attempt(1).output_zip in desk.of(task)
    assert list(desk.client.prune(older_than=DAY)) == []
    assert desk.of(task) == [task.state]


def test_nothing_is_left_of_a_tombstone_after_its_time() -> None:
    desk = Desk()
    task = desk.ended("T")
    desk.client.delete(task)
    desk.store.put(task.attempt(3).metrics + "late", b"written after the delete")
    desk.clock.advance(30 * DAY + 1)
    list(desk.client.prune(older_than=DAY))
    assert (desk.of(task), desk.index()) == ([], [])


@pytest.mark.parametrize("where", ["rest", "state", "entry"])
def test_a_burial_that_was_interrupted_is_finished(where: str) -> None:
    desk = Desk()
    task = desk.ended("T")
    (entry,) = desk.index()
    desk.client.delete(task)
    late = task.attempt(3).metrics + "late"
    desk.store.put(late, b"")
    desk.clock.advance(30 * DAY + 1)
    desk.die_at("delete", {"rest": late, "state": task.state, "entry": entry}[where])
    with pytest.raises(_Died):
        list(desk.client.prune(older_than=DAY))
    desk.come_back()
    list(desk.client.prune(older_than=DAY))
    assert (desk.of(task), desk.index()) == ([], [])


def test_lists_and_deletes_outlast_a_short_outage() -> None:
    desk = Desk()
    tasks = [desk.ended(f"T{number}") for number in range(3)]
    failed = set()

    def once_each(call: str, key: str) -> Fault | None:
        if (call, key) in failed:
            return None
        failed.add((call, key))
        return UNAVAILABLE

    desk.faults.plan = once_each
    assert {row.task for row in desk.client.list()} == set(tasks)
    assert set(desk.client.prune(older_than=-1.0)) == set(tasks)
    assert [key for task in tasks for key in desk.of(task)] == [task.state for task in tasks]


def test_long_lists_are_walked_to_their_end() -> None:
    desk = Desk()
    for number in range(1001):
        wall = desk.clock.wall() + number
        desk.store.put(keys.index_entry("default", f"N{number}", wall), b"")  # of no task
    desk.store.put(keys.index_entry("default", place(desk.good, "failed").id, 0.0), b"")
    assert len(list(desk.client.list())) == 1


def test_a_deleted_task_is_not_retried_and_that_is_said() -> None:
    desk = Desk()
    task = desk.ended("T")
    desk.client.delete(task)
    with pytest.raises(ClientError, match="was deleted"):
        desk.client.retry(task)
    assert desk.client.state(task).status is Status.DELETED


def test_the_id_of_a_deleted_task_is_refused_and_nothing_is_written() -> None:
    desk = Desk()
    task = desk.client.submit(HELLO, base=Path(), task_id="T")
    desk.client.kill(task, by="somebody")
    desk.client.delete(task)
    before = list(desk.store.scan(""))
    with pytest.raises(UsageError, match="was deleted: use another --id"):
        desk.client.submit(HELLO, base=Path(), task_id="T")
    assert list(desk.store.scan("")) == before
