"""Whether a task can run on this machine, beside what runs here."""

from collections.abc import Collection

from simagent.domain.spec import Spec
from simagent.worker.capacity import refusal
from simagent.worker.choice import Refusal
from simagent.worker.context import Context
from simagent.worker.slots import Slots


def refuses(ctx: Context, slots: Slots, spec: Spec) -> Refusal | None:
    """Tell why a task cannot run on this machine, None where it can."""
    found = unfit(ctx, spec, slots.machine.gpus)
    if found is None and (lack := slots.lacks(spec)) is not None:
        return Refusal(lack, room=True)
    return found


def unfit(ctx: Context, spec: Spec, gpus: Collection[str] = ()) -> Refusal | None:
    """Tell why a task cannot run on this machine even where nothing else does."""
    return refusal(
        spec,
        runtimes=ctx.runtimes,
        preferred=ctx.settings.containers,
        allow_process=ctx.settings.allow_process,
        launchers=ctx.launchers,
        folder=ctx.journals.root,
        min_free=ctx.settings.min_free,
        tags=ctx.settings.tags,
        gpus=gpus,
        mpi_slots=ctx.settings.mpi_slots,
        mpi_mode=ctx.settings.mpi_mode,
        head=ctx.head,
    )
