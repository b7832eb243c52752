"""How one attempt stands, from what goes on in it."""

from simagent.domain.spec import Spec
from simagent.domain.state import Status
from simagent.ports.clock import Clock
from simagent.telemetry.metrics import Sample
from simagent.worker.journal import Entry
from simagent.worker.lease import Lease
from simagent.worker.snapshot import TaskView
from simagent.worker.steps import Begun


def view_of(
    entry: Entry,
    spec: Spec,
    status: Status,
    *,
    clock: Clock,
    lease: Lease,
    step: Begun | None,
    sample: Sample,
) -> TaskView:
    """Put together what is known of an attempt; ``sample`` is the last one of its metrics."""
    percent, memory = sample.get("task_cpu_percent"), sample.get("task_memory_bytes")
    return TaskView(
        project=entry.project,
        id=entry.task,
        epoch=entry.epoch,
        status=status.value,
        since=entry.attempt.started,
        step=None if step is None else step.number,
        steps=len(spec.commands),
        step_since=None if step is None else step.at,
        slot=entry.share.slot,
        user=None if entry.user is None else entry.user[0],
        runtime=entry.runtime,
        beat=clock.now() - lease.renewed,
        late=lease.late,
        cpu_cores=percent / 100 if isinstance(percent, int | float) else None,
        memory_bytes=memory if isinstance(memory, int) else None,
    )
