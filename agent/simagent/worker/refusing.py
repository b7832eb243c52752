"""Whether a task can run on this machine, beside what runs here."""

from simagent.domain.spec import Spec
from simagent.worker.capacity import refusal
from simagent.worker.choice import Refusal
from simagent.worker.context import Context
from simagent.worker.slots import Slots


def refuses(ctx: Context, slots: Slots, spec: Spec) -> Refusal | None:
    """Tell why a task cannot run on this machine, None where it can."""
    found = refusal(
        spec,
        runtimes=ctx.runtimes,
        preferred=ctx.settings.containers,
        allow_process=ctx.settings.allow_process,
        launchers=ctx.launchers,
        folder=ctx.journals.root,
        min_free=ctx.settings.min_free,
        tags=ctx.settings.tags,
        gpus=slots.machine.gpus,
        mpi_slots=ctx.settings.mpi_slots,
        mpi_mode=ctx.settings.mpi_mode,
        head=ctx.head,
    )
    if found is None and (lack := slots.lacks(spec)) is not None:
        return Refusal(lack, room=True)
    return found
