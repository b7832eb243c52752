"""Calls to store and queue are noted: when they were answered, and what they brought."""

import pytest

from fakes.clock import FakeClock
from fakes.faults import DROP, Fault, Faults, FaultyQueue, FaultyStore
from fakes.queue import MemoryQueue
from fakes.store import MemoryStore
from simagent.ports.clock import Wake
from simagent.ports.queue import QueueError
from simagent.ports.store import NotFoundError, PreconditionError, StoreUnavailableError
from simagent.telemetry.contact import Contact, Met, WatchedQueue, WatchedStore
from simagent.telemetry.tally import Count, Tally


class World:
    def __init__(self) -> None:
        self.clock = FakeClock()
        self.tally = Tally()
        self.faults = Faults(self.clock)
        self.contact = Contact(
            "store",
            "file:///x",
            self.clock,
            self.tally,
            calls=Count.STORE_CALLS,
            failures=Count.STORE_CALL_FAILURES,
        )
        self.store = WatchedStore(FaultyStore(MemoryStore(), self.faults), self.contact)

    def fail(self, fault: Fault | None = DROP) -> None:
        self.faults.plan = lambda call, key: fault

    def sum(self, count: Count) -> int:
        return self.tally.read()[count, ()]


@pytest.fixture
def world() -> World:
    return World()


def test_nothing_is_known_before_the_first_call(world: World) -> None:
    assert world.contact.met() == Met()


def test_an_answer_is_remembered(world: World) -> None:
    world.store.put("a", b"12345")
    world.clock.advance(7)
    assert world.contact.met() == Met(answered=7)
    assert world.store.get("a").data == b"12345"
    assert world.sum(Count.STORE_SENT_BYTES) == world.sum(Count.STORE_RECEIVED_BYTES) == 5
    assert world.sum(Count.STORE_CALLS) == 2
    assert world.contact.met().answered == 0


def test_an_outage_lasts_from_its_first_failure_to_the_next_answer(world: World) -> None:
    world.store.put("a", b"1")
    world.fail()
    for _ in range(3):
        world.clock.advance(10)
        with pytest.raises(StoreUnavailableError):
            world.store.get("a")
    met = world.contact.met()
    assert (met.answered, met.failing) == (45, 30)  # each call took five seconds
    assert met.error
    assert world.sum(Count.STORE_CALL_FAILURES) == 3
    world.fail(None)
    world.store.head("a")
    assert world.contact.met() == Met(answered=0)


def test_what_is_not_there_or_has_changed_is_an_answer(world: World) -> None:
    with pytest.raises(NotFoundError):
        world.store.get("a")
    world.store.put("a", b"1")
    with pytest.raises(PreconditionError):
        world.store.put("a", b"2", if_absent=True)
    assert world.contact.met() == Met(answered=0)
    assert world.sum(Count.STORE_CALL_FAILURES) == 0


def test_bytes_of_streams_are_counted(world: World) -> None:
    world.store.upload("big", lambda: iter([b"abc", b"de"]))
    with world.store.open("big", start=1) as body:
        assert body.read(2) == b"bc"
        assert body.read() == b"de"
    assert world.sum(Count.STORE_SENT_BYTES) == 5
    assert world.sum(Count.STORE_RECEIVED_BYTES) == 4
    assert [entry.key for entry in world.store.scan("")] == ["big"]
    world.store.delete("big")
    assert world.sum(Count.STORE_CALLS) == 4


def test_what_a_caller_raises_while_it_reads_is_no_outage(world: World) -> None:
    world.store.put("a", b"1")
    with pytest.raises(ZeroDivisionError), world.store.open("a"):
        raise ZeroDivisionError
    assert world.contact.met().failing is None


def test_a_failure_from_before_is_an_outage_as_any(world: World) -> None:
    world.contact.failed("the store is away")
    world.clock.advance(5)
    assert world.contact.met() == Met(failing=5, error="the store is away")
    assert world.sum(Count.STORE_CALLS) == world.sum(Count.STORE_CALL_FAILURES) == 1
    world.store.put("a", b"1")
    assert world.contact.met() == Met(answered=0)


def test_calls_to_a_queue_are_noted_too() -> None:
    clock, tally = FakeClock(), Tally()
    faults = Faults(clock)
    contact = Contact(
        "queue", "q", clock, tally, calls=Count.QUEUE_CALLS, failures=Count.QUEUE_CALL_FAILURES
    )
    queue = WatchedQueue(FaultyQueue(MemoryQueue(clock), faults), contact)
    queue.send("one")
    queue.send_many(["two"])
    wake = Wake()
    first = queue.receive(visibility=30, wait=0, wake=wake)
    second = queue.receive(visibility=30, wait=0, wake=wake)
    assert first is not None
    assert second is not None
    queue.hide(first.receipt, 5)
    queue.delete(first.receipt)
    queue.reject(second, "why")
    assert contact.met() == Met(answered=0)
    faults.plan = lambda call, key: DROP
    with pytest.raises(QueueError):
        queue.send("three")
    assert contact.met().failing == 0
    assert tally.read()[Count.QUEUE_CALLS, ()] == 8
    assert tally.read()[Count.QUEUE_CALL_FAILURES, ()] == 1


def test_sums_have_a_value_for_each_of_their_labels() -> None:
    tally = Tally()
    tally.add(Count.TASKS_ENDED, "failed", "oom")
    tally.add(Count.TASKS_ENDED, "failed", "oom")
    tally.add(Count.TASKS_ENDED, "succeeded", "")
    read = tally.read()
    assert read[Count.TASKS_ENDED, ("failed", "oom")] == 2
    assert read[Count.TASKS_ENDED, ("succeeded", "")] == 1
    assert {count for count, labels in read if not labels} == {c for c in Count if not c.labels}
    with pytest.raises(AssertionError):
        tally.add(Count.TASKS_ENDED)
