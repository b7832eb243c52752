"""How an agent learns that somebody attends to an attempt, and what looking for it costs."""

from collections import Counter
from pathlib import Path

import pytest

from fakes.clock import FakeClock
from fakes.faults import UNAVAILABLE, Faults, FaultyStore
from fakes.store import MemoryStore
from fakes.tasks import place
from simagent.client.attention import Attention
from simagent.domain import mutations
from simagent.domain.live import Request
from simagent.ledger import Ledger
from simagent.ports.store import NotFoundError
from simagent.worker.control import LOCAL_LOOKS, REMOTE_LOOKS, Control, Looks
from simagent.worker.live import LiveFiles
from simagent.worker.orders import Orders


class Fixture:
    """A running attempt's control thread, whose work is done by `run_for`."""

    def __init__(self, folder: Path, looks: Looks = REMOTE_LOOKS) -> None:
        self.clock = FakeClock()
        self.store = MemoryStore()
        self.faults = Faults(self.clock)
        self.good = Ledger(self.store)
        self.task = place(self.good, "running")
        self.orders = Orders()
        self.followed: list[tuple[float, float]] = []
        self.kept_alive = 0
        ledger = Ledger(FaultyStore(self.store, self.faults))
        self.control = Control(
            ledger,
            self.clock,
            task=self.task,
            orders=self.orders,
            live=LiveFiles(ledger.store, self.clock, task=self.task, epoch=1, root=folder),
            looks=looks,
            follow=lambda until: self.followed.append((self.clock.now(), until)),
            keep_alive=self.keep_alive,
        )

    def keep_alive(self) -> None:
        self.kept_alive += 1

    def attend(self) -> None:
        Attention(self.store, self.clock, self.task).call()

    def run_for(self, seconds: float) -> None:
        self.clock.after(seconds, self.control.stop)
        self.control.run()

    def calls(self) -> Counter[str]:
        return Counter(call for call, _ in self.faults.calls)


@pytest.fixture
def it(tmp_path: Path) -> Fixture:
    return Fixture(tmp_path)


def test_an_attempt_that_nobody_attends_to_costs_one_small_read_every_five_seconds(
    it: Fixture,
) -> None:
    it.run_for(3600.5)
    assert it.calls() == {"get": 720, "scan": 1}  # the listing is that of the end
    assert {key for call, key in it.faults.calls if call == "get"} == {it.task.control}
    assert it.followed == []
    assert it.kept_alive >= 3600 / 35


def test_a_follower_is_seen_within_five_seconds_and_for_thirty(it: Fixture) -> None:
    begin = it.clock.now()
    it.clock.after(11, it.attend)
    it.run_for(60)
    ((seen, until),) = it.followed
    assert 11 <= seen - begin <= 16
    assert until == seen + 30


def test_no_follower_is_lost_among_several_that_write_over_each_other(it: Fixture) -> None:
    for at in range(1, 120, 10):  # each renews, whoever wrote last
        it.clock.after(at, it.attend)
        it.clock.after(at + 0.5, it.attend)
    it.run_for(130)
    gaps = [
        after[0] - before[1] for before, after in zip(it.followed, it.followed[1:], strict=False)
    ]
    assert it.followed[0][0] <= 1_006
    assert max(gaps) < 0  # attended to without a gap
    assert it.followed[-1][1] >= 1_000 + 111 + 30


def test_an_attempt_that_is_attended_to_is_looked_at_every_second(it: Fixture) -> None:
    it.attend()
    it.run_for(30)
    assert 20 <= sum(key == it.task.control for _, key in it.faults.calls) <= 30


def test_what_was_asked_before_the_agent_came_is_answered(it: Fixture) -> None:
    it.store.put(it.task.request("R1"), Request(op="list").encode())
    it.attend()
    it.run_for(6)
    # What is left at the attempt's end is removed.
    assert ("put", it.task.answer("R1")) in it.faults.calls


def test_a_request_is_answered_within_five_seconds_and_listed_for_only_once(it: Fixture) -> None:
    def ask() -> None:
        it.store.put(it.task.request("R1"), Request(op="list").encode())
        it.attend()

    answered: list[float] = []
    it.faults.before = lambda call, key: (
        answered.append(it.clock.now()) if key == it.task.answer("R1") and call == "put" else None
    )
    it.clock.after(6, ask)
    it.run_for(40)
    assert 1_006 <= answered[0] <= 1_011
    assert it.calls()["scan"] == 2  # and that of the end


def test_an_answer_that_is_put_off_is_given_soon_after_there_is_something_new(
    it: Fixture, tmp_path: Path
) -> None:
    it.store.put(it.task.request("R1"), Request(op="read", path="later", wait=20.0).encode())
    it.attend()
    answered: list[float] = []
    it.faults.before = lambda call, key: (
        answered.append(it.clock.now()) if key == it.task.answer("R1") and call == "put" else None
    )
    it.clock.after(10, lambda: (tmp_path / "later").write_text("now"))
    it.run_for(20)
    assert 1_010 <= answered[0] <= 1_011.5
    assert it.calls()["scan"] == 2
    reads = [key for call, key in it.faults.calls if call == "get" and "control/" in key]
    assert reads == [it.task.request("R1")]


def test_a_kill_that_is_told_is_noticed_within_five_seconds(it: Fixture) -> None:
    def kill() -> None:
        it.good.change(it.task, lambda s: mutations.kill(s, by="me", at=0.0, grace=None))
        it.attend()

    it.clock.after(6, kill)
    it.run_for(11)
    assert it.orders.kill is not None


def test_what_failed_while_it_was_looked_at_is_done_at_the_next_look(it: Fixture) -> None:
    it.store.put(it.task.request("R1"), Request(op="list").encode())
    it.attend()
    it.faults.plan = lambda call, _key: (
        UNAVAILABLE if call == "scan" and it.clock.now() < 1_012 else None
    )
    it.run_for(15)
    assert ("put", it.task.answer("R1")) in it.faults.calls


def test_an_outage_ends_nothing(it: Fixture) -> None:
    it.faults.plan = lambda *_: UNAVAILABLE
    it.run_for(30)
    with pytest.raises(NotFoundError):
        it.store.get(it.task.control)


def test_on_a_store_of_this_machine_a_request_is_seen_at_once(tmp_path: Path) -> None:
    it = Fixture(tmp_path, LOCAL_LOOKS)
    it.store.put(it.task.request("R1"), Request(op="list").encode())
    it.attend()
    it.run_for(0.5)
    assert ("put", it.task.answer("R1")) in it.faults.calls
