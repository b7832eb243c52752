"""Who follows a task tells its agent so, as cheaply as it can be told."""

import pytest

from fakes.clock import FakeClock
from fakes.faults import Faults, FaultyStore
from fakes.queue import MemoryQueue
from fakes.store import MemoryStore
from fakes.tasks import place
from simagent.client import ClientError, Tasks
from simagent.client.pace import LOCAL_POLLS, REMOTE_POLLS, Polls
from simagent.domain.live import ATTENDED
from simagent.domain.state import Status
from simagent.ledger import Ledger
from simagent.ports.store import NotFoundError, StoreRefusedError


class Fixture:
    """A task, and a client that looks at it through a store whose calls are counted."""

    def __init__(self, status: str = "running", polls: Polls = REMOTE_POLLS) -> None:
        self.clock = FakeClock()
        self.store = MemoryStore()
        self.good = Ledger(self.store)
        self.faults = Faults(self.clock)
        self.task = place(self.good, status)
        ledger = Ledger(FaultyStore(self.store, self.faults))
        queue = MemoryQueue(self.clock)
        self.client = Tasks(ledger, lambda _: queue, self.clock, project="default", polls=polls)

    def set(self, status: Status) -> None:
        self.good.change(self.task, lambda state: state.with_(status=status))

    def print(self, offset: int, data: bytes) -> None:
        self.store.put(self.task.attempt(1).log_chunk("stdout", offset), data)

    def follow(self) -> bytes:
        pieces = self.client.logs(self.task, ["stdout"], follow=True)
        return b"".join(piece.data for piece in pieces)

    def told(self) -> list[float]:
        return self.times("put", self.task.control)

    def times(self, call: str, key: str) -> list[float]:
        return [at for at, made, of in self.seen if (made, of) == (call, key)]

    def watch(self) -> None:
        self.seen: list[tuple[float, str, str]] = []
        self.faults.before = lambda call, key: self.seen.append((self.clock.now(), call, key))


@pytest.fixture
def it() -> Fixture:
    it = Fixture()
    it.watch()
    return it


def test_the_agent_is_told_of_a_follower_for_as_long_as_there_is_one(it: Fixture) -> None:
    begin = it.clock.now()
    it.clock.after(95, lambda: it.set(Status.SUCCEEDED))
    it.follow()
    assert it.told()[0] == begin
    gaps = [b - a for a, b in zip(it.told(), it.told()[1:], strict=False)]
    assert max(gaps) < ATTENDED / 2
    assert len(it.told()) <= 10


def test_each_time_it_is_told_something_new(it: Fixture) -> None:
    seen: list[bytes] = []

    def note() -> None:
        seen.append(it.store.get(it.task.control).data)

    for at in (1, 12, 23):
        it.clock.after(at, note)
    it.clock.after(25, lambda: it.set(Status.SUCCEEDED))
    it.follow()
    assert len(set(seen)) == 3


def test_nobody_is_told_before_an_agent_holds_the_task() -> None:
    it = Fixture("queued")
    it.watch()
    it.clock.after(50, lambda: it.set(Status.PREPARING))
    it.clock.after(55, lambda: it.set(Status.SUCCEEDED))
    begin = it.clock.now()
    it.follow()
    assert 50 <= it.told()[0] - begin <= 51
    assert len(it.told()) == 1


def test_lines_are_seen_within_a_second_and_a_silent_task_costs_a_look_a_second(
    it: Fixture,
) -> None:
    begin = it.clock.now()
    it.clock.after(40.2, lambda: it.print(0, b"hello\n"))
    it.clock.after(60, lambda: it.set(Status.SUCCEEDED))
    pieces = it.client.logs(it.task, ["stdout"], follow=True)
    assert next(pieces).data == b"hello\n"
    assert it.clock.now() - begin <= 41.3
    list(pieces)
    assert len(it.times("get", it.task.state)) <= 70


def test_who_waits_looks_every_two_seconds_and_disturbs_nobody(it: Fixture) -> None:
    it.clock.after(100, lambda: it.set(Status.SUCCEEDED))
    it.client.wait(it.task)
    assert len(it.times("get", it.task.state)) <= 60
    assert it.told() == []


def test_a_log_that_is_not_followed_disturbs_nobody(it: Fixture) -> None:
    it.print(0, b"hello\n")
    assert b"".join(piece.data for piece in it.client.logs(it.task)) == b"hello\n"
    assert it.told() == []


def test_who_may_not_tell_the_agent_follows_all_the_same(it: Fixture) -> None:
    inner = it.store.put

    def refused(key: str, *args: object, **more: object) -> str:
        if key == it.task.control:
            raise StoreRefusedError("s3:PutObject is not allowed")
        return inner(key, *args, **more)  # type: ignore[arg-type]

    it.store.put = refused  # type: ignore[method-assign]
    it.print(0, b"hello\n")
    it.clock.after(5, lambda: it.set(Status.SUCCEEDED))
    assert it.follow() == b"hello\n"
    assert it.client.kill(it.task, by="me").terminal


@pytest.mark.parametrize("polls", [LOCAL_POLLS, REMOTE_POLLS])
def test_who_asks_for_files_tells_the_agent_to_look(polls: Polls) -> None:
    it = Fixture(polls=polls)
    it.watch()
    with pytest.raises(ClientError, match="no agent answered"):
        it.client.files(it.task).list("")
    puts = [key for _, call, key in it.seen if call == "put"]
    assert puts[0].startswith(it.task.requests)
    assert puts[1] == it.task.control


def test_a_kill_tells_the_agent_to_look(it: Fixture) -> None:
    it.client.kill(it.task, by="me")
    assert [key for _, call, key in it.seen if call == "put"] == [it.task.state, it.task.control]


def test_a_kill_of_a_task_that_nobody_holds_tells_nobody() -> None:
    it = Fixture("queued")
    it.client.kill(it.task, by="me")
    with pytest.raises(NotFoundError):
        it.store.get(it.task.control)
