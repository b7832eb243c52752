"""The protocol's actors in one thread, each call of theirs a chance for something to go wrong.

They run the worker's and the client's own code; only what an attempt does between its writes
(prepare, run, upload) is left out, and its threads are operations that are interleaved here.
"""

import itertools
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from fakes.clock import FakeClock
from fakes.faults import Fault, Faults
from simagent.domain.mutations import SupersededError
from simagent.domain.reasons import Reason
from simagent.domain.spec import Spec
from simagent.domain.state import Attempt, Output, State, Status
from simagent.ports.clock import Waitable
from simagent.ports.store import NotFoundError, StoreError
from simagent.worker.bells import BellKeeper
from simagent.worker.context import Context
from simagent.worker.endings import Ending
from simagent.worker.holding import Holding
from simagent.worker.journal import Entry, Journal, Journals
from simagent.worker.lease import Lease
from simagent.worker.orders import LeaseLost, Orders


class Crash(BaseException):
    """The process of an actor is gone, as by kill -9 or a power cut."""


@dataclass(frozen=True)
class Op:
    """One whole operation of an actor. ``who`` is an agent or a task, ``how`` a variant."""

    verb: str
    who: int = 0
    how: str = ""

    def __repr__(self) -> str:
        return f"Op({self.verb!r}, {self.who}, {self.how!r})"


@dataclass(frozen=True)
class Trouble:
    """What goes wrong at one call: others act before it, then it fails, or its caller dies."""

    meanwhile: tuple[Op, ...] = ()
    fault: Fault | None = None
    crash: bool = False
    disk_full: bool = False


class ShiftedClock:
    """The one clock, as a machine that booted at another time and is set wrongly reads it."""

    def __init__(self, clock: FakeClock, boot: float, wall: float) -> None:
        self._clock = clock
        self._boot = boot
        self._wall = wall

    def now(self) -> float:
        return self._clock.now() + self._boot

    def wall(self) -> float:
        return self._clock.wall() + self._wall

    def wait(self, timeout: float | None, *sources: Waitable) -> bool:
        return self._clock.wait(timeout, *sources)


class Actor:
    """A process: counts its calls, and what is planned for them comes true."""

    def __init__(
        self,
        clock: FakeClock,
        under_way: list[tuple[float, Callable[[], object]]],
        ended: Callable[[], set[str]],
        act: Callable[[Op], object],
    ) -> None:
        self.faults = Faults(clock, plan=self._plan, before=self.before, under_way=under_way)
        self._ended = ended
        self._act = act
        self.dead = False
        self.busy: list[str] = []
        self.ended_before: set[str] = set()
        self._troubles: Mapping[int, Trouble] = {}
        self._calls = 0
        self._fault: Fault | None = None

    @contextmanager
    def operation(self, verb: str, troubles: Mapping[int, Trouble]) -> Iterator[None]:
        """Do an operation with these troubles, by the number of the call."""
        saved = self._troubles, self._calls, self.ended_before
        self._troubles, self._calls, self.ended_before = troubles, 0, self._ended()
        self.busy.append(verb)
        try:
            yield
        except Crash:
            self.dead = True
        finally:
            self.busy.pop()
            self._troubles, self._calls, self.ended_before = saved

    def before(self, call: str, key: str) -> None:
        """Come before every call; raises `Crash`."""
        trouble = self._troubles.get(self._calls, Trouble())
        self._calls += 1
        for op in trouble.meanwhile:
            self._act(op)
        if trouble.crash:
            self.dead = True
        if self.dead:
            raise Crash
        if trouble.disk_full and call == "journal.create":
            raise OSError("no space left on device")
        self._fault = trouble.fault

    def _plan(self, call: str, key: str) -> Fault | None:
        fault, self._fault = self._fault, None
        return fault


class WatchedJournal(Journal):
    """A journal whose agent may die before or after each write."""

    def __init__(self, folder: Path, entry: Entry, actor: Actor) -> None:
        super().__init__(folder, entry)
        self._actor = actor

    def write(self, **changes: object) -> None:
        self._actor.before("journal.write", self.folder.name)
        super().write(**changes)
        self._actor.before("journal.written", self.folder.name)

    def remove(self) -> None:
        self._actor.before("journal.remove", self.folder.name)
        (self.folder / "journal.json").unlink(missing_ok=True)
        self._actor.before("journal.half-removed", self.folder.name)
        super().remove()


class WatchedJournals(Journals):
    """The journals of an agent that may die at any of them."""

    def __init__(self, state_dir: Path, actor: Actor) -> None:
        super().__init__(state_dir)
        self._actor = actor
        self._half_made = state_dir / "attempts"

    def create(self, entry: Entry) -> Journal:
        try:
            self._actor.before("journal.create", entry.task)
        except Crash:
            (self._half_made / f"{entry.task}.{entry.epoch}").mkdir(exist_ok=True)
            raise
        journal = super().create(entry)
        self._actor.before("journal.created", entry.task)
        return WatchedJournal(journal.folder, journal.entry, self._actor)

    def all(self, *, end: Callable[[Path], None] = lambda _folder: None) -> Iterator[Journal]:
        for journal in super().all(end=end):
            yield WatchedJournal(journal.folder, journal.entry, self._actor)

    def set_aside(self, folder: Path, why: str) -> None:
        self._actor.before("journal.set-aside", folder.name)
        super().set_aside(folder, why)


class Run:
    """What an agent has in its memory about one attempt."""

    def __init__(self, ctx: Context, journal: Journal, state: State, spec: Spec) -> None:
        assert state.lease is not None
        self.journal = journal
        self.spec = spec
        self.task = journal.entry.keys
        self.orders = Orders()
        self.ctx = ctx
        self.bell = BellKeeper(ctx.queue, ctx.clock, ctx.times, self.task, journal.entry.receipt)
        self.holding = Holding(ctx, journal, self.orders, self.bell)
        self.running = state.status is not Status.PREPARING
        self.ending: Ending | None = None
        entry = journal.entry
        if entry.outcome is not None:
            self.ending = Ending(entry.outcome, entry.reason, entry.attempt.message)
        self.fixed = False
        self.lost = False
        self._progress = itertools.count()
        self.lease = Lease(
            ctx.lease_ledger,
            ctx.clock,
            ctx.times,
            task=self.task,
            me=entry.holder,
            beat=state.lease.beat,
            orders=self.orders,
            progress=self.attempt,
            stop_after=None,
        )
        if state.kill is not None:
            self.orders.ask_kill(state.kill)

    def attempt(self) -> Attempt:
        return self.journal.entry.attempt.with_(ran_seconds=float(next(self._progress)))

    def renew(self) -> None:
        """One turn of the lease's thread."""
        if self.lost:
            return
        try:
            self.lease.renew()
        except (SupersededError, NotFoundError) as error:
            self.lost = True
            self.orders.interrupt(LeaseLost(str(error)))
        except StoreError:
            return

    def work(self, how: str) -> bool:
        """One stage of the attempt's thread; True when the attempt is over on this machine."""
        try:
            self.orders.check()
            if self.ending is None:
                return self._run_on(how)
            if not self.fixed:
                self.holding.fix(self.ending, self._final(), "")
                self.fixed = True
                return False
            self._publish(how)
        except LeaseLost as order:
            self.holding.abandon(order)
        return True

    def _run_on(self, how: str) -> bool:
        if how in ("preempted", "lost"):
            reason = Reason.PREEMPTED if how == "preempted" else Reason.SHIM_LOST
            given = self.attempt().with_(reason=reason, ended=self.ctx.clock.wall())
            self.ending = self.holding.give_back(self.spec, given)
            return self.ending is None
        if self.orders.kill is not None:
            self.ending = Ending(Status.KILLED, Reason.KILLED, "killed")
        elif self.running:
            self.ending = {
                "fail": Ending(Status.FAILED, Reason.EXIT_CODE, "it failed"),
                "late": Ending(Status.TIMED_OUT, Reason.TIME_LIMIT, "too long"),
            }.get(how, Ending(Status.SUCCEEDED))
        else:
            self.journal.steps.mkdir(exist_ok=True)
            self.holding.start_running()
            self.running = True
        return False

    def _publish(self, how: str) -> None:
        entry = self.journal.entry
        root = self.task.attempt(entry.epoch)
        store = self.ctx.ledger.store
        attempt = self._final()
        output: Output | None = None
        if how != "lost":
            self.holding.persist(lambda: store.put(root.manifest, b"{}"))
            output = Output(
                epoch=entry.epoch,
                archive=root.output_zip,
                manifest=root.manifest,
                manifest_sha256="",
                files=0,
                bytes=0,
                archive_bytes=0,
            )
        elif attempt.reason is None:
            attempt = attempt.with_(reason=Reason.OUTPUT_FAILED, message="no output")
        self.lease.end_quietly()
        self.holding.end(output, attempt.with_(ended=self.ctx.clock.wall()))

    def _final(self) -> Attempt:
        assert self.ending is not None
        return self.attempt().with_(reason=self.ending.reason, message=self.ending.message)
