"""Laying a checkpoint back: what an earlier attempt left goes over the inputs of this one."""

from collections.abc import Iterable
from functools import partial

import structlog

from simagent.domain.events import Event
from simagent.domain.keys import TaskKeys
from simagent.domain.state import Attempt, Checkpoint
from simagent.ports.retry import InterruptedRetryError, Retry, retrying
from simagent.telemetry.timeline import Timeline
from simagent.transfer.checkpoint import CheckpointError, fetch, lay
from simagent.worker.context import Context
from simagent.worker.journal import Journal
from simagent.worker.orders import Orders

log = structlog.get_logger()


class Laying:
    """The checkpoint that an attempt is to go on from, as long as it can be used."""

    def __init__(
        self,
        ctx: Context,
        journal: Journal,
        orders: Orders,
        checkpoint: Checkpoint | None,
        timeline: Timeline,
    ) -> None:
        self._ctx = ctx
        self._journal = journal
        self._orders = orders
        self._checkpoint = checkpoint
        self._timeline = timeline
        self._archive = journal.scratch / "checkpoint.part"
        self._fetched = False
        self._note = ""

    def fetch(self) -> None:
        """Bring the set here and verify it, before anything is laid that it goes over.

        Raises `CheckpointError`, `InterruptedRetryError`, StoreErrors and OSError.
        """
        if self._checkpoint is None or self._fetched:
            return
        began, wall = self._ctx.clock.now(), self._ctx.clock.wall()
        self._journal.scratch.mkdir(exist_ok=True)
        store = self._ctx.ledger.store
        retry: Retry = partial(retrying, clock=self._ctx.clock, wake=self._orders.wake)
        fetch(store, self._checkpoint, self._archive, retry=retry, check=self._check)
        seconds = self._ctx.clock.now() - began
        self._timeline.add("checkpoint", seconds, self._checkpoint.archive_bytes, started=wall)
        self._fetched = True

    def lay(self) -> frozenset[str]:
        """Lay it over what is there, and give the paths that came with it.

        Raises `CheckpointError`, OSError.
        """
        if self._checkpoint is None:
            return frozenset()
        laid = lay(self._archive, self._checkpoint, self._journal.artifacts)
        self._archive.unlink()
        entry = self._journal.entry
        log.info(
            Event.CHECKPOINT_LAID,
            task=entry.task,
            epoch=entry.epoch,
            of=self._checkpoint.epoch,
            files=self._checkpoint.files,
            bytes=self._checkpoint.bytes,
        )
        return laid

    def give_up(self, error: CheckpointError) -> None:
        """Start from the inputs instead."""
        entry = self._journal.entry
        log.warning(Event.CHECKPOINT_LOST, task=entry.task, epoch=entry.epoch, error=str(error))
        self._note = f"started from the inputs: checkpoint {error}"
        self._checkpoint = None
        self._archive.unlink(missing_ok=True)

    def told(self) -> Attempt:
        """Tell of it in the attempt's record."""
        of = None if self._checkpoint is None else self._checkpoint.epoch
        return self._journal.entry.attempt.with_(restart=of, note=self._note)

    def _check(self) -> None:
        if self._ctx.clock.wait(0, self._orders.wake):
            raise InterruptedRetryError("laying the checkpoint was interrupted")


def remove_checkpoints(
    ctx: Context, task: TaskKeys, epochs: Iterable[int], *, but: str | None = None
) -> None:
    """Remove the sets that attempts have stored, but for one. Raises StoreError."""
    for epoch in epochs:
        for found in list(ctx.ledger.store.scan(task.attempt(epoch).checkpoints)):
            if found.key != but:
                ctx.ledger.store.delete(found.key)


def forget_checkpoints(ctx: Context, journal: Journal) -> None:
    """Remove the sets of a task that has succeeded. Raises StoreError."""
    entry = journal.entry
    of = entry.attempt.restart
    if journal.kept.exists() or of is not None:
        remove_checkpoints(ctx, entry.keys, {entry.epoch, of or entry.epoch})
