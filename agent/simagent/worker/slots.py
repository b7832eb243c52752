"""The slots of an agent: the attempts that it carries on side by side."""

from dataclasses import dataclass

from simagent.domain.keys import TaskKeys
from simagent.domain.spec import Spec
from simagent.domain.state import State
from simagent.worker.attempt import AttemptRun
from simagent.worker.context import Context
from simagent.worker.journal import Journal
from simagent.worker.orders import Detached, Interrupted
from simagent.worker.threads import CoreThread, Threads


@dataclass(frozen=True, slots=True)
class _Running:
    run: AttemptRun
    thread: CoreThread


class Slots:
    """The attempts of one agent, each with a thread of its own; ``count`` at a time."""

    def __init__(self, ctx: Context, threads: Threads, count: int) -> None:
        self.count = count
        self._ctx = ctx
        self._threads = threads
        self._running: list[_Running] = []

    def __len__(self) -> int:
        return len(self._running)

    @property
    def free(self) -> bool:
        """Whether one more attempt may begin."""
        return len(self._running) < self.count

    def runs(self, task: TaskKeys) -> bool:
        """Tell whether an attempt of a task goes on here."""
        return any(running.run.task == task for running in self._running)

    def start(self, journal: Journal, state: State, spec: Spec) -> None:
        """Carry on an attempt that was claimed, or taken over."""
        run = AttemptRun(self._ctx, self._threads, journal, state, spec)
        thread = self._threads.start(f"attempt {run.task.id}", run.run)
        self._running.append(_Running(run, thread))

    def tidy(self) -> None:
        """Forget the attempts that are over."""
        self._running = [running for running in self._running if not running.thread.ended]

    def keep_bells(self) -> None:
        """Keep the bells of what goes on in flight."""
        for running in self._running:
            running.run.bell.keep()

    def leave(self, order: Interrupted) -> None:
        """Hand an order to the attempts, and give them time to obey."""
        for running in self._running:
            running.run.orders.interrupt(order)
        settings, clock = self._ctx.settings, self._ctx.clock
        detached = isinstance(order, Detached)
        within = settings.stop_within if detached else settings.give_back_within
        deadline = clock.now() + within
        for running in self._running:
            running.thread.join(max(0.0, deadline - clock.now()))
