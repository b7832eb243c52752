"""CLAIM: take a task, written down before it is done."""

import structlog

from simagent.domain import mutations
from simagent.domain.events import Event
from simagent.domain.keys import TaskKeys
from simagent.domain.mutations import SupersededError
from simagent.domain.state import Attempt, Holder, State, Status, Timing
from simagent.ledger import CorruptError, TooNewError
from simagent.ports.store import NotFoundError, StoreError
from simagent.telemetry.tally import Count
from simagent.worker.choice import choose
from simagent.worker.context import Context
from simagent.worker.journal import Entry, Journal
from simagent.worker.receive import Claim, tell_of_loss
from simagent.worker.shares import Share, alone
from simagent.worker.spanning import choose_hosts, on_hosts

log = structlog.get_logger()


class ClaimUnknownError(StoreError):
    """The claim may or may not have been applied: `settle_intent` of its journal finds out."""

    def __init__(self, journal: Journal, message: str) -> None:
        super().__init__(message)
        self.journal = journal


def claim(
    ctx: Context,
    task: TaskKeys,
    verdict: Claim,
    receipt: str | None,
    share: Share | None = None,
) -> tuple[Journal, State] | None:
    """Take the task as it was judged; None where another was faster.

    ``share`` is what it gets of the machine; by default what it asks for.

    Raises `ClaimUnknownError` where the store does not tell; `NoRuntimeError` where nothing runs
    it any more, and OSError where nothing can be written down: nothing was claimed then.
    """
    runtime = choose(
        verdict.spec,
        ctx.runtimes,
        allow_process=ctx.settings.allow_process,
        preferred=ctx.settings.containers,
        mode=ctx.settings.mpi_mode,
    )
    identity = ctx.identity
    judged = verdict.state.judged
    me = Holder(
        agent=identity.agent, incarnation=identity.incarnation, epoch=verdict.state.epoch + 1
    )
    hosts = choose_hosts(verdict.spec, ctx.head, slots=ctx.settings.mpi_slots, runtime=runtime)
    attempt = _begun(ctx, verdict.state, me)
    given = share or alone(verdict.spec.resources)
    ctx.journals.reserve.fill()
    entry = Entry(
        project=task.project,
        task=task.id,
        group=verdict.spec.group,
        epoch=me.epoch,
        agent=me.agent,
        incarnation=me.incarnation,
        boot_id=identity.boot_id,
        receipt=receipt,
        share=given,
        runtime=runtime,
        # That of an image is known when it is there: it may ask to be run as root.
        user=ctx.settings.users.program(given.slot) if runtime == "process" else None,
        max_log_bytes=ctx.settings.max_log_bytes,
        attempt=attempt,
    )
    journal = ctx.journals.create(on_hosts(entry, hosts, ctx.head))
    try:
        state = ctx.ledger.change(
            task, lambda s: mutations.claim(s, judged=judged, me=me, attempt=attempt)
        )
    except (SupersededError, NotFoundError):
        journal.remove()
        return None
    except (StoreError, CorruptError, TooNewError) as error:
        raise ClaimUnknownError(journal, str(error)) from error
    tell_of_loss(task, state, before=judged.epoch)
    log.info(Event.TASK_CLAIMED, task=task.id, epoch=me.epoch, lost=verdict.lost)
    ctx.tally.add(Count.ATTEMPTS_CLAIMED)
    return journal, state


def _begun(ctx: Context, state: State, me: Holder) -> Attempt:
    return Attempt(
        epoch=me.epoch,
        agent=me.agent,
        version=ctx.identity.version,
        machine=dict(ctx.identity.machine),
        started=ctx.clock.wall(),
        timings=_queue_wait(state, ctx.clock.wall()),
    )


def settle_intent(ctx: Context, journal: Journal) -> State | None:
    """Find out whether a claim was applied, and go on as its holder or drop it (None).

    Raises StoreError while that cannot be known.
    """
    mine = ctx.identity.incarnation
    if journal.entry.incarnation != mine:
        # Written down before it is done: wherever this incarnation dies, the next one knows
        # under which names the lease may be this agent's.
        earlier = (*journal.entry.earlier, journal.entry.incarnation)
        journal.write(incarnation=mine, earlier=earlier)
    entry = journal.entry

    def take_over(state: State) -> State:
        lease = state.lease
        before = lease.incarnation if lease and lease.incarnation in entry.earlier else mine
        return mutations.adopt(state, me=entry.holder, before=before)

    try:
        state = ctx.ledger.change(entry.keys, take_over)
    except (SupersededError, NotFoundError):
        return None
    if entry.earlier:
        journal.write(earlier=())
    return state


def _queue_wait(state: State, now: float) -> dict[str, Timing]:
    """Tell how long the task waited, by the clocks of whoever rang and of this machine."""
    if state.bell_at is None or state.status is not Status.QUEUED:
        return {}
    return {"queue_wait": Timing(seconds=max(0.0, now - state.bell_at), started=state.bell_at)}
