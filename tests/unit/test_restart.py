"""RESTART: what an agent finds of its attempts, and goes on with, wherever it died."""

from contextlib import suppress
from pathlib import Path

import pytest

from fakes.clock import FakeClock
from fakes.faults import DROP, LOST_ANSWER, Fault, Faults, FaultyQueue, FaultyStore
from fakes.launchers import Launchers
from fakes.queue import MemoryQueue
from fakes.store import MemoryStore
from fakes.tasks import attempt, place
from simagent.domain.keys import TaskKeys
from simagent.domain.times import Times
from simagent.ledger import Ledger
from simagent.worker.context import Context, Identity
from simagent.worker.journal import Entry, Journals
from simagent.worker.recovery import recover


class _Died(BaseException):
    """The agent's process ended here."""


class Machine:
    """A machine on which one agent is started again and again."""

    def __init__(self, folder: Path) -> None:
        self.clock = FakeClock()
        self.store = MemoryStore()
        self.queue = MemoryQueue(self.clock)
        self.faults = Faults(self.clock)
        self.good = Ledger(self.store)
        self._folder = folder

    def start(self, incarnation: str) -> Context:
        ledger = Ledger(FaultyStore(self.store, self.faults))
        return Context(
            launchers=Launchers(),
            ledger=ledger,
            lease_ledger=ledger,
            queue=FaultyQueue(self.queue, self.faults),
            clock=self.clock,
            times=Times(),
            identity=Identity(
                agent="holder", incarnation=incarnation, boot_id="b", version="1", machine={}
            ),
            journals=Journals(self._folder),
            runtimes={},
        )

    def began(self, task: TaskKeys, receipt: str | None = None) -> None:
        """Let incarnation i1 have claimed the task, and begun its steps."""
        entry = Entry(
            project=task.project,
            task=task.id,
            group="default",
            epoch=1,
            agent="holder",
            incarnation="i1",
            receipt=receipt,
            boot_id="b",
            attempt=attempt(),
        )
        Journals(self._folder).create(entry).steps.mkdir()


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def test_a_restart_goes_on_with_its_task(machine: Machine) -> None:
    task = place(machine.good, "running")
    machine.began(task)
    ctx = machine.start("i2")
    (journal,) = ctx.journals.all()
    assert recover(ctx, journal) is not None
    lease = machine.good.state(task).lease
    assert lease is not None
    assert lease.incarnation == "i2"


@pytest.mark.parametrize("fault", [None, LOST_ANSWER])
@pytest.mark.parametrize("calls", range(4))
def test_a_restart_cut_short_anywhere_does_not_lose_the_task(
    machine: Machine, calls: int, fault: Fault | None
) -> None:
    task = place(machine.good, "running")
    machine.began(task)

    def die(call: str, key: str) -> None:
        if len(machine.faults.calls) > calls:
            raise _Died

    ctx = machine.start("i2")
    machine.faults.before = die
    machine.faults.plan = lambda call, key: fault if call == "put" else None
    with suppress(_Died):
        for journal in ctx.journals.all():
            recover(ctx, journal)
    machine.faults.before = machine.faults.plan = lambda call, key: None

    ctx = machine.start("i3")
    (journal,) = ctx.journals.all()
    recovered = recover(ctx, journal)
    assert recovered is not None
    lease = recovered[0].lease
    assert lease is not None
    assert (lease.incarnation, journal.entry.incarnation) == ("i3", "i3")


def test_an_ended_task_is_tidied_also_while_the_queue_does_not_answer(machine: Machine) -> None:
    task = place(machine.good, "succeeded", epoch=1)
    machine.began(task, receipt="r1")
    machine.faults.plan = lambda call, key: _queue_is_down(key)
    ctx = machine.start("i2")
    (journal,) = ctx.journals.all()
    assert recover(ctx, journal) is None
    assert list(ctx.journals.all()) == []


def _queue_is_down(key: str) -> Fault | None:
    return DROP if key == "r1" else None
