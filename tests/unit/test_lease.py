"""RENEW: how a holder shows that it lives, through whatever the store does."""

import pytest
from structlog.testing import capture_logs

from fakes.clock import FakeClock
from fakes.faults import DROP, LOST_ANSWER, UNAVAILABLE, Faults, FaultyStore, delay
from fakes.store import MemoryStore
from fakes.tasks import HOLDER, attempt, place
from simagent.domain import mutations
from simagent.domain.events import Event
from simagent.domain.state import State, Status, StepRecord
from simagent.domain.times import Times
from simagent.ledger import Ledger
from simagent.ports.store import StoreUnavailableError
from simagent.worker.lease import Lease
from simagent.worker.orders import LeaseLost, Orders, Partitioned

TIMES = Times()


class Fixture:
    """A held task and its lease, whose thread's work is done by `run_for`."""

    def __init__(self, *, stop_after: float | None = None) -> None:
        self.clock = FakeClock()
        self.store = MemoryStore()
        self.faults = Faults(self.clock)
        self.good = Ledger(self.store)
        self.task = place(self.good, "running")
        self.orders = Orders()
        self.progress = attempt()
        self.lease = Lease(
            Ledger(FaultyStore(self.store, self.faults)),
            self.clock,
            TIMES,
            task=self.task,
            me=HOLDER,
            beat=0,
            orders=self.orders,
            progress=lambda: self.progress,
            stop_after=stop_after,
        )

    def run_for(self, seconds: float) -> None:
        self.clock.after(seconds, self.lease.stop)
        self.lease.run()

    def state(self) -> State:
        return self.good.state(self.task)

    def beat(self) -> int:
        lease = self.state().lease
        assert lease is not None
        return lease.beat

    def outage(self, begin: float, end: float) -> None:
        """Let the store be away between two points of time, counted from now."""
        start = self.clock.now()
        self.faults.plan = lambda *_: (
            UNAVAILABLE if begin <= self.clock.now() - start < end else None
        )

    def claimed_by_another(self) -> None:
        me = HOLDER.model_copy(update={"agent": "other", "epoch": 2})
        judged = self.state().judged
        self.good.change(
            self.task,
            lambda s: mutations.claim(s, judged=judged, me=me, attempt=attempt(2, agent="other")),
        )


def test_the_beat_moves_every_fifteen_seconds() -> None:
    it = Fixture()
    it.run_for(61)
    assert it.beat() == 4
    assert it.orders.interrupted is None


def test_renewing_tells_how_far_the_attempt_has_come() -> None:
    it = Fixture()
    step = StepRecord(number=0, argv=("true",), exit_code=0)
    it.clock.after(20, lambda: setattr(it, "progress", attempt(steps=(step,))))
    it.run_for(31)
    assert it.state().attempts == (attempt(steps=(step,)),)


def test_a_kill_is_noticed_by_the_next_renewal() -> None:
    it = Fixture()
    it.clock.after(
        20,
        lambda: it.good.change(it.task, lambda s: mutations.kill(s, by="me", at=1.0, grace=3.0)),
    )
    it.run_for(29)
    assert it.orders.kill is None
    again = Fixture()
    again.good.change(again.task, lambda s: mutations.kill(s, by="me", at=1.0, grace=3.0))
    again.run_for(16)
    assert again.orders.kill is not None
    assert (again.orders.kill.by, again.orders.kill.grace) == ("me", 3.0)
    assert again.orders.wake.is_set()
    assert again.orders.interrupted is None


def test_an_outage_stops_nothing_and_is_over_soon_after_its_end() -> None:
    it = Fixture()
    it.outage(10, 3600)
    with capture_logs() as logs:
        it.run_for(3610)
    assert it.orders.interrupted is None
    assert it.beat() > 0
    late = [line for line in logs if line["event"] == Event.LEASE_LATE]
    assert len(late) == 1, "told once, not at each of a thousand tries"
    assert set(Event.LEASE_LATE.fields) <= set(late[0])


def test_each_outage_is_told_anew() -> None:
    it = Fixture()
    start = it.clock.now()
    it.faults.plan = lambda *_: UNAVAILABLE if (it.clock.now() - start) % 200 > 100 else None
    with capture_logs() as logs:
        it.run_for(400)
    assert [line["event"] for line in logs] == [Event.LEASE_LATE] * 2


def test_while_the_store_is_away_it_is_tried_every_few_seconds() -> None:
    it = Fixture()
    it.outage(0, 100)
    it.run_for(100)
    tries = len(it.faults.calls)
    assert 85 / 5 <= tries <= 85 / 2 + 1


def test_timeouts_are_waited_for_once() -> None:
    it = Fixture()
    it.faults.plan = lambda *_: DROP
    it.run_for(60)
    assert len(it.faults.calls) >= 45 / 7
    assert it.orders.interrupted is None


def test_a_task_with_outside_effects_stops_when_its_lease_lapses_and_not_before() -> None:
    it = Fixture(stop_after=TIMES.lease_ttl)
    it.outage(1, 10_000)
    it.run_for(59)
    assert it.orders.interrupted is None
    later = Fixture(stop_after=TIMES.lease_ttl)
    later.outage(1, 10_000)
    later.run_for(64)
    assert isinstance(later.orders.interrupted, Partitioned)


def test_the_lapse_counts_from_when_a_renewal_was_asked_for() -> None:
    """Others may have seen its beat long before its answer came."""
    it = Fixture(stop_after=TIMES.lease_ttl)
    it.faults.plan = lambda call, key: delay(20.0) if call == "put" else None
    it.lease.renew()
    it.faults.plan = lambda *_: UNAVAILABLE
    it.clock.advance(TIMES.lease_ttl - 20.0 - TIMES.renew_every)
    it.run_for(TIMES.renew_every + 1)
    assert isinstance(it.orders.interrupted, Partitioned)


def test_the_lapse_counts_from_the_last_renewal() -> None:
    it = Fixture(stop_after=TIMES.lease_ttl)
    it.outage(50, 104)
    it.run_for(200)
    assert it.orders.interrupted is None


def test_a_lapsed_lease_that_nobody_claimed_is_just_renewed() -> None:
    it = Fixture()
    it.outage(0, 500)
    it.run_for(510)
    state = it.state()
    assert (state.status, state.epoch) == (Status.RUNNING, 1)
    assert it.beat() > 0


def test_a_claim_by_another_is_the_end() -> None:
    it = Fixture()
    it.clock.after(20, it.claimed_by_another)
    it.lease.run()
    assert isinstance(it.orders.interrupted, LeaseLost)
    assert it.orders.wake.is_set()
    assert it.state().lease is not None
    assert it.state().epoch == 2


def test_a_claim_during_an_outage_is_found_after_it() -> None:
    it = Fixture()
    it.outage(0, 100)
    it.clock.after(70, it.claimed_by_another)
    it.lease.run()
    assert isinstance(it.orders.interrupted, LeaseLost)


def test_a_deleted_task_is_the_end() -> None:
    it = Fixture()
    it.clock.after(20, lambda: it.store.delete(it.task.state))
    it.lease.run()
    assert isinstance(it.orders.interrupted, LeaseLost)


def test_an_unreadable_state_is_no_proof_of_a_loss() -> None:
    it = Fixture()
    good = it.store.get(it.task.state).data
    it.clock.after(10, lambda: it.store.put(it.task.state, b"{"))
    it.clock.after(40, lambda: it.store.put(it.task.state, good))
    it.run_for(60)
    assert it.orders.interrupted is None
    assert it.beat() >= 1


def test_the_own_end_of_the_task_is_no_loss() -> None:
    it = Fixture()
    it.lease.end_quietly()
    it.clock.after(
        20, lambda: it.good.change(it.task, lambda s: s.with_(status=Status.FAILED, lease=None))
    )
    it.lease.run()
    assert it.orders.interrupted is None


def test_a_renewal_whose_answer_was_lost_is_followed_by_one_that_shows() -> None:
    """Else an observer would see no beat move between the lost answer and the next renewal."""
    it = Fixture()
    faults = iter([None, LOST_ANSWER, UNAVAILABLE])
    it.faults.plan = lambda *_: next(faults, None)
    with pytest.raises(StoreUnavailableError):
        it.lease.renew()
    assert it.beat() == 1
    it.lease.renew()
    assert it.beat() == 2


def test_a_renewal_gives_the_state_it_wrote() -> None:
    it = Fixture()
    assert it.lease.renew() == it.state()


def test_a_renewal_is_one_write_while_nobody_else_writes() -> None:
    it = Fixture()
    it.run_for(61)
    assert [call for call, _ in it.faults.calls] == ["get", "put", "put", "put", "put"]


def test_what_others_wrote_between_two_renewals_is_seen_and_kept() -> None:
    it = Fixture()
    it.clock.after(
        20, lambda: it.good.change(it.task, lambda s: s.with_(stderr_tail="by another thread"))
    )
    it.run_for(61)
    assert it.beat() == 4
    assert it.state().stderr_tail == "by another thread"
    assert [call for call, _ in it.faults.calls] == [
        "get",
        "put",
        "put",
        "get",
        "put",
        "put",
        "put",
    ]


def test_a_renewal_whose_answer_was_lost_counts_once_and_is_gone_on_from() -> None:
    it = Fixture()
    it.faults.plan = lambda call, _key: LOST_ANSWER if call == "put" else None
    it.run_for(100)
    state = it.state()
    assert state.lease is not None
    assert state.lease.beat == sum(call == "put" for call, _ in it.faults.calls)
    assert it.orders.interrupted is None
