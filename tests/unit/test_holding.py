"""The holder's writes: what they wait out, and what they do not."""

import errno
from pathlib import Path

import pytest

from fakes.clock import FakeClock
from fakes.launchers import Launchers
from fakes.queue import MemoryQueue
from fakes.store import MemoryStore
from fakes.tasks import attempt, place
from simagent.domain.times import Times
from simagent.ledger import Ledger
from simagent.ports.store import (
    NotFoundError,
    StoreError,
    StoreRefusedError,
    StoreUnavailableError,
)
from simagent.worker.bells import BellKeeper
from simagent.worker.context import Context, Identity
from simagent.worker.holding import Holding
from simagent.worker.journal import Entry, Journals
from simagent.worker.orders import Detached, LeaseLost, Orders, Partitioned, Preempted

FULL = OSError(errno.ENOSPC, "no space left on device")
REFUSED = StoreRefusedError("read-only file system")
AWAY = StoreUnavailableError("no answer")


class Fixture:
    """A holder, and a call that fails for some time."""

    def __init__(self, folder: Path) -> None:
        self.clock = FakeClock()
        queue = MemoryQueue(self.clock)
        ledger = Ledger(MemoryStore())
        task = place(ledger, "running")
        ctx = Context(
            launchers=Launchers(),
            ledger=ledger,
            lease_ledger=ledger,
            queue=queue,
            clock=self.clock,
            times=Times(),
            identity=Identity(
                agent="holder", incarnation="i1", boot_id="b", version="1", machine={}
            ),
            journals=Journals(folder),
            runtimes={},
        )
        who = {"project": task.project, "task": task.id, "group": "default", "epoch": 1}
        me = {"agent": "holder", "incarnation": "i1", "boot_id": "b", "attempt": attempt()}
        journal = ctx.journals.create(Entry.model_validate(who | me))
        self.orders = Orders()
        bell = BellKeeper(queue, self.clock, Times(), task, None)
        self.holding = Holding(ctx, journal, self.orders, bell)
        self.mended = self.clock.now() + 600.0
        self.calls = 0

    def failing(self, error: Exception) -> str:
        self.calls += 1
        if self.clock.now() < self.mended:
            raise error
        return "done"


@pytest.fixture
def it(tmp_path: Path) -> Fixture:
    return Fixture(tmp_path)


@pytest.mark.parametrize("error", [AWAY, REFUSED, FULL], ids=repr)
def test_what_has_to_be_written_waits_until_it_can_be(it: Fixture, error: Exception) -> None:
    assert it.holding.persist(lambda: it.failing(error)) == "done"
    assert 10 < it.calls < 300, "again and again, and ever more slowly"


@pytest.mark.parametrize("error", [REFUSED, FULL], ids=repr)
def test_what_is_refused_for_good_is_not_waited_for(it: Fixture, error: Exception) -> None:
    with pytest.raises((StoreError, OSError)):
        it.holding.retry(lambda: it.failing(error))
    assert it.calls == 1
    assert it.holding.retry(lambda: it.failing(AWAY)) == "done"


@pytest.mark.parametrize("order", [Detached("stop"), LeaseLost("another's")], ids=repr)
def test_an_order_to_leave_ends_the_waiting(it: Fixture, order: Detached | LeaseLost) -> None:
    it.clock.after(60.0, lambda: it.orders.interrupt(order))
    with pytest.raises(type(order)):
        it.holding.persist(lambda: it.failing(FULL))


def test_a_notice_of_preemption_does_not(it: Fixture) -> None:
    it.clock.after(60.0, lambda: it.orders.interrupt(Preempted("the machine goes away")))
    assert it.holding.persist(lambda: it.failing(REFUSED)) == "done"


def test_an_order_that_is_given_again_and_again_does_not_hurry_the_store(it: Fixture) -> None:
    """So does the lease's thread, at each try to renew."""
    for number in range(600):
        it.clock.after(1.0 * number, lambda: it.orders.interrupt(Partitioned("cut off")))
    assert it.holding.persist(lambda: it.failing(AWAY)) == "done"
    assert it.calls < 400


def test_a_task_that_is_gone_is_lost(it: Fixture) -> None:
    with pytest.raises(LeaseLost):
        it.holding.persist(lambda: it.failing(NotFoundError("no such key")))
