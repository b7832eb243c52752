"""The protocol's changes of state.json, each a pure function with its precondition.

A function returns the changed state; the very same object where nothing is to be written because
the change is already there (its own earlier write, whose answer was lost); and raises
`SupersededError` where the precondition does not hold. Which write wins is decided by the store's
compare-and-swap, see `simagent.ledger`.
"""

from simagent.domain.reasons import Reason
from simagent.domain.spec import Spec
from simagent.domain.state import (
    HELD,
    MAX_ATTEMPT_RECORDS,
    OUTCOMES,
    Attempt,
    Checkpoint,
    Counters,
    Holder,
    Judged,
    Kill,
    Lease,
    Output,
    State,
    Status,
)


class SupersededError(Exception):
    """The change's precondition does not hold (any more)."""


def _require(condition: bool, why: str) -> None:
    if not condition:
        raise SupersededError(why)


def is_mine(state: State, me: Holder) -> bool:
    """Tell whether ``me`` holds the task: the precondition of every write by a holder."""
    lease = state.lease
    return (
        state.status in HELD
        and state.epoch == me.epoch
        and lease is not None
        and lease.agent == me.agent
        and lease.incarnation == me.incarnation
    )


def _require_mine(state: State, me: Holder) -> None:
    _require(
        is_mine(state, me),
        f"epoch {me.epoch} of {me.agent} does not hold the task: it is {state.status} "
        f"at epoch {state.epoch}",
    )


def limits_used(state: State, spec: Spec, *, lost: bool) -> bool:
    """Tell whether no further attempt is allowed, ``lost`` adding one for a dead holder."""
    counters = _counted(state, lost=lost)
    failures = counters.losses + counters.errors
    return failures >= spec.max_attempts or counters.preemptions > spec.max_preemptions


def _counted(state: State, *, lost: bool) -> Counters:
    """Count a dead holder: as preempted where it had time to say so, and none to give back."""
    counters = state.counters
    if not lost:
        return counters
    if _was_preempted(state):
        return counters.with_(preemptions=counters.preemptions + 1)
    return counters.with_(losses=counters.losses + 1)


def _was_preempted(state: State) -> bool:
    last = state.attempts[-1] if state.attempts else None
    return last is not None and last.ended is None and last.reason is Reason.PREEMPTED


def _with_attempt(state: State, attempt: Attempt) -> tuple[Attempt, ...]:
    others = tuple(a for a in state.attempts if a.epoch != attempt.epoch)
    return (*others, attempt)[-MAX_ATTEMPT_RECORDS:]


def _close_lost_attempt(state: State) -> tuple[Attempt, ...]:
    if not state.attempts or state.attempts[-1].ended is not None or state.lease is None:
        return state.attempts
    silent = f"agent {state.lease.agent} fell silent"
    if _was_preempted(state):
        silent = f"{state.attempts[-1].message}; {silent} before it had given the task back"
    reason = Reason.PREEMPTED if _was_preempted(state) else Reason.AGENT_LOST
    lost = state.attempts[-1].with_(reason=reason, message=silent)
    return (*state.attempts[:-1], lost)


# --- The client's -------------------------------------------------------------------------------


def mark_queued(state: State, *, bell_at: float) -> State:
    """Complete a submission: `submitted` → `queued`."""
    if state.status is not Status.SUBMITTED:
        return state
    return state.with_(status=Status.QUEUED, bell_at=bell_at)


def kill(state: State, *, by: str, at: float, grace: float | None) -> State:
    """Ask for the end: at once where nobody runs it, else by its holder. The first wish stands."""
    if state.terminal:
        return state
    wish = state.kill or Kill(by=by, at=at, grace=grace)
    if state.status in HELD:
        return state if state.kill else state.with_(kill=wish)
    return state.with_(
        status=Status.KILLED,
        kill=wish,
        outcome=Status.KILLED,
        reason=Reason.KILLED,
        message=f"killed by {wish.by} before it started",
        ended_at=at,
    )


def delete(state: State, *, at: float) -> State:
    """Turn an ended task into its tombstone."""
    if state.status is Status.DELETED:
        return state
    _require(state.terminal, f"the task is {state.status}: only ended tasks can be deleted")
    return state.with_(
        status=Status.DELETED, output=None, checkpoint=None, stderr_tail="", ended_at=at
    )


# --- Anybody's, about a task without a live holder ----------------------------------------------


def claim(state: State, *, judged: Judged, me: Holder, attempt: Attempt) -> State:
    """Take the task: a new epoch, the lease, `preparing`; counts the loss of a dead holder."""
    if is_mine(state, me):
        return state
    _require(state.judged == judged, "the task was changed since it was judged")
    _require(me.epoch == judged.epoch + 1, f"epoch {me.epoch} does not follow {judged.epoch}")
    _require(state.status is Status.QUEUED or state.status in HELD, f"it is {state.status}")
    _require(state.kill is None, "the task is to be killed")
    lost = state.status in HELD
    return state.with_(
        status=Status.PREPARING,
        epoch=me.epoch,
        lease=Lease(agent=me.agent, incarnation=me.incarnation),
        outcome=None,
        reason=None,
        message="",
        stderr_tail="",
        counters=_counted(state, lost=lost),
        attempts=_with_attempt(state.with_(attempts=_close_lost_attempt(state)), attempt),
    )


def close(state: State, *, judged: Judged, spec: Spec, at: float) -> State:
    """End a task that nobody holds alive: `killed` where asked for, `error` past its limits."""
    if state.terminal:
        return state
    _require(state.judged == judged, "the task was changed since it was judged")
    lost = state.status in HELD
    counted = _counted(state, lost=lost)
    if state.kill is not None:
        status, reason = Status.KILLED, Reason.KILLED
        message = f"killed by {state.kill.by}" + ("; its agent was lost" if lost else "")
    else:
        _require(limits_used(state, spec, lost=lost), "attempts are left")
        status = Status.ERROR
        if counted.preemptions <= spec.max_preemptions:
            reason = Reason.AGENT_LOST if lost else Reason.AGENT_ERROR
            message = f"no attempt is left of {spec.max_attempts}"
        else:
            reason = Reason.MAX_PREEMPTIONS
            message = f"preempted more than {spec.max_preemptions} times"
    return state.with_(
        status=status,
        outcome=status,
        reason=reason,
        message=message,
        lease=None,
        counters=counted,
        attempts=_close_lost_attempt(state),
        ended_at=at,
    )


def reject(state: State, *, judged: Judged, reason: Reason, message: str, at: float) -> State:
    """End a task that can never run (an unreadable spec, a submission never completed)."""
    if state.terminal:
        return state
    _require(state.judged == judged, "the task was changed since it was judged")
    return state.with_(
        status=Status.ERROR,
        outcome=Status.ERROR,
        reason=reason,
        message=message,
        lease=None,
        attempts=_close_lost_attempt(state),
        ended_at=at,
    )


def give_up(state: State, *, judged: Judged, message: str, at: float) -> State:
    """End a task that no agent of its group can run; a kill that was asked for goes first."""
    _require(state.terminal or state.kill is None, "the task is to be killed")
    return reject(state, judged=judged, reason=Reason.UNSUPPORTED, message=message, at=at)


def ring(state: State, *, judged: Judged, bell_at: float) -> State:
    """Note that a bell is sent again for a queued task."""
    _require(state.judged == judged, "the task was changed since it was judged")
    _require(state.status is Status.QUEUED, f"the task is {state.status}")
    return state if state.bell_at == bell_at else state.with_(bell_at=bell_at)


# --- The holder's -------------------------------------------------------------------------------


def renew(state: State, *, me: Holder, beat: int, attempt: Attempt | None) -> State:
    """Show that the holder lives; ``attempt`` is what it has to tell so far."""
    _require_mine(state, me)
    assert state.lease is not None
    if state.lease.beat >= beat:
        return state
    attempts = state.attempts if attempt is None else _with_attempt(state, attempt)
    return state.with_(lease=state.lease.with_(beat=beat), attempts=attempts)


def adopt(state: State, *, me: Holder, before: str) -> State:
    """Go on after a restart: the incarnation ``before`` of the same agent becomes ``me``."""
    if is_mine(state, me):
        return state
    _require_mine(state, me.model_copy(update={"incarnation": before}))
    assert state.lease is not None
    beat = state.lease.beat + 1
    return state.with_(lease=state.lease.with_(incarnation=me.incarnation, beat=beat))


def start_running(state: State, *, me: Holder) -> State:
    """`preparing` → `running`: the first step is about to start."""
    _require_mine(state, me)
    _require(state.status is not Status.FINALIZING, "the outcome is already fixed")
    return state if state.status is Status.RUNNING else state.with_(status=Status.RUNNING)


def keep_checkpoint(state: State, *, me: Holder, checkpoint: Checkpoint) -> State:
    """Name the files from which a later attempt goes on, in place of older ones."""
    if state.checkpoint == checkpoint:
        return state
    _require_mine(state, me)
    _require(state.status is not Status.FINALIZING, "the outcome is already fixed")
    newer = state.checkpoint is None or state.checkpoint.number < checkpoint.number
    _require(newer, "the task has a newer checkpoint")
    return state.with_(checkpoint=checkpoint)


def begin_finalizing(
    state: State, *, me: Holder, outcome: Status, attempt: Attempt, stderr_tail: str = ""
) -> State:
    """Fix the outcome: from here on a kill comes too late."""
    _require_mine(state, me)
    assert outcome in OUTCOMES
    if state.status is Status.FINALIZING:
        return state
    return state.with_(
        status=Status.FINALIZING,
        outcome=outcome,
        reason=attempt.reason,
        message=attempt.message,
        stderr_tail=stderr_tail,
        attempts=_with_attempt(state, attempt),
    )


def finish(
    state: State, *, me: Holder, output: Output | None, attempt: Attempt, at: float
) -> State:
    """Publish: `finalizing` → the outcome that was fixed, with the outputs; the lease ends."""
    if state.terminal and attempt in state.attempts:
        return state
    _require_mine(state, me)
    _require(state.status is Status.FINALIZING, f"the task is {state.status}")
    assert state.outcome is not None
    outcome = state.outcome
    if attempt.reason is Reason.OUTPUT_FAILED and outcome is Status.SUCCEEDED:
        outcome = Status.ERROR  # never `succeeded` without what it produced
    if attempt.reason is Reason.DISK_FULL and outcome is Status.SUCCEEDED:
        outcome = Status.FAILED  # nor where there is no room for it
    return state.with_(
        status=outcome,
        outcome=outcome,
        reason=attempt.reason,
        message=attempt.message,
        lease=None,
        checkpoint=None if outcome is Status.SUCCEEDED else state.checkpoint,
        output=output,
        attempts=_with_attempt(state, attempt),
        ended_at=at,
    )


def requeue(
    state: State,
    *,
    me: Holder,
    spec: Spec,
    attempt: Attempt,
    checkpoint: Checkpoint | None,
    bell_at: float,
) -> State:
    """Give the task back for another attempt, counting why.

    Raises `SupersededError` also where the attempt has to end otherwise: a kill is wished for, the
    outcome is fixed, or the limits are used up.
    """
    if state.status is Status.QUEUED and state.epoch == me.epoch and attempt in state.attempts:
        return state
    _require_mine(state, me)
    _require(state.status is not Status.FINALIZING, "the outcome is already fixed")
    _require(state.kill is None, "the task is to be killed")
    counters = state.counters
    if attempt.reason is Reason.PREEMPTED:
        counters = counters.with_(preemptions=counters.preemptions + 1)
    else:
        counters = counters.with_(errors=counters.errors + 1)
    counted = state.with_(counters=counters)
    _require(not limits_used(counted, spec, lost=False), "no attempt is left")
    return counted.with_(
        status=Status.QUEUED,
        lease=None,
        checkpoint=checkpoint or state.checkpoint,
        attempts=_with_attempt(state, attempt),
        bell_at=bell_at,
    )
