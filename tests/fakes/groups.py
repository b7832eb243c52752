"""Agents of one group that say of every task that they can run it, or cannot."""

from pathlib import Path

from fakes.clock import FakeClock
from fakes.faults import Faults, FaultyStore
from fakes.launchers import Launchers
from fakes.model import ShiftedClock
from fakes.queue import MemoryQueue
from fakes.store import MemoryStore
from fakes.tasks import refusing
from simagent.client import Tasks
from simagent.domain.keys import TaskKeys
from simagent.domain.state import State
from simagent.domain.times import Times
from simagent.ledger import Ledger
from simagent.worker.context import Context, Identity, Settings
from simagent.worker.heartbeat import Heart
from simagent.worker.journal import Journals
from simagent.worker.receive import Judge
from simagent.worker.reception import Reception
from simagent.worker.refusals import Refusals
from simagent.worker.sweep import Sweeper

TIMES = Times()


class Member:
    """An agent of the group: what its main loop does about refused tasks, and its heartbeat."""

    def __init__(self, it: "Group", name: str, why: str | None, *, lasting: bool) -> None:
        self._it = it
        self.name = name
        self.started: list[object] = []
        self.faults = Faults(it.clock)
        self.alive = True
        self._starts = 0
        # No two machines agree on the time, or since when they run.
        number = len(it.members)
        self.wall_shift = -3600.0 * number
        self._clock = ShiftedClock(it.clock, 1e5 * number, self.wall_shift)
        self.start(why, lasting=lasting)

    def start(self, why: str | None, *, lasting: bool = True, group: str = "default") -> None:
        """Begin a new incarnation."""
        self._starts += 1
        self.why, self.lasting = why, lasting
        self.began = self._it.clock.now()
        it = self._it
        ledger = Ledger(FaultyStore(it.store, self.faults))
        incarnation = f"{self.name}.{self._starts}"
        ctx = Context(
            launchers=Launchers(),
            ledger=ledger,
            lease_ledger=ledger,
            queue=it.queue,
            clock=self._clock,
            times=TIMES,
            identity=Identity(
                agent=self.name,
                incarnation=incarnation,
                boot_id="b",
                version="1",
                machine={"cpus": 2, "hostname": "h"},
            ),
            journals=Journals(it.folder / self.name),
            runtimes={},
            settings=Settings(group=group),
        )
        self.judge = Judge(ledger, ctx.clock, TIMES, can_run=refusing(why, lasting=lasting))
        self.heart = Heart(ctx)
        self.refusals = Refusals(ctx)
        self.reception = Reception(
            ctx, self.judge, lambda *it: self.started.append(it), lambda _: None, self.refusals
        )
        self.sweeper = Sweeper(
            ledger,
            it.queue,
            ctx.clock,
            TIMES,
            self.judge,
            group=group,
            refusals=self.refusals,
        )
        self.heart.beat()

    def tend(self) -> None:
        """Do what is due without any bell."""
        if self.alive:
            self.heart.beat()
            self.refusals.watch()

    def hear(self, task: TaskKeys) -> None:
        self.reception.reconsider(task, None)


class Group:
    """Agents that share a store."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.clock = FakeClock()
        self.offset = self.clock.wall() - self.clock.now()
        self.store = MemoryStore()
        self.queue = MemoryQueue(self.clock)
        self.ledger = Ledger(self.store)
        self.client = Tasks(self.ledger, lambda _: self.queue, self.clock, project="default")
        self.members: list[Member] = []

    def join(self, name: str, why: str | None, *, lasting: bool = True) -> Member:
        member = Member(self, name, why, lasting=lasting)
        self.members.append(member)
        return member

    def pass_(self, seconds: float) -> None:
        """Let time pass, in which the agents that live beat and look."""
        for _ in range(round(seconds / 30.0)):
            self.clock.advance(30.0)
            for member in self.members:
                member.tend()

    def until_ended(self, task: TaskKeys, *hearers: Member, within: float) -> State:
        """Let agents hear a task's bell every half minute, until it has ended."""
        for _ in range(round(within / 30.0)):
            for member in hearers:
                member.hear(task)
            if self.state(task).terminal:
                break
            self.pass_(30.0)
        return self.state(task)

    def state(self, task: TaskKeys) -> State:
        return self.ledger.state(task)

    def refused(self, task: TaskKeys) -> list[str]:
        return [entry.key for entry in self.store.scan(task.refusals)]
