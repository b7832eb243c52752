"""RESTART: read the journals of the last incarnation and go on where it stopped."""

import os
from pathlib import Path

import structlog

from simagent.domain.events import Event
from simagent.domain.reasons import Reason
from simagent.domain.spec import Spec
from simagent.domain.state import State, Status
from simagent.ledger import CorruptError, TooNewError
from simagent.ports.queue import QueueError
from simagent.ports.runtime import RuntimeFailedError, StepPlan
from simagent.ports.store import NotFoundError
from simagent.telemetry.tally import Count
from simagent.worker.bells import BellKeeper
from simagent.worker.claim import settle_intent
from simagent.worker.context import Context
from simagent.worker.gathering import scatter
from simagent.worker.journal import Journal, steps_folder
from simagent.worker.laying import forget_checkpoints
from simagent.worker.orders import Orders
from simagent.worker.span import end_doors

_GRACE = 5.0
_WAIT = 20.0
_SHARE_TO_STOP = 1 / 3  # of the time left, where the machine goes away

log = structlog.get_logger()


def recover(ctx: Context, journal: Journal) -> tuple[State, Spec] | None:
    """Go on with the attempt of a journal, or clean up after it (None).

    Raises StoreError while its fate cannot be known; nothing was changed then.
    """
    entry = journal.entry
    if entry.agent != ctx.identity.agent:  # the disk of another machine was cloned
        stop_leftovers(ctx, journal.folder)
        ctx.journals.set_aside(journal.folder, f"it is of another agent, {entry.agent}")
        return None
    if entry.trial:
        stop_leftovers(ctx, journal.folder)
        scatter(ctx, entry)
        journal.remove()
        return None
    try:
        state = settle_intent(ctx, journal)
        if state is not None:
            spec = ctx.ledger.spec(entry.keys)
            log.info(Event.TASK_ADOPTED, task=entry.task, epoch=entry.epoch)
            ctx.tally.add(Count.ATTEMPTS_ADOPTED)
            return state, spec
        _clean_up(ctx, journal)
    except (CorruptError, TooNewError) as error:
        stop_leftovers(ctx, journal.folder)
        scatter(ctx, entry)
        ctx.journals.set_aside(journal.folder, str(error))
    return None


def _clean_up(ctx: Context, journal: Journal) -> None:
    """Deal with an attempt that is no longer, or never was, this agent's."""
    entry = journal.entry
    stop_leftovers(ctx, journal.folder)
    scatter(ctx, entry)
    try:
        state = ctx.ledger.state(entry.keys)
    except NotFoundError:
        state = None
    if state is None or (state.terminal and state.epoch == entry.epoch):
        if state is not None and state.status is Status.SUCCEEDED:
            forget_checkpoints(ctx, journal)
        ctx.ledger.remove_marker(entry.group, entry.keys)
        bell = BellKeeper(ctx.queue, ctx.clock, ctx.times, entry.keys, entry.receipt)
        try:
            bell.silence()
        except QueueError as error:
            log.debug("bell not deleted", task=entry.task, error=str(error))
        journal.remove()
    elif journal.steps.exists():
        log.warning(Event.LEASE_LOST, task=entry.task, epoch=entry.epoch)
        ctx.tally.add(Count.LEASES_LOST)
        ctx.journals.set_aside(journal.folder, f"{Reason.AGENT_LOST}: the task went on elsewhere")
    else:
        journal.remove()  # an intent that was never applied, or nothing was begun


def stop_leftovers(ctx: Context, folder: Path, orders: Orders | None = None) -> None:
    """End what an attempt still runs, here and on other hosts, by its folder alone.

    It takes no more than a share of the time that the attempt's ``orders`` leave.
    """
    started = ctx.clock.now()

    def time_for(most: float) -> float:
        if orders is None:
            return most
        spent = ctx.clock.now() - started
        return max(0.0, orders.time_for(most + spent, started, _SHARE_TO_STOP) - spent)

    steps = steps_folder(folder)
    for number in range(len(list(steps.glob("step-*.json")))):
        nothing = Path(os.devnull)
        plan = StepPlan(
            folder=steps, number=number, argv=(), cwd=folder, stdout=nothing, stderr=nothing
        )
        for runtime in ctx.runtimes.values():
            try:
                step = runtime.attach(plan)
            except RuntimeFailedError as error:
                log.warning("leftovers not found", folder=str(folder), error=str(error))
                continue
            if step is not None and step.wait(0.0) is None:
                step.stop(time_for(_GRACE))
                step.wait(time_for(_WAIT))
    try:
        end_doors(ctx, folder, time_for)
    except RuntimeFailedError as error:
        log.warning("leftovers not found", folder=str(folder), error=str(error))
