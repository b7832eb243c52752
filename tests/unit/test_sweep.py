"""SWEEP: what is done about tasks that nobody looks after, line by line of the protocol."""

import pytest

from fakes.clock import FakeClock
from fakes.faults import LOST_ANSWER, UNAVAILABLE, Faults, FaultyQueue, FaultyStore
from fakes.queue import MemoryQueue
from fakes.store import MemoryStore
from fakes.tasks import attempt, beat, place, refusing, watch
from simagent.domain import bell, keys
from simagent.domain.keys import TaskKeys
from simagent.domain.reasons import Reason
from simagent.domain.state import Status
from simagent.domain.times import Times
from simagent.ledger import Ledger
from simagent.ports.clock import Wake
from simagent.ports.queue import QueueUnavailableError
from simagent.ports.store import StoreRefusedError, StoreUnavailableError
from simagent.worker.receive import Judge
from simagent.worker.sweep import Sweeper, Swept

TIMES = Times()
TTL = 60.0
DAY = 86_400.0


class Fixture:
    """A group's store and queue, and any number of agents that may sweep it."""

    def __init__(self) -> None:
        self.clock = FakeClock()
        self.store = MemoryStore()
        self.faults = Faults(self.clock)
        self.good = Ledger(self.store)
        self.queue = MemoryQueue(self.clock)
        self.queue_faults = Faults(self.clock)

    def sweeper(self, *, refusal: str | None = None, group: str = "default") -> Sweeper:
        ledger = Ledger(FaultyStore(self.store, self.faults))
        queue = FaultyQueue(self.queue, self.queue_faults)
        judge = self.judge = Judge(ledger, self.clock, TIMES, can_run=refusing(refusal))
        return Sweeper(ledger, queue, self.clock, TIMES, judge, group=group)

    def rung(self) -> list[str]:
        """Take all bells out of the queue and give the tasks they name."""
        found = []
        while (message := self.queue.receive(visibility=60, wait=0, wake=Wake())) is not None:
            found.append(bell.parse(message.body).id)
            self.queue.delete(message.receipt)
        return sorted(found)

    def marked(self, group: str = "default") -> list[str]:
        return [task.id for task in self.good.open_tasks(group, after="", limit=1000)]

    def place(self, status: str, **fields: object) -> TaskKeys:
        """Store a task that was submitted and rung just now."""
        wall = self.clock.wall()
        bell_at = None if status == "submitted" else wall
        times: dict[str, object] = {"submitted_at": wall, "bell_at": bell_at}
        return place(self.good, status, **(times | fields))  # type: ignore[arg-type]


def swept(result: Swept | None) -> Swept:
    assert result is not None
    return result


# --- What is done about each task ---------------------------------------------------------------


@pytest.mark.parametrize(
    "status", ["succeeded", "failed", "killed", "timed_out", "error", "deleted"]
)
def test_the_marker_of_an_ended_task_is_removed(status: str) -> None:
    it = Fixture()
    it.place(status)
    assert swept(it.sweeper().sweep()) == Swept(seen=1, tidied=1)
    assert it.marked() == []
    assert it.rung() == []


def test_a_marker_without_a_state_is_removed_after_a_day() -> None:
    it = Fixture()
    it.good.open_marker("default", TaskKeys("p", "LOST"))
    sweeper = it.sweeper()
    for _ in range(2):
        assert swept(sweeper.sweep()) == Swept(seen=1)
        it.clock.advance(DAY / 2)
    assert swept(sweeper.sweep()) == Swept(seen=1, tidied=1)
    assert it.marked() == []


def test_a_marker_whose_state_comes_late_stays() -> None:
    it = Fixture()
    it.good.open_marker("default", TaskKeys("default", "T1"))
    sweeper = it.sweeper()
    sweeper.sweep()
    it.clock.advance(DAY * 2)
    it.place("submitted")
    sweeper.sweep()
    assert it.marked() == ["T1"]


def test_a_submission_that_never_ends_is_given_up_after_a_week() -> None:
    it = Fixture()
    task = it.place("submitted")
    sweeper = it.sweeper()
    it.clock.advance(7 * DAY)
    assert swept(sweeper.sweep()) == Swept(seen=1)
    it.clock.advance(1)
    assert swept(sweeper.sweep()) == Swept(seen=1, closed=1, tidied=1)
    state = it.good.state(task)
    assert (state.status, state.reason) == (Status.ERROR, Reason.NEVER_QUEUED)
    assert it.marked() == []


def test_a_lost_bell_is_rung_again_and_not_at_every_sweep() -> None:
    it = Fixture()
    task = it.place("queued")
    sweeper = it.sweeper()
    assert swept(sweeper.sweep()) == Swept(seen=1)
    it.clock.advance(TIMES.ring_after)
    assert swept(sweeper.sweep()) == Swept(seen=1, rung=1)
    assert it.rung() == ["T1"]
    assert it.good.state(task).bell_at == it.clock.wall()
    assert swept(sweeper.sweep()) == Swept(seen=1)
    assert it.rung() == []


def test_a_task_that_waits_long_is_rung_ever_more_rarely() -> None:
    """All its bells would pile up in a queue whose agents are busy with other tasks."""
    it = Fixture()
    it.place("queued")
    sweeper = it.sweeper()
    sweeps = int(DAY / 300)
    for _ in range(sweeps):
        sweeper.sweep()
        it.clock.advance(300)
    assert 24 * 3 <= len(it.rung()) <= 24 * 5, "not at each sweep, but never forgotten"


def test_a_task_that_was_given_back_waits_from_then_on() -> None:
    it = Fixture()
    given_back = it.clock.wall() + 5 * 3600
    it.clock.advance(5 * 3600)
    done = attempt(reason="preempted", ended=given_back).model_dump()
    it.place("queued", submitted_at=given_back - 5 * 3600, attempts=[done])
    sweeper = it.sweeper()
    sweeper.sweep()
    it.clock.advance(TIMES.ring_after)
    sweeper.sweep()
    assert it.rung() == ["T1"]


def test_a_bell_that_was_never_rung_is_rung_at_once() -> None:
    it = Fixture()
    it.place("queued", bell_at=None)
    assert swept(it.sweeper().sweep()) == Swept(seen=1, rung=1)
    assert it.rung() == ["T1"]


def test_a_bell_from_a_clock_that_is_ahead_is_rung_again_all_the_same() -> None:
    it = Fixture()
    it.place("queued", bell_at=it.clock.wall() + 10 * DAY)
    sweeper = it.sweeper()
    sweeper.sweep()
    it.clock.advance(3600)
    sweeper.sweep()
    assert it.rung() == ["T1"]


def test_a_bell_that_could_not_be_sent_is_rung_later() -> None:
    it = Fixture()
    it.place("queued", bell_at=None)
    sweeper = it.sweeper()
    it.queue_faults.plan = lambda *_: UNAVAILABLE
    with pytest.raises(QueueUnavailableError):
        sweeper.sweep()
    it.queue_faults.plan = lambda *_: None
    it.clock.advance(TIMES.ring_after)
    sweeper.sweep()
    assert it.rung() == ["T1"]


@pytest.mark.parametrize("status", ["preparing", "running", "finalizing"])
def test_a_dead_holders_task_is_rung(status: str) -> None:
    it = Fixture()
    task = it.place(status)
    before = it.good.state(task)
    sweeper = it.sweeper()
    assert swept(sweeper.sweep()) == Swept(seen=1, held=1)
    watch(it.clock, it.judge, TTL, *(TaskKeys("default", id_) for id_ in it.marked()))
    assert swept(sweeper.sweep()) == Swept(seen=1, rung=1)
    assert it.rung() == ["T1"]
    assert it.good.state(task) == before, "whoever hears the bell claims it, not the sweep"


@pytest.mark.parametrize("spec", [None, {"priority": 3}])
def test_a_dead_holders_task_is_rung_by_agents_that_cannot_run_it(
    spec: dict[str, object] | None,
) -> None:
    it = Fixture()
    it.place("running", spec=spec)
    sweeper = it.sweeper(refusal="not here")
    sweeper.sweep()
    watch(it.clock, it.judge, TTL, *(TaskKeys("default", id_) for id_ in it.marked()))
    assert swept(sweeper.sweep()).rung == 1
    assert it.rung() == ["T1"]


def test_a_live_holders_task_is_left_alone() -> None:
    it = Fixture()
    task = it.place("running")
    sweeper = it.sweeper()
    for _ in range(5):
        assert swept(sweeper.sweep()) == Swept(seen=1, held=1)
        it.clock.advance(TTL)
        beat(it.good, task)
    assert it.rung() == []


@pytest.mark.parametrize(
    ("fields", "status"),
    [
        ({"kill": {"by": "u", "at": 1.0}}, Status.KILLED),
        ({"counters": {"losses": 2}}, Status.ERROR),
    ],
)
def test_what_nobody_may_run_any_more_is_closed(fields: dict[str, object], status: Status) -> None:
    it = Fixture()
    task = it.place("running", **fields)
    sweeper = it.sweeper()
    sweeper.sweep()
    assert it.good.state(task).status is Status.RUNNING
    watch(it.clock, it.judge, TTL, *(TaskKeys("default", id_) for id_ in it.marked()))
    assert swept(sweeper.sweep()) == Swept(seen=1, closed=1, tidied=1)
    assert it.good.state(task).status is status
    assert it.marked() == []
    assert it.rung() == []


def test_what_cannot_be_read_holds_nobody_up() -> None:
    it = Fixture()
    for id_ in ("A", "B", "C", "D"):
        it.place("queued", id=id_, bell_at=None)
    it.store.put(TaskKeys("default", "A").state, b"{")
    it.store.put(TaskKeys("default", "B").state, b'{"format": 2}')
    it.store.put(keys.open_prefix("default") + "C", b"{}")
    it.good.remove_marker("default", TaskKeys("default", "C"))
    assert swept(it.sweeper().sweep()) == Swept(seen=4, rung=1)
    assert it.rung() == ["D"]
    names = it.good.markers("default", after="", limit=9)
    assert names == ["A.default", "B.default", "C", "D.default"], (
        "nothing is discarded that was not understood"
    )


def test_a_task_that_may_not_be_read_holds_nobody_up() -> None:
    it = Fixture()
    for id_ in ("A", "B", "C"):
        it.place("queued", id=id_, bell_at=None)

    def forbid(_call: str, key: str) -> None:
        if key == TaskKeys("default", "A").state:
            raise StoreRefusedError("another key of KMS's")

    it.faults.before = forbid
    with pytest.raises(StoreRefusedError):
        it.sweeper().sweep()
    assert it.rung() == ["B", "C"]


def test_only_the_own_group_is_swept() -> None:
    it = Fixture()
    it.place("queued", id="A", bell_at=None)
    it.place("queued", id="B", group="big", bell_at=None)
    assert swept(it.sweeper(group="big").sweep()).seen == 1
    assert it.rung() == ["B"]


# --- Who sweeps, and how far --------------------------------------------------------------------


def test_of_two_agents_one_sweeps_each_time() -> None:
    it = Fixture()
    it.place("running")
    one, other = it.sweeper(), it.sweeper()
    one.sweep_if_due()
    other.sweep_if_due()
    turns = []
    for _ in range(6):
        it.clock.advance(600)
        turns.append([s.sweep_if_due() is not None for s in (one, other)])
    assert all(sum(turn) == 1 for turn in turns)


def test_when_the_sweeping_agent_is_gone_the_other_takes_over() -> None:
    it = Fixture()
    one, other = it.sweeper(), it.sweeper()
    one.sweep_if_due()
    other.sweep_if_due()
    assert one.sweep_if_due() is None
    assert one.sweep_if_due() is not None


def test_of_two_at_the_same_moment_one_sweeps() -> None:
    it = Fixture()
    it.place("queued", bell_at=None)
    one, other = it.sweeper(), it.sweeper()
    others: list[Swept | None] = []

    def before(call: str, key: str) -> None:
        if call == "put" and key.startswith("sweep/") and not others:
            others.append(None)
            others[0] = other.sweep()

    it.faults.before = before
    assert one.sweep() is None
    assert others == [Swept(seen=1, rung=1)]
    assert it.rung() == ["T1"]


def test_a_sweep_that_is_asked_for_is_done() -> None:
    it = Fixture()
    one, other = it.sweeper(), it.sweeper()
    for sweeper in (one, other, one, other):
        assert sweeper.sweep() is not None


def test_sweeps_come_every_five_to_ten_minutes() -> None:
    it = Fixture()
    sweeper = it.sweeper()
    assert not sweeper.due()
    it.clock.advance(300)
    assert sweeper.due()
    sweeper.sweep_if_due()
    it.clock.advance(299)
    assert not sweeper.due()
    it.clock.advance(301)
    assert sweeper.due()


def test_the_walk_goes_on_where_the_last_one_stopped() -> None:
    it = Fixture()
    ids = [f"T{number:03d}" for number in range(450)]
    for id_ in ids:
        it.good.open_marker("default", TaskKeys("default", id_))
    looked: list[str] = []
    it.faults.before = lambda call, key: looked.append(key) if key.endswith("state.json") else None
    seen = [swept(it.sweeper().sweep()).seen for _ in range(4)]
    assert seen == [200, 200, 50, 200]
    names = [key.split("/")[3] for key in looked]
    assert names == ids + ids[:200]


def test_markers_that_vanish_do_not_send_the_walk_back() -> None:
    it = Fixture()
    for number in range(250):
        it.good.open_marker("default", TaskKeys("default", f"T{number:03d}"))

    def before(call: str, key: str) -> None:
        if call == "get" and key.endswith("/T100"):
            it.store.delete(key)

    it.faults.before = before
    assert [swept(it.sweeper().sweep()).seen for _ in range(2)] == [200, 50]


@pytest.mark.parametrize("body", [b"", b"[]", b'{"round": "x"}', b'{"cursor": 5}', b"[" * 100_000])
def test_a_corrupt_record_of_the_sweep_is_replaced(body: bytes) -> None:
    it = Fixture()
    it.place("queued", bell_at=None)
    it.store.put(keys.sweep("default"), body)
    assert swept(it.sweeper().sweep()).rung == 1
    assert it.sweeper().sweep() is not None


def test_what_newer_agents_wrote_into_the_record_is_kept() -> None:
    it = Fixture()
    it.store.put(keys.sweep("default"), b'{"format": 2, "round": 5, "cursor": "", "who": "x"}')
    it.sweeper().sweep()
    body = it.store.get(keys.sweep("default")).data
    assert b'"who":"x"' in body
    assert b'"format":2' in body


def test_a_turn_whose_answer_was_lost_is_given_up_not_taken_twice() -> None:
    it = Fixture()
    it.place("queued", bell_at=None)
    sweeper = it.sweeper()
    it.faults.plan = lambda call, key: LOST_ANSWER if key.startswith("sweep/") else None
    with pytest.raises(StoreUnavailableError):
        sweeper.sweep_if_due()
    it.faults.plan = lambda *_: None
    sweeper.sweep_if_due()
    assert sweeper.sweep_if_due() is not None
    assert it.rung() == ["T1"]


def test_a_task_that_somebody_else_sees_to_just_now_is_left_to_them() -> None:
    it = Fixture()
    task = it.place("running", id="A", kill={"by": "u", "at": 1.0})
    it.place("queued", id="B", bell_at=None)
    sweeper = it.sweeper()
    sweeper.sweep()
    it.clock.advance(TTL)

    def before(call: str, key: str) -> None:
        if call == "put" and key == task.state:
            beat(it.good, task)

    it.faults.before = before
    result = swept(sweeper.sweep())
    assert (result.seen, result.closed) == (2, 0)
    assert it.good.state(task).status is Status.RUNNING


def test_a_walk_sees_all_tasks_wherever_the_agents_are_in_theirs() -> None:
    it = Fixture()
    for number in range(450):
        it.good.open_marker("default", TaskKeys("default", f"T{number:03d}"))
    it.place("queued", id="A", bell_at=None)
    it.sweeper().sweep()
    it.rung()
    turn = it.store.get(keys.sweep("default"))
    it.place("queued", id="B", bell_at=None)
    assert it.sweeper().walk() == Swept(seen=452, rung=1)
    assert it.rung() == ["B"]
    assert it.store.get(keys.sweep("default")) == turn
