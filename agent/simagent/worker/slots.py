"""The slots of an agent: the attempts that it carries on side by side, and what each was given."""

import threading
from collections.abc import Callable, Iterator, Sequence, Sized
from dataclasses import dataclass

from simagent.domain.fleet import Carried
from simagent.domain.keys import TaskKeys
from simagent.domain.spec import Spec
from simagent.domain.state import State
from simagent.worker.attempt import AttemptRun
from simagent.worker.context import Context
from simagent.worker.disk import used_bytes
from simagent.worker.journal import Journal
from simagent.worker.orders import Detached, Interrupted, Preempted
from simagent.worker.shares import Share, lacks, share, this_machine
from simagent.worker.snapshot import TaskView
from simagent.worker.threads import CoreThread, Threads


@dataclass(frozen=True, slots=True)
class _Running:
    run: AttemptRun
    thread: CoreThread
    journal: Journal

    @property
    def takes_room(self) -> bool:
        """Whether it may run commands, and so has its share of the machine."""
        return not (self.run.finalizing or self.thread.ended)


class Slots:
    """The attempts of one agent, each with a thread of its own; ``count`` may run commands.

    One whose commands are over packs and uploads beside them. At most as many do that as there are
    slots, or no more is begun. ``unsettled`` are journals that may turn out to be attempts.
    """

    def __init__(
        self,
        ctx: Context,
        threads: Threads,
        count: int,
        unsettled: Sequence[Journal],
        changed: Callable[[], None],
        *,
        others: Sized = (),
    ) -> None:
        """``changed`` is called by any thread when there is something new about what goes on.

        ``others`` are attempts that are not looked after, and take a slot each.
        """
        self.count = count
        self.machine = this_machine(ctx.settings.gpus, agent=ctx.identity.agent)
        self._ctx = ctx
        self._threads = threads
        self._unsettled = unsettled
        self._changed = changed
        self._others = others
        self._running: list[_Running] = []
        self._order: Interrupted | None = None
        self._lock = threading.RLock()
        self._started = 0

    def __len__(self) -> int:
        return len(self._running)

    @property
    def busy(self) -> int:
        """How many slots are taken."""
        return len(list(self._taken())) + len(self._others)

    @property
    def free(self) -> bool:
        """Whether one more attempt may begin."""
        everything = len(self._running) + len(self._unsettled)
        return self.busy < self.count and everything < 2 * self.count

    @property
    def ended(self) -> int:
        """How many attempts have made room so far."""
        return self._started - sum(running.takes_room for running in self._running)

    def runs(self, task: TaskKeys) -> bool:
        """Tell whether an attempt of a task goes on here."""
        return any(running.run.task == task for running in self._running)

    def tasks(self) -> tuple[Carried, ...]:
        """Tell what goes on here. Any thread may ask."""
        return tuple(
            Carried(
                project=running.run.task.project,
                id=running.run.task.id,
                epoch=running.journal.entry.epoch,
                status=running.run.status,
                since=running.journal.entry.attempt.started,
            )
            for running in self._running
            if not running.thread.ended
        )

    def views(self) -> tuple[TaskView, ...]:
        """Tell how each of them stands. Any thread may ask."""
        return tuple(running.run.view() for running in self._running if not running.thread.ended)

    # --- What of the machine is taken ---------------------------------------------------------

    def lacks(self, spec: Spec) -> str | None:
        """Tell what a task would lack beside what runs here; None where there is room for it."""
        asked = spec.resources
        room = 0 if asked.disk is None else self._room()
        return lacks(asked, self.machine, self.count, self._shares(), room=room)

    def share(self, spec: Spec) -> Share:
        """Give a task its share of the machine."""
        return share(spec.resources, self.machine, self.count, self._shares())

    def _shares(self) -> list[Share]:
        return [journal.entry.share for journal in self._taken()]

    def _taken(self) -> Iterator[Journal]:
        """Yield the journals of what may run commands."""
        yield from (running.journal for running in self._running if running.takes_room)
        yield from (journal for journal in self._unsettled if journal.entry.outcome is None)

    def _room(self) -> int:
        """Tell what of the disk is free, and not promised to what runs."""
        promised = 0
        for journal in self._taken():
            asked = journal.entry.share.disk
            if asked is not None:
                promised += max(0, asked - used_bytes(journal.folder)[0])
        free = self._ctx.free_bytes(self._ctx.journals.root)
        return free - self._ctx.settings.min_free - promised

    # --- The attempts -------------------------------------------------------------------------

    def start(self, journal: Journal, state: State, spec: Spec) -> None:
        """Carry on an attempt that was claimed, or taken over."""
        run = AttemptRun(
            self._ctx,
            self._threads,
            journal,
            state,
            spec,
            changed=self._changed,
            yields=lambda: any(r.takes_room for r in self._running if r.run is not run),
        )
        thread = self._threads.start(f"attempt {run.task.id}", run.run)
        self._running.append(_Running(run, thread, journal))
        if self._order is not None:
            run.interrupt(self._order)
        self._started += 1
        self._changed()

    def tidy(self) -> None:
        """Forget the attempts that are over."""
        left = [running for running in self._running if not running.thread.ended]
        if len(left) < len(self._running):
            self._running = left
            self._changed()

    def keep_bells(self) -> None:
        """Keep the bells of what goes on in flight."""
        for running in self._running:
            running.run.bell.keep()

    def give_back(self, order: Preempted) -> None:
        """Have all that runs given back, while the agent goes on; returns at once."""
        self._bound(order)
        for running in self._running:
            running.run.interrupt(order)

    def interrupt(self, order: Interrupted) -> None:
        """Hand an order to the attempts, also to those that begin later; returns at once.

        Any thread may call it.
        """
        self._bound(order)
        with self._lock:
            if order.outweighs(self._order):
                self._order = order
        for running in list(self._running):
            running.run.interrupt(order)

    def leave(self, order: Interrupted) -> None:
        """Hand an order to the attempts, and give them time to obey."""
        self.interrupt(order)
        clock = self._ctx.clock
        deadline = order.until or clock.now() + self._ctx.settings.stop_within
        for running in self._running:
            running.thread.join(max(0.0, deadline - clock.now()))
        if isinstance(order, Preempted) and all(r.thread.ended for r in self._running):
            order.over()

    def _bound(self, order: Interrupted) -> None:
        """Set an end to the giving back of tasks: each part of that takes its share of the time."""
        if order.until is None and not isinstance(order, Detached):
            order.until = self._ctx.clock.now() + self._ctx.settings.give_back_within
