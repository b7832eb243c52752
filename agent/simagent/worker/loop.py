"""The agent's main loop: recovers, receives bells, starts attempts, keeps house."""

import threading
from functools import partial

import structlog

from simagent.domain.events import Event
from simagent.domain.keys import TaskKeys
from simagent.ports.clock import Wake
from simagent.ports.queue import QueueError
from simagent.ports.store import StoreError
from simagent.worker.capacity import short_of_space
from simagent.worker.companions import caretaker_of, start_companions
from simagent.worker.context import Context
from simagent.worker.drain import DrainFile
from simagent.worker.endoflife import EXIT, NO_END, End, EndOfLife, Terms
from simagent.worker.health import Health
from simagent.worker.heartbeat import Doing, Heart
from simagent.worker.housekeeping import House
from simagent.worker.newer import left_behind
from simagent.worker.notify import Notifier
from simagent.worker.observing import Observer
from simagent.worker.orders import Detached, Interrupted, Preempted, TakenAway
from simagent.worker.queueing import Line
from simagent.worker.receive import Judge
from simagent.worker.reception import Reception
from simagent.worker.refusals import Refusals
from simagent.worker.refusing import refuses
from simagent.worker.slots import Slots
from simagent.worker.snapshot import Snapshot, stage_of
from simagent.worker.threads import Threads
from simagent.worker.trial import Trial

_TICK = 10.0
_EMPTY_WAIT = 0.2
_TAKE_UP_EVERY = 0.5
_HELPERS_WITHIN = 1.0

log = structlog.get_logger()


class Agent:
    """One agent: takes tasks of its group, a few at a time, until it is told to stop."""

    def __init__(
        self,
        ctx: Context,
        *,
        slots: int = 1,
        until_empty: bool = False,
        only: TaskKeys | None = None,
        drain: DrainFile | None = None,
        in_fleet: bool = False,
        terms: Terms = NO_END,
        end: End = EXIT,
        trial: Trial | None = None,
    ) -> None:
        """``only`` takes one task alone; ``in_fleet`` shows the agent to the others of its group.

        Those show that they live, and together end what none of them can run. ``end`` is what is
        done where the agent ends by its ``terms``, ``trial`` what goes before tasks on its hosts.
        """
        self._ctx = ctx
        self._until_empty = until_empty
        # Suspects are to be read about every `renew_every`; a longer pause begins their watch anew.
        self._tick = min(_TICK, ctx.times.renew_every, ctx.times.heartbeat_every)
        self._only = only
        self._drain_file = drain
        self.wake = Wake()
        self._ended = Wake()
        self._draining = False
        self._order: Interrupted | None = None
        self._lock = threading.RLock()
        self._threads = Threads(self.wake)
        self._unsettled, self._newer = left_behind(ctx)
        self._slots = Slots(
            ctx, self._threads, slots, self._unsettled, self.poke, others=self._newer
        )
        self._line = Line(ctx.clock, ctx.times)
        self._heart = Heart(ctx, self._doing) if in_fleet else None
        self._store = Health(
            ctx.clock, lost=Event.STORE_LOST, back=Event.STORE_BACK, doubt=ctx.doubt
        )
        self._queue = Health(ctx.clock, lost=Event.QUEUE_LOST, back=Event.QUEUE_BACK)
        self._reception, self._house = self._make_house(Refusals(ctx) if in_fleet else None)
        self._notifier = Notifier()
        self._caretaker = caretaker_of(ctx)
        self._observer = Observer(ctx, self._slots, self._unsettled)
        self._trial = trial
        if trial is not None:
            trial.changed = self.poke
        self._life = EndOfLife(terms, end, ctx.clock, partial(self._threads.start, "end"))

    def _make_house(self, refusals: Refusals | None) -> tuple[Reception, House]:
        ctx = self._ctx
        judge = Judge(
            ctx.ledger,
            ctx.clock,
            ctx.times,
            can_run=partial(refuses, ctx, self._slots),
            of_newer=self._newer.has,
        )
        reception = Reception(
            ctx,
            judge,
            self._slots.start,
            self._unsettled.append,
            refusals,
            share=self._slots.share,
            line=self._line,
        )
        house = House(
            ctx,
            judge,
            reception,
            slots=self._slots,
            line=self._line,
            refusals=refusals,
            unsettled=self._unsettled,
            newer=self._newer,
            store=self._store,
            queue=self._queue,
        )
        return reception, house

    # --- Asked for from outside, also by signal handlers --------------------------------------

    def drain(self) -> None:
        """Take no more tasks; `run` returns when those that run have ended."""
        self._draining = True
        self.poke()

    def interrupt(self, order: Interrupted) -> None:
        """Take no more tasks and end the running attempts as the order says."""
        if isinstance(order, Preempted):
            self._slots.interrupt(order)  # at once: the loop may be waiting for the store
        with self._lock:
            if order.outweighs(self._order):
                self._order = order
        self._draining = True  # only now, or an idle agent would end as one that was drained
        self.poke()

    def snapshot(self) -> Snapshot:
        """Tell how it stands. Any thread may ask; nothing is waited for."""
        stage = stage_of(
            self._order,
            draining=self._closing,
            store_fails=self._store.failing,
            queue_fails=self._queue.failing,
        )
        order = () if self._order is None else (str(self._order),)
        notices = (*order, *self._newer.notices)
        role = "agent" if self._only is None else "run"
        return self._observer.look(stage, role=role, text=self._status(), notices=notices)

    @property
    def taken_away(self) -> bool:
        """Whether it ends because the cloud takes the machine."""
        return isinstance(self._order, TakenAway)

    def poke(self) -> None:
        """Look at everything again at once, and show others what goes on. Any thread may call."""
        self.wake.set()
        if self._heart is not None:
            self._heart.change()

    # --- The loop -----------------------------------------------------------------------------

    def run(self) -> None:
        """Run until told to stop, or until there is nothing to do where that was asked for.

        Raises the error of a thread that died of one: the agent cannot be relied on any more.
        """
        identity = self._ctx.identity
        log.info(
            Event.AGENT_STARTED,
            agent=identity.agent,
            incarnation=identity.incarnation,
            version=identity.version,
            limits=identity.machine.get("limits"),
        )
        self._notifier.ready()
        helpers = start_companions(
            self._ctx,
            self._threads,
            self._ended,
            drain=self._drain_file,
            heart=self._heart,
            caretaker=self._caretaker,
            changed=self.poke,
            leave=self.interrupt,
        )
        try:
            while not self._turn():
                self._notifier.alive()
            if self._drain_file is not None and self._order is None:
                self._drain_file.withdraw()
            for helper in (self._heart, self._ctx.head) if self._order is None else ():
                if helper is not None:
                    helper.over = True
        finally:
            self._ended.set()
            self._leave()
            if self._drain_file is not None and isinstance(self._order, Preempted):
                self._drain_file.withdraw()
            for thread in helpers:
                thread.join(_HELPERS_WITHIN)

    @property
    def _closing(self) -> bool:
        """Whether no more tasks are taken."""
        return self._told_to_drain or self._life.closing

    @property
    def _told_to_drain(self) -> bool:
        asked = self._drain_file is not None and self._only is None and self._drain_file.asked
        return self._draining or asked

    def _turn(self) -> bool:
        """Do what is due, then wait for the next thing; True when there is nothing left to do."""
        self.wake.clear()
        self._observer.turn()
        self._slots.tidy()
        if self._threads.error is not None:
            raise self._threads.error
        self._slots.keep_bells()
        if self._order is not None:
            return self._may_leave(self._order)
        self._house.keep(self._takes, closing=self._closing)
        busy = bool(self._slots or self._unsettled)
        fetches = self._caretaker is not None and not self._caretaker.settled
        tries = self._trial is not None and self._trial.first
        order = self._life.look(busy=busy or bool(self._newer), wanted=fetches or tries)
        if order is not None:
            self._slots.give_back(order)
        self._notifier.status(self._status())
        if self._closing:
            if self._life.over or (self._told_to_drain and not busy):
                return True
            self._wait(self._tick)
            return False
        if self._only is not None:
            return self._take_only(self._only)
        if not (self._slots.free and self._line.hears) or self._tries():
            self._wait(self._tick)
            return False
        if self._take_next(busy=busy) or not self._until_empty or busy:
            return False
        return self._house.is_empty()

    def _status(self) -> str:
        """Tell people how it is, in a line."""
        parts = [f"{self._slots.busy} of {self._slots.count} slots busy"]
        if self._closing:
            parts = [f"draining, {len(self._slots)} tasks run"]
        elif self._ctx.head is not None:
            parts.append(self._ctx.head.status)
            if self._trial is not None and self._trial.runs:
                parts.append("MPI is tried on them")
        if self._newer:
            parts.append(f"{len(self._newer)} tasks of a newer version")
        settings = self._ctx.settings
        lack = short_of_space(self._ctx.journals.root, settings.min_free)
        troubles = (self._store.trouble, self._queue.trouble, lack)
        return "; ".join(filter(None, (*parts, self._life.status, *troubles)))

    def _takes(self, task: TaskKeys) -> bool:
        """Tell whether a task would be taken that asks for no more than there is."""
        wanted = self._only in (None, task) and self._line.kept_for() in (None, task)
        return wanted and self._slots.free and not self._closing and not self._tries()

    def _tries(self) -> bool:
        """Tell whether MPI is tried, or about to be: tasks wait for that."""
        return self._trial is not None and self._trial.holds(free=self._slots.free)

    def _may_leave(self, order: Interrupted) -> bool:
        """Tell whether there is nothing left to do but to obey an order."""
        if not isinstance(order, Preempted) or self._house.take_up():
            return True
        if order.until is not None and self._ctx.clock.now() >= order.until:
            return True
        self._ctx.clock.wait(_TAKE_UP_EVERY)  # not for what wakes the loop: it is awake
        return False

    def _take_only(self, task: TaskKeys) -> bool:
        """Run the one task, beside what an earlier agent left; True when it has ended."""
        if self._slots.runs(task):
            self._wait(self._tick)
            return False
        if self._store.paused:
            self._wait(self._store.pause_left)
            return False
        with self._store.watch(StoreError):
            state = self._ctx.ledger.state(task)
            if state.terminal:
                return True
            self._reception.reconsider(task, None)
            if not self._slots.runs(task):
                self._wait(self._ctx.settings.looks.attended)
        return False

    def _take_next(self, *, busy: bool) -> bool:
        """Receive a bell and do what it asks for; False when none came."""
        if self._queue.paused or self._store.paused:
            self._wait(max(self._queue.pause_left, self._store.pause_left))
            return True
        message = None
        wait = _EMPTY_WAIT if self._until_empty and not busy else self._pause
        with self._queue.watch(QueueError):
            message = self._ctx.queue.receive(
                visibility=self._ctx.times.bell_visibility, wait=wait, wake=self.wake
            )
        if message is None:
            return self.wake.is_set()
        with self._queue.watch(QueueError), self._store.watch(StoreError):
            if self._tries():  # hosts came while it was waited for
                self._ctx.queue.hide(message.receipt, 0.0)
            else:
                self._reception.hear(message)
        return True

    def _wait(self, seconds: float) -> None:
        if self._store.paused:
            seconds = min(seconds, self._store.pause_left)
        self._ctx.clock.wait(min(seconds, self._pause), self.wake)

    @property
    def _pause(self) -> float:
        """Seconds after which something may be due though nothing happens."""
        return min(self._tick, self._life.left)

    # --- Attempts -----------------------------------------------------------------------------

    def _doing(self) -> Doing:
        slots = self._slots
        free = max(0, slots.count - slots.busy)
        return Doing(slots=slots.count, free=free, draining=self._closing, tasks=slots.tasks())

    def _leave(self) -> None:
        """Hand the standing order to the running attempts and give them time to obey."""
        order = self._order or Detached("the agent stops")
        now = self._ctx.clock.now()
        self._notifier.stopping(0.0 if order.until is None else order.until - now)
        if self._trial is not None:
            self._trial.stop()
        self._slots.leave(order)
        if self._trial is not None:
            self._trial.join()
        log.info(Event.AGENT_STOPPED, reason=str(order))
