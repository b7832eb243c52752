"""Tasks in a store, as their agents and clients would have left them."""

from collections.abc import Callable

from fakes.clock import FakeClock
from simagent.domain import mutations
from simagent.domain.keys import TaskKeys
from simagent.domain.mutations import SupersededError
from simagent.domain.spec import Spec
from simagent.domain.state import Attempt, Holder, State
from simagent.domain.times import Times
from simagent.ledger import Ledger
from simagent.worker.choice import Refusal
from simagent.worker.receive import Judge

HOLDER = Holder(agent="holder", incarnation="i1", epoch=1)


def refusing(why: str | None, *, lasting: bool = False) -> Callable[[Spec], Refusal | None]:
    """Make what an agent says of every task: that it cannot run it, or, with None, that it can."""
    return lambda _: None if why is None else Refusal(why, lasting=lasting)


def place(
    ledger: Ledger,
    status: str,
    *,
    id: str = "T1",
    group: str = "default",
    spec: dict[str, object] | None = None,
    **fields: object,
) -> TaskKeys:
    """Store a task with its marker; a held one is held by `HOLDER`."""
    task = TaskKeys("default", id)
    made = Spec.model_validate({"commands": ["true"], "group": group} | (spec or {}))
    held = status in ("preparing", "running", "finalizing")
    who = HOLDER.model_dump(include={"agent", "incarnation"})
    defaults: dict[str, object] = {
        "status": status,
        "epoch": int(held),
        "lease": who if held else None,
        "outcome": "succeeded" if status == "finalizing" else None,
        "submitted_at": 1_700_000_000.0,
        "bell_at": None if status == "submitted" else 1_700_000_000.0,
        "spec_sha256": ledger.create_spec(task, made),
    }
    ledger.open_marker(group, task)
    ledger.create_state(task, State.model_validate(defaults | fields))
    return task


def beat(ledger: Ledger, task: TaskKeys) -> State:
    """Renew the lease as its holder does."""

    def renewed(state: State) -> State:
        if state.lease is None:
            raise SupersededError("nobody holds it")
        holder = HOLDER.model_copy(update={"epoch": state.epoch})
        return mutations.renew(state, me=holder, beat=state.lease.beat + 1, attempt=None)

    return ledger.change(task, renewed)


def attempt(epoch: int = 1, **fields: object) -> Attempt:
    """Make the record of an attempt."""
    who = {"agent": "holder", "version": "1", "started": 1.0}
    return Attempt.model_validate({"epoch": epoch} | who | fields)


def watch(clock: FakeClock, judge: Judge, seconds: float, *tasks: TaskKeys) -> None:
    """Let time pass as an agent does that watches tasks: it reads them again every so often."""
    left = seconds
    while left > Times().renew_every:
        clock.advance(Times().renew_every)
        left -= Times().renew_every
        for task in tasks:
            judge.judge(task)
    clock.advance(left)
