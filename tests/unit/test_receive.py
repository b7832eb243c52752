"""RECEIVE and DEAD: what an agent does about a bell, line by line of the protocol."""

import pytest
from structlog.testing import capture_logs

from fakes.clock import FakeClock
from fakes.faults import DROP, UNAVAILABLE, Fault, Faults, FaultyStore, delay
from fakes.store import MemoryStore
from fakes.tasks import beat, place, refusing, watch
from simagent.domain import mutations
from simagent.domain.events import Event
from simagent.domain.keys import TaskKeys
from simagent.domain.reasons import Reason
from simagent.domain.spec import Spec
from simagent.domain.state import State, Status
from simagent.domain.times import Times
from simagent.ledger import CorruptError, Ledger
from simagent.ports.store import StoreError, StoreUnavailableError
from simagent.worker.choice import Refusal
from simagent.worker.receive import Claim, Close, Gone, Hide, Judge

TIMES = Times()
TTL = 60.0
HELD = ["preparing", "running", "finalizing"]


class Fixture:
    """One agent that judges; others act through `good`, whose calls do not fail."""

    def __init__(self, refusal: str | None = None) -> None:
        self.clock = FakeClock()
        self.inner = MemoryStore()
        self.faults = Faults(self.clock)
        self.good = Ledger(self.inner)
        self.ledger = Ledger(FaultyStore(self.inner, self.faults))
        self.judge = Judge(self.ledger, self.clock, TIMES, can_run=refusing(refusal))

    def again(self, task: TaskKeys, seconds: float) -> object:
        """Judge, and judge again that much later."""
        first = self.judge.judge(task)
        assert first == Hide(TIMES.suspect, "held; its holder is watched")
        self.watch(seconds, task)
        return self.judge.judge(task)

    def watch(self, seconds: float, *tasks: TaskKeys) -> None:
        watch(self.clock, self.judge, seconds, *tasks)

    def closed(self, task: TaskKeys, verdict: object) -> State:
        assert isinstance(verdict, Close)
        return self.good.change(task, verdict.change)


def test_a_bell_of_no_task_goes() -> None:
    assert Fixture().judge.judge(TaskKeys("p", "NONE")) == Gone()


@pytest.mark.parametrize(
    "status", ["succeeded", "failed", "killed", "timed_out", "error", "deleted"]
)
def test_a_bell_of_an_ended_task_goes(status: str) -> None:
    it = Fixture()
    assert it.judge.judge(place(it.good, status)) == Gone()


def test_a_submission_under_way_is_left_for_a_minute() -> None:
    it = Fixture()
    verdict = it.judge.judge(place(it.good, "submitted"))
    assert isinstance(verdict, Hide)
    assert verdict.seconds == 60
    assert not verdict.lost


def test_a_queued_task_is_for_the_taking() -> None:
    it = Fixture()
    task = place(it.good, "queued")
    verdict = it.judge.judge(task)
    assert isinstance(verdict, Claim)
    assert (verdict.state, verdict.spec) == (it.good.state(task), it.good.spec(task))
    assert not verdict.lost


def test_judging_changes_nothing() -> None:
    it = Fixture()
    for number, status in enumerate(Status):
        it.judge.judge(place(it.good, status.value, id=f"T{number}"))
    assert {call for call, _ in it.faults.calls} == {"get"}


# --- Cannot run here ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("refusal", "spec", "why"),
    [
        ("no mpirun here", None, "no mpirun here"),
        (None, {"image": "debian", "runtime": "process"}, "runtime: "),
        (None, {"priority": 3}, "priority: "),
    ],
)
def test_a_task_that_cannot_run_here_is_left_to_others(
    refusal: str | None, spec: dict[str, object] | None, why: str
) -> None:
    it = Fixture(refusal)
    task = place(it.good, "queued", spec=spec)
    before = it.good.state(task)
    verdicts = [it.judge.judge(task) for _ in range(20)]
    assert all(isinstance(v, Hide) and v.why.startswith(why) for v in verdicts)
    seconds = [v.seconds for v in verdicts if isinstance(v, Hide)]
    assert 30 <= min(seconds) < max(seconds) <= 60, "with jitter, or all agents come at once"
    assert it.good.state(task) == before


@pytest.mark.parametrize("which", ["state", "spec"])
def test_a_newer_format_is_left_to_newer_agents(which: str) -> None:
    it = Fixture()
    task = place(it.good, "queued")
    it.inner.put(getattr(task, which), b'{"format": 2}')
    verdict = it.judge.judge(task)
    assert isinstance(verdict, Hide)
    assert verdict.why.startswith("agent_too_old: ")
    assert 30 <= verdict.seconds <= 60


def test_a_corrupt_state_is_for_the_dead_letters() -> None:
    it = Fixture()
    task = place(it.good, "queued")
    it.inner.put(task.state, b"{")
    with pytest.raises(CorruptError, match=task.state):
        it.judge.judge(task)


@pytest.mark.parametrize("data", [b"{", b'{"commands": []}', b'{"commands": ["changed"]}'])
def test_a_corrupt_spec_ends_its_task(data: bytes) -> None:
    it = Fixture()
    task = place(it.good, "queued")
    it.inner.put(task.spec, data)
    state = it.closed(task, it.judge.judge(task))
    assert (state.status, state.reason) == (Status.ERROR, Reason.INVALID_SPEC)
    assert task.spec in state.message


def test_a_missing_spec_ends_its_task() -> None:
    it = Fixture()
    task = place(it.good, "queued")
    it.inner.delete(task.spec)
    state = it.closed(task, it.judge.judge(task))
    assert (state.status, state.reason) == (Status.ERROR, Reason.INVALID_SPEC)


def test_limits_used_up_end_a_queued_task() -> None:
    it = Fixture()
    task = place(it.good, "queued", counters={"errors": 3})
    state = it.closed(task, it.judge.judge(task))
    assert (state.status, state.reason) == (Status.ERROR, Reason.AGENT_ERROR)


# --- Held: dead or alive ------------------------------------------------------------------------


@pytest.mark.parametrize("status", HELD)
def test_a_holder_that_is_silent_for_the_ttl_is_dead(status: str) -> None:
    it = Fixture()
    task = place(it.good, status)
    verdict = it.again(task, TTL)
    assert isinstance(verdict, Claim)
    assert verdict.lost
    assert verdict.state == it.good.state(task)


@pytest.mark.parametrize("status", HELD)
def test_a_shorter_silence_proves_nothing(status: str) -> None:
    it = Fixture()
    task = place(it.good, status)
    assert it.again(task, TTL - 0.1) == Hide(TIMES.suspect, "held; its holder is watched")
    it.clock.advance(0.1)
    assert isinstance(it.judge.judge(task), Claim), "the watch goes on from the first look"


@pytest.mark.parametrize("status", HELD)
def test_a_beat_that_moved_shows_life(status: str) -> None:
    it = Fixture()
    task = place(it.good, status)
    it.judge.judge(task)
    it.clock.advance(TTL + 5)
    beat(it.good, task)
    verdict = it.judge.judge(task)
    assert isinstance(verdict, Hide)
    assert verdict.seconds == 15 * 60
    assert it.again(task, TTL - 1) == Hide(TIMES.suspect, "held; its holder is watched")


def test_a_restarted_holder_is_alive() -> None:
    it = Fixture()
    task = place(it.good, "running")
    it.judge.judge(task)
    it.clock.advance(TTL)
    it.good.change(task, lambda s: s.with_(lease=s.lease and s.lease.with_(incarnation="i2")))
    verdict = it.judge.judge(task)
    assert isinstance(verdict, Hide)
    assert verdict.seconds == TIMES.hide_alive


def test_what_others_write_beside_the_beat_is_no_sign_of_life() -> None:
    it = Fixture()
    task = place(it.good, "running")
    it.judge.judge(task)
    it.watch(TTL, task)
    it.good.change(task, lambda s: s.with_(bell_at=5.0))
    assert isinstance(it.judge.judge(task), Claim)


@pytest.mark.parametrize("fault", [UNAVAILABLE, DROP])
def test_a_store_failure_in_between_starts_the_watch_anew(fault: Fault) -> None:
    """Perhaps the holder could not reach the store either: its silence proves nothing."""
    it = Fixture()
    task = place(it.good, "running")
    it.judge.judge(task)
    it.watch(TTL / 2, task)
    it.faults.plan = lambda *_: fault
    with pytest.raises(StoreUnavailableError):
        it.ledger.spec(task)
    it.faults.plan = lambda *_: None
    assert it.again(task, TTL - 1) == Hide(TIMES.suspect, "held; its holder is watched")
    it.clock.advance(1)
    assert isinstance(it.judge.judge(task), Claim)


def test_a_failure_of_the_second_reading_itself_starts_the_watch_anew() -> None:
    it = Fixture()
    task = place(it.good, "running")
    it.judge.judge(task)
    it.clock.advance(TTL)
    it.faults.plan = lambda *_: UNAVAILABLE
    with pytest.raises(StoreError):
        it.judge.judge(task)
    it.faults.plan = lambda *_: None
    assert isinstance(it.again(task, TTL - 1), Hide)


@pytest.mark.parametrize("pause", [2 * TIMES.renew_every + 1, 10_000.0])
def test_a_pause_of_the_watch_starts_it_anew(pause: float) -> None:
    """An outage, or a sleep of this machine, that nobody noticed would look like silence."""
    it = Fixture()
    task = place(it.good, "running")
    it.judge.judge(task)
    it.watch(TTL - 1, task)
    it.clock.advance(pause)
    assert isinstance(it.judge.judge(task), Hide)
    it.watch(TTL - 1, task)
    assert isinstance(it.judge.judge(task), Hide)
    it.clock.advance(1)
    assert isinstance(it.judge.judge(task), Claim)


def test_a_slow_answer_proves_no_longer_silence() -> None:
    it = Fixture()
    task = place(it.good, "running")
    it.judge.judge(task)
    it.clock.advance(TTL - 3)
    it.faults.plan = lambda *_: delay(4.0)
    assert isinstance(it.judge.judge(task), Hide)


def test_jumps_of_the_wall_clock_prove_nothing() -> None:
    it = Fixture()
    task = place(it.good, "running")
    it.judge.judge(task)
    it.clock.jump_wall(86_400)
    assert isinstance(it.judge.judge(task), Hide)
    it.clock.jump_wall(-2 * 86_400)
    it.watch(TTL, task)
    assert isinstance(it.judge.judge(task), Claim)


def test_two_tasks_are_watched_apart() -> None:
    it = Fixture()
    one, other = (place(it.good, "running", id=id_) for id_ in ("A", "B"))
    it.judge.judge(one)
    it.watch(TTL, one)
    assert isinstance(it.judge.judge(other), Hide)
    assert isinstance(it.judge.judge(one), Claim)


def test_a_kill_without_a_live_holder_ends_the_task() -> None:
    it = Fixture()
    task = place(it.good, "running", kill={"by": "u", "at": 1.0})
    state = it.closed(task, it.again(task, TTL))
    assert (state.status, state.reason) == (Status.KILLED, Reason.KILLED)
    assert state.lease is None


def test_a_kill_with_a_live_holder_is_the_holders() -> None:
    it = Fixture()
    task = place(it.good, "running", kill={"by": "u", "at": 1.0})
    it.judge.judge(task)
    it.clock.advance(TTL)
    beat(it.good, task)
    assert isinstance(it.judge.judge(task), Hide)


def test_the_last_loss_ends_the_task() -> None:
    it = Fixture()
    task = place(it.good, "running", counters={"losses": 2})
    state = it.closed(task, it.again(task, TTL))
    assert (state.status, state.reason) == (Status.ERROR, Reason.AGENT_LOST)
    assert state.counters.losses == 3


def test_the_loss_before_the_last_does_not() -> None:
    it = Fixture()
    task = place(it.good, "running", counters={"losses": 1})
    assert isinstance(it.again(task, TTL), Claim)


def test_a_verdict_does_not_outlive_what_it_rests_on() -> None:
    it = Fixture()
    task = place(it.good, "running", kill={"by": "u", "at": 1.0})
    verdict = it.again(task, TTL)
    assert isinstance(verdict, Close)
    beat(it.good, task)
    with pytest.raises(mutations.SupersededError):
        it.good.change(task, verdict.change)


def test_a_dead_holders_task_that_cannot_run_here_is_free_for_others() -> None:
    it = Fixture("not here")
    verdict = it.again(place(it.good, "running"), TTL)
    assert isinstance(verdict, Hide)
    assert verdict.lost


# --- Suspects -----------------------------------------------------------------------------------


def test_a_suspicion_is_logged_once() -> None:
    it = Fixture()
    task = place(it.good, "running")
    with capture_logs() as logs:
        for _ in range(3):
            it.judge.judge(task)
    assert [(line["event"], line["task"], line["epoch"]) for line in logs] == [
        (Event.TASK_SUSPECTED, "T1", 1)
    ]


def test_suspects_are_due_every_renewal_with_their_bells() -> None:
    it = Fixture()
    task = place(it.good, "running")
    it.judge.judge(task, "receipt-1")
    assert it.judge.suspects.due() == []
    it.clock.advance(TIMES.renew_every - 1)
    assert it.judge.suspects.due() == []
    it.clock.advance(1)
    assert it.judge.suspects.due() == [(task, "receipt-1")]
    it.watch(TTL - TIMES.renew_every, task)
    it.judge.judge(task)
    assert it.judge.suspects.due() == [], "judged dead: no longer a suspect"


def test_a_suspects_latest_bell_is_kept() -> None:
    it = Fixture()
    task = place(it.good, "running")
    for receipt in ("receipt-1", "receipt-2", None):
        it.judge.judge(task, receipt)
    it.clock.advance(TIMES.suspect)
    assert it.judge.suspects.due() == [(task, "receipt-2")]


@pytest.mark.parametrize("status", ["submitted", "queued", "succeeded"])
def test_a_task_that_is_no_longer_held_is_no_suspect(status: str) -> None:
    it = Fixture()
    task = place(it.good, "running")
    it.judge.judge(task)
    it.good.change(task, lambda s: s.with_(status=Status(status), lease=None))
    it.judge.judge(task)
    it.clock.advance(TIMES.suspect)
    assert it.judge.suspects.due() == []


def test_what_can_run_here_is_asked_of_the_spec() -> None:
    it = Fixture()
    asked: list[Spec] = []

    def refuse(spec: Spec) -> Refusal:
        asked.append(spec)
        return Refusal("no")

    judge = Judge(it.ledger, it.clock, TIMES, can_run=refuse)
    task = place(it.good, "queued", spec={"name": "n"})
    assert isinstance(judge.judge(task), Hide)
    assert [spec.name for spec in asked] == ["n"]
