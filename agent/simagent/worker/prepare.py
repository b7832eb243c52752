"""PREPARING: lay the inputs into the task's folder."""

from simagent.domain.keys import ArrayKeys, TaskKeys
from simagent.domain.spec import Spec
from simagent.domain.state import Checkpoint, Output
from simagent.ledger import CorruptError, TooNewError
from simagent.ports.retry import InterruptedRetryError
from simagent.ports.store import NotFoundError
from simagent.telemetry.timeline import Timeline
from simagent.transfer.checkpoint import CheckpointError, find
from simagent.transfer.fetch import Sources, fetch_inputs
from simagent.transfer.outputs import Snapshot, snapshot
from simagent.transfer.removal import remove_tree
from simagent.worker.containers import hand_over
from simagent.worker.context import Context
from simagent.worker.journal import ARTIFACTS, Journal
from simagent.worker.laying import Laying
from simagent.worker.orders import Orders


def prepare(
    ctx: Context,
    spec: Spec,
    journal: Journal,
    orders: Orders,
    *,
    timeline: Timeline,
    checkpoint: Checkpoint | None = None,
) -> None:
    """Lay the inputs, from the start where an earlier try was interrupted, and a checkpoint on top.

    Where the checkpoint cannot be used, the task starts from its inputs. Returns early when the
    task has to end. Raises `simagent.transfer.errors.InputError`, OSError, and `Interrupted` where
    an order came.
    """
    sources = Sources(
        store=ctx.ledger.store,
        keys=_inputs_of(spec, journal.entry.keys),
        resolve_task=lambda task: _output_of(ctx, TaskKeys(journal.entry.project, task)),
        clock=ctx.clock,
        wake=orders.wake,
        limits=ctx.settings.inputs,
        allow_file=ctx.settings.allow_file_inputs,
    )
    laying = Laying(ctx, journal, orders, checkpoint, timeline)
    while not orders.to_end:
        orders.check()
        remove_tree(journal.artifacts)
        journal.artifacts.mkdir(parents=True)
        try:
            laying.fetch()
            timings = fetch_inputs(
                spec.inputs, sources, root=journal.artifacts, scratch=journal.scratch
            )
            laid = laying.lay()
        except InterruptedRetryError:
            orders.wake.clear()
            continue
        except CheckpointError as error:
            laying.give_up(error)
            continue
        for name, timing in timings.items():
            timeline.add(
                name.rpartition(".")[2], timing.seconds, timing.bytes, started=timing.started
            )
        if journal.entry.user is not None:
            hand_over(journal, journal.entry.user)
        # What came with the checkpoint is the task's own work, and published as such.
        inputs = snapshot(journal.base, ARTIFACTS).without(laid)
        inputs.save(journal.inputs)
        if laid and spec.checkpoint is not None:
            found = find(journal.base, inputs, spec.checkpoint.paths, beneath=ARTIFACTS)
            Snapshot(found.marks).save(journal.kept)
        journal.write(prepared=True, attempt=laying.told())
        return


def _inputs_of(spec: Spec, task: TaskKeys) -> TaskKeys | ArrayKeys:
    """Tell whose uploaded inputs a task has: its own, or those of its array."""
    shared = spec.array is not None and spec.array.id
    return ArrayKeys(task.project, shared) if shared else task


def _output_of(ctx: Context, task: TaskKeys) -> Output | None:
    try:
        return ctx.ledger.state(task).output
    except (NotFoundError, CorruptError, TooNewError):
        return None
