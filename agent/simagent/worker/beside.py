"""What goes on beside the work of an attempt, each part in a thread of its own."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from simagent.domain.spec import Spec
from simagent.domain.state import Attempt, State
from simagent.worker.checkpoints import open_checkpoints
from simagent.worker.context import Context
from simagent.worker.control import Control
from simagent.worker.diskwatch import DiskWatch
from simagent.worker.journal import Journal
from simagent.worker.lease import Lease
from simagent.worker.live import LiveFiles
from simagent.worker.orders import Orders
from simagent.worker.span import keep_alive
from simagent.worker.steps import StepRunner
from simagent.worker.syncing import Syncing
from simagent.worker.telemetry import Telemetry
from simagent.worker.threads import Threads

_JOINED_WITHIN = 10.0


class Beside:
    """The lease, what is asked of the task, its telemetry, checkpoints and files, and the disk."""

    def __init__(
        self,
        ctx: Context,
        journal: Journal,
        state: State,
        spec: Spec,
        *,
        threads: Threads,
        orders: Orders,
        steps: StepRunner,
        progress: Callable[[], Attempt],
    ) -> None:
        """``progress`` gives what is to be told of the attempt so far."""
        assert state.lease is not None
        self._ctx = ctx
        self._threads = threads
        self._journal = journal
        self._orders = orders
        self._task = journal.entry.keys
        self.telemetry = Telemetry(ctx, journal, steps.pids, threads.crashed, others=steps.samples)
        self.lease = Lease(
            ctx.lease_ledger,
            ctx.clock,
            ctx.times,
            task=self._task,
            me=journal.entry.holder,
            beat=state.lease.beat,
            orders=orders,
            progress=progress,
            stop_after=_stop_after(ctx, spec),
            tally=ctx.tally,
        )
        self.checkpoints = open_checkpoints(
            ctx, spec, journal, orders, state.checkpoint, signal=steps.signal
        )
        if self.checkpoints is not None:
            steps.save = self.checkpoints.save
        self._syncing = Syncing(ctx, spec, journal, threads)

    @contextmanager
    def going(self) -> Iterator[None]:
        """Let all of it go on within the block."""
        control, disk = self._control(), self._disk()
        threads = [
            self._threads.start(f"lease {self._task.id}", self.lease.run),
            self._threads.start(f"control {self._task.id}", control.run),
            self._threads.start(f"disk {self._task.id}", disk.run),
        ]
        if self.checkpoints is not None:
            self.checkpoints.start(self._threads)
        self.telemetry.start()
        try:
            yield
        finally:
            control.stop()
            disk.stop()
            self.settle(0.0)
            self.lease.stop()
            self.telemetry.stop(0.0, final=False)
            for thread in threads:
                thread.join(_JOINED_WITHIN)

    def settle(self, within: float) -> None:
        """Begin no more of what reads the attempt's files; wait so many seconds for what does."""
        self._syncing.stop(within)
        if self.checkpoints is not None:
            self.checkpoints.stop(within)

    def _control(self) -> Control:
        ledger, clock, journal = self._ctx.ledger, self._ctx.clock, self._journal
        return Control(
            ledger,
            clock,
            task=self._task,
            orders=self._orders,
            live=LiveFiles(
                ledger.store,
                clock,
                task=self._task,
                epoch=journal.entry.epoch,
                root=journal.artifacts,
                syncs=self._syncing,
            ),
            looks=self._ctx.settings.looks,
            follow=self.telemetry.follow,
            keep_alive=lambda: keep_alive(self._ctx, journal),
        )

    def _disk(self) -> DiskWatch:
        give_way = self.checkpoints.make_room if self.checkpoints is not None else lambda: None
        return DiskWatch(self._ctx, self._journal, self._orders, make_room=give_way)


def _stop_after(ctx: Context, spec: Spec) -> float | None:
    """Tell when an outage ends the steps: early enough for them to be gone at the TTL."""
    if spec.on_partition != "stop":
        return None
    times = ctx.times
    return max(2 * times.renew_every, times.lease_ttl - spec.grace - times.renew_every)
