"""What every task queue engine does, and every stand-in for one.

To hold a new engine to it, add a line to `ENGINES`. Seconds pass by the engine's clock: at once
where it is a `FakeClock`.
"""

import threading
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Protocol, cast

import pytest

from fakes.actors import Actor, echo, receive_all, together
from fakes.clock import FakeClock
from fakes.faults import Faults, FaultyQueue
from fakes.queue import MemoryQueue
from fakes.sqs import make_queue
from simagent.ports.clock import Clock, SystemClock, Wake
from simagent.ports.queue import Message, Queue
from simagent.queues.sqlite import SqliteQueue

Opener = Callable[[str], Queue]


class HasDeadLetters(Protocol):
    def dead_letters(self) -> list[tuple[str, str]]: ...


def dead_letters(queue: Queue) -> list[tuple[str, str]]:
    """Tell the bodies and reasons of what was rejected, by whatever way the engine has."""
    inner = queue.inner if isinstance(queue, FaultyQueue) else queue
    return cast(HasDeadLetters, inner).dead_letters()


class Remembered(dict[str, Queue]):
    """Opens the same object each time: what an engine in memory needs."""

    def __init__(self, make: Callable[[], Queue]) -> None:
        self.make = make

    def __missing__(self, group: str) -> Queue:
        return self.setdefault(group, self.make())

    def __call__(self, group: str) -> Queue:
        return self[group]


@dataclass(frozen=True)
class Engine:
    make_clock: Callable[[], Clock]
    make_opener: Callable[[pytest.FixtureRequest, Clock], Opener]


def _memory(request: pytest.FixtureRequest, clock: Clock) -> Opener:
    return Remembered(lambda: MemoryQueue(clock))


def _faulty(request: pytest.FixtureRequest, clock: Clock) -> Opener:
    return Remembered(lambda: FaultyQueue(MemoryQueue(clock), Faults(clock)))


def _sqlite(request: pytest.FixtureRequest, clock: Clock) -> Opener:
    return partial(SqliteQueue, request.getfixturevalue("tmp_path") / "queue.db", clock=clock)


def _sqs(request: pytest.FixtureRequest, clock: Clock) -> Opener:
    moto = request.getfixturevalue("moto")
    return partial(make_queue, moto, moto.name() + "-{group}", clock)


ENGINES = {
    "memory": Engine(FakeClock, _memory),
    "faulty": Engine(FakeClock, _faulty),
    "sqlite": Engine(FakeClock, _sqlite),
    "sqs": Engine(SystemClock, _sqs),
}
# Those that work by the machine's own clock; the second, for other processes, too.
REAL_TIME = {"memory": _memory, "sqlite": _sqlite, "sqs": _sqs}
SHARED = {"sqlite": _sqlite, "sqs": _sqs}


@pytest.fixture(params=ENGINES)
def engine(request: pytest.FixtureRequest) -> Engine:
    return ENGINES[request.param]


@pytest.fixture
def clock(engine: Engine) -> Clock:
    return engine.make_clock()


@pytest.fixture
def opener(engine: Engine, clock: Clock, request: pytest.FixtureRequest) -> Opener:
    return engine.make_opener(request, clock)


@pytest.fixture
def queue(opener: Opener) -> Queue:
    return opener("default")


@pytest.fixture(params=REAL_TIME)
def real(request: pytest.FixtureRequest) -> Opener:
    return REAL_TIME[request.param](request, SystemClock())


@pytest.fixture(params=SHARED)
def shared(request: pytest.FixtureRequest) -> Opener:
    return SHARED[request.param](request, SystemClock())


def receive(queue: Queue, *, visibility: float = 30.0, wait: float = 0.0) -> Message | None:
    return queue.receive(visibility=visibility, wait=wait, wake=Wake())


def must_receive(queue: Queue, *, visibility: float = 30.0, wait: float = 0.0) -> Message:
    message = receive(queue, visibility=visibility, wait=wait)
    assert message is not None
    return message


def test_what_is_sent_is_received_once(queue: Queue) -> None:
    queue.send("hello")
    message = must_receive(queue)
    assert (message.body, message.receives) == ("hello", 1)
    assert receive(queue) is None


@pytest.mark.parametrize("body", ["", "a b\nc", '{"é": "𝄞"}', "x" * 100_000])
def test_any_text_comes_through(queue: Queue, body: str) -> None:
    queue.send(body)
    assert must_receive(queue).body == body


def test_all_messages_are_received_in_the_end(queue: Queue) -> None:
    bodies = {f"task-{number}" for number in range(20)}
    for body in bodies:
        queue.send(body)
    assert {must_receive(queue).body for _ in bodies} == bodies


@pytest.mark.parametrize("count", [0, 1, 25])
def test_many_messages_are_sent_at_once(queue: Queue, count: int) -> None:
    bodies = [f"{number} é" for number in range(count)]
    queue.send_many(bodies)
    assert sorted(must_receive(queue).body for _ in bodies) == sorted(bodies)
    assert receive(queue) is None


def test_messages_that_are_large_together_are_sent_all_the_same(queue: Queue) -> None:
    bodies = [*(str(number) * 100_000 for number in range(5)), "odd \x01"]
    queue.send_many(bodies)
    assert sorted(must_receive(queue).body for _ in bodies) == sorted(bodies)


def test_groups_do_not_hear_each_other(opener: Opener) -> None:
    one, other = opener("one"), opener("other")
    one.send("for one")
    assert receive(other) is None
    assert must_receive(one).body == "for one"


def test_another_handle_sees_the_message(opener: Opener) -> None:
    opener("default").send("x")
    assert must_receive(opener("default")).body == "x"


# Visibility


def test_a_message_comes_again_when_its_visibility_is_over(queue: Queue, clock: Clock) -> None:
    queue.send("x")
    first = must_receive(queue, visibility=5)
    clock.wait(1)
    assert receive(queue) is None
    clock.wait(4.5)
    again = must_receive(queue)
    assert (again.body, again.receives) == ("x", 2)
    assert again.receipt != first.receipt


def test_a_delayed_message_comes_late(queue: Queue, clock: Clock) -> None:
    queue.send("x", delay=5)
    clock.wait(1)
    assert receive(queue) is None
    clock.wait(4.5)
    assert must_receive(queue).body == "x"


def test_hiding_a_message_prolongs_its_visibility(queue: Queue, clock: Clock) -> None:
    queue.send("x")
    message = must_receive(queue, visibility=3)
    clock.wait(1)
    queue.hide(message.receipt, 7)
    clock.wait(3)
    assert receive(queue) is None
    clock.wait(4.5)
    assert must_receive(queue).receives == 2


def test_hiding_for_no_time_gives_the_message_back_at_once(queue: Queue) -> None:
    queue.send("x")
    queue.hide(must_receive(queue).receipt, 0)
    assert must_receive(queue).receives == 2


def test_a_deleted_message_is_gone(queue: Queue, clock: Clock) -> None:
    queue.send("x")
    queue.delete(must_receive(queue, visibility=1).receipt)
    clock.wait(1.5)
    assert receive(queue) is None


def test_a_receipt_is_good_until_the_message_is_received_again(queue: Queue, clock: Clock) -> None:
    queue.send("x")
    message = must_receive(queue, visibility=1)
    clock.wait(1.5)
    queue.delete(message.receipt)
    assert receive(queue) is None


def test_a_stale_receipt_changes_nothing(queue: Queue, clock: Clock) -> None:
    queue.send("x")
    stale = must_receive(queue, visibility=1)
    clock.wait(1.5)
    fresh = must_receive(queue, visibility=60)
    queue.hide(stale.receipt, 0)
    queue.delete(stale.receipt)
    queue.reject(stale, "too late")
    assert receive(queue) is None
    queue.hide(fresh.receipt, 0)
    assert must_receive(queue).body == "x"
    assert dead_letters(queue) == []


def test_a_receipt_of_a_deleted_message_changes_nothing(queue: Queue) -> None:
    queue.send("x")
    message = must_receive(queue)
    queue.delete(message.receipt)
    queue.delete(message.receipt)
    queue.hide(message.receipt, 0)
    queue.reject(message, "again")
    assert receive(queue) is None
    assert dead_letters(queue) == []


def test_a_rejected_message_is_kept_with_its_reason(queue: Queue, clock: Clock) -> None:
    queue.send("not json")
    queue.send("good")
    message = must_receive(queue, visibility=1)
    other = must_receive(queue, visibility=1)
    bad, good = (message, other) if message.body == "not json" else (other, message)
    queue.reject(bad, "malformed")
    clock.wait(1.5)
    assert must_receive(queue).body == good.body
    assert receive(queue) is None
    assert dead_letters(queue) == [("not json", "malformed")]


def test_of_messages_rejected_alike_one_is_kept(queue: Queue) -> None:
    for body in ("poison", "other", "poison"):
        queue.send(body)
    for _ in range(3):
        queue.reject(must_receive(queue), "bad")
    assert receive(queue) is None
    assert sorted(dead_letters(queue)) == [("other", "bad"), ("poison", "bad")]


# Waiting


def test_waiting_for_nothing_ends_after_the_wait(queue: Queue, clock: Clock) -> None:
    began = clock.now()
    assert receive(queue, wait=1) is None
    assert clock.now() - began > 0.5


def test_a_waiting_receiver_gets_what_becomes_visible(queue: Queue, clock: Clock) -> None:
    began = clock.now()
    queue.send("x", delay=2)
    assert must_receive(queue, visibility=1, wait=60).body == "x"
    assert clock.now() - began < 30
    assert must_receive(queue, wait=60).receives == 2
    assert clock.now() - began < 50


def test_a_wake_that_is_set_takes_nothing(queue: Queue) -> None:
    queue.send("x")
    wake = Wake()
    wake.set()
    assert queue.receive(visibility=30, wait=20, wake=wake) is None
    assert must_receive(queue).receives == 1


def test_a_wake_ends_the_wait(real: Opener) -> None:
    wake, clock = Wake(), SystemClock()
    threading.Timer(0.1, wake.set).start()
    began = clock.now()
    assert real("default").receive(visibility=30, wait=60, wake=wake) is None
    assert clock.now() - began < 30


@pytest.mark.parametrize("action", ["send", "hide", "shorten"])
def test_a_waiting_receiver_hears_of_a_message_at_once(real: Opener, action: str) -> None:
    queue, clock = real("default"), SystemClock()
    queue.send("x")
    message = must_receive(queue, visibility=600)
    act = {
        "send": partial(queue.send, "y"),
        "hide": partial(queue.hide, message.receipt, 0),
        "shorten": partial(queue.hide, message.receipt, 0.1),
    }[action]
    threading.Timer(0.1, act).start()
    began = clock.now()
    assert must_receive(real("default"), wait=60).body == ("y" if action == "send" else "x")
    assert clock.now() - began < 30


# Several receivers


def test_threads_never_get_the_same_message(real: Opener) -> None:
    sender, received = real("default"), list[str]()
    for number in range(60):
        sender.send(f"{number:02d}")

    def drain(queue: Queue) -> None:
        while (message := receive(queue, visibility=600)) is not None:
            received.append(message.body)

    one = real("default")
    workers = [threading.Thread(target=drain, args=(queue,)) for queue in (one, one, sender)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert sorted(received) == [f"{number:02d}" for number in range(60)]


def test_each_waiting_thread_gets_one_of_as_many_messages(real: Opener) -> None:
    queue, received = real("default"), list[str]()
    clock = SystemClock()

    def take() -> None:
        received.append(must_receive(queue, visibility=600, wait=60).body)

    workers = [threading.Thread(target=take) for _ in range(4)]
    for worker in workers:
        worker.start()
    began = clock.now()
    for number in range(4):
        queue.send(str(number))
    for worker in workers:
        worker.join()
    assert sorted(received) == ["0", "1", "2", "3"]
    assert clock.now() - began < 30


def test_processes_never_get_the_same_message(shared: Opener) -> None:
    queue = shared("default")
    bodies = [f"{number:03d}" for number in range(150)]
    for body in bodies:
        queue.send(body)
    open_queue = partial(shared, "default")
    taken = together(*(Actor(receive_all, open_queue, 0.2) for _ in range(3)))
    assert sorted(body for mine in taken for body in mine) == bodies


def test_waiting_processes_hear_each_other_at_once(shared: Opener) -> None:
    # Each side waits for the other in turn: one lost wake-up would take a minute and a half.
    there, back, clock = shared("there"), shared("back"), SystemClock()
    actor = Actor(echo, shared, "there", "back", 90.0)
    actor.ready()
    actor.go()
    began = clock.now()
    for body in [*map(str, range(40)), "stop"]:
        there.send(body)
        message = must_receive(back, wait=90)
        assert message.body == body
        back.delete(message.receipt)
    actor.result()
    assert clock.now() - began < 80
