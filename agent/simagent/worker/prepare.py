"""PREPARING: lay the inputs into the task's folder."""

from simagent.domain.keys import TaskKeys
from simagent.domain.spec import Spec
from simagent.domain.state import Output
from simagent.ledger import CorruptError, TooNewError
from simagent.ports.retry import InterruptedRetryError
from simagent.ports.store import NotFoundError
from simagent.telemetry.timeline import Timeline
from simagent.transfer.fetch import Sources, fetch_inputs
from simagent.transfer.outputs import snapshot
from simagent.transfer.removal import remove_tree
from simagent.worker.containers import hand_over
from simagent.worker.context import Context
from simagent.worker.journal import ARTIFACTS, Journal
from simagent.worker.orders import Orders


def prepare(
    ctx: Context, spec: Spec, journal: Journal, orders: Orders, *, timeline: Timeline
) -> None:
    """Lay the inputs, from the start where an earlier try was interrupted.

    Returns early when the task has to end. Raises `simagent.transfer.errors.InputError`, OSError,
    and `Interrupted` where an order came.
    """
    sources = Sources(
        store=ctx.ledger.store,
        keys=journal.entry.keys,
        resolve_task=lambda task: _output_of(ctx, TaskKeys(journal.entry.project, task)),
        clock=ctx.clock,
        wake=orders.wake,
        limits=ctx.settings.inputs,
        allow_file=ctx.settings.allow_file_inputs,
    )
    while not orders.to_end:
        orders.check()
        remove_tree(journal.artifacts)
        journal.artifacts.mkdir(parents=True)
        try:
            timings = fetch_inputs(
                spec.inputs, sources, root=journal.artifacts, scratch=journal.scratch
            )
        except InterruptedRetryError:
            orders.wake.clear()
            continue
        for name, timing in timings.items():
            timeline.add(
                name.rpartition(".")[2], timing.seconds, timing.bytes, started=timing.started
            )
        if journal.entry.user is not None:
            hand_over(journal, journal.entry.user)
        snapshot(journal.folder, ARTIFACTS).save(journal.inputs)
        journal.write(prepared=True)
        return


def _output_of(ctx: Context, task: TaskKeys) -> Output | None:
    try:
        return ctx.ledger.state(task).output
    except (NotFoundError, CorruptError, TooNewError):
        return None
