"""The holder's side of the protocol: what an attempt writes about its task, through any outage.

FINAL and REQUEUE are here, each step such that it may be repeated after a crash anywhere.
"""

from collections.abc import Callable
from functools import partial
from typing import TypeVar

import structlog

from simagent.domain import mutations
from simagent.domain.events import Event
from simagent.domain.mutations import SupersededError, is_mine
from simagent.domain.reasons import Reason
from simagent.domain.spec import Spec
from simagent.domain.state import Attempt, Checkpoint, Output, State, Status
from simagent.ledger import CorruptError, TooNewError
from simagent.ports.queue import QueueError
from simagent.ports.retry import InterruptedRetryError, retrying
from simagent.ports.store import (
    NoSpaceError,
    NotFoundError,
    StoreRefusedError,
    StoreUnavailableError,
)
from simagent.telemetry.tally import Count
from simagent.worker.bells import BellKeeper
from simagent.worker.context import Context
from simagent.worker.endings import Ending
from simagent.worker.journal import Journal
from simagent.worker.laying import forget_checkpoints
from simagent.worker.orders import Detached, LeaseLost, Orders

_LONGEST_PAUSE = 5.0

_T = TypeVar("_T")

log = structlog.get_logger()


class Holding:
    """One attempt as its task's state sees it.

    Methods repeat store calls until they are answered, and raise `LeaseLost` where another holds
    the task and `Detached` where the agent stops meanwhile.
    """

    def __init__(self, ctx: Context, journal: Journal, orders: Orders, bell: BellKeeper) -> None:
        self._ctx = ctx
        self._journal = journal
        self._orders = orders
        self._bell = bell
        self._me = journal.entry.holder
        self._task = journal.entry.keys

    def start_running(self) -> None:
        """`preparing` → `running`."""
        self.change(partial(mutations.start_running, me=self._me))

    def fix(self, ending: Ending, attempt: Attempt, stderr_tail: str) -> None:
        """Fix the outcome, here and then in the state: from now on a kill comes too late."""
        note = partial(
            self._journal.write, outcome=ending.outcome, reason=ending.reason, attempt=attempt
        )
        self.persist(note)
        fixed = partial(
            mutations.begin_finalizing,
            me=self._me,
            outcome=ending.outcome,
            attempt=attempt,
            stderr_tail=stderr_tail,
        )
        self.change(fixed)
        self._log(Event.TASK_FINALIZING, outcome=ending.outcome.value, reason=ending.reason)

    def end(self, output: Output | None, attempt: Attempt) -> None:
        """Write the terminal state, read it back, and remove what only a live task needs."""
        at = self._ctx.clock.wall()
        self.change(partial(mutations.finish, me=self._me, output=output, attempt=attempt, at=at))
        state = self.persist(partial(self._ctx.ledger.state, self._task))
        if attempt not in state.attempts:
            raise LeaseLost("the terminal state does not show this attempt")
        self._log(Event.TASK_PUBLISHED, status=state.status.value)
        self._ctx.tally.add(Count.TASKS_ENDED, state.status.value, state.reason or "")
        if state.status is Status.SUCCEEDED:
            self.persist(partial(forget_checkpoints, self._ctx, self._journal))
        group = self._journal.entry.group
        self.persist(partial(self._ctx.ledger.remove_marker, group, self._task))
        try:
            self._bell.silence()
        except QueueError as error:
            log.debug("bell not deleted", task=self._task.id, error=str(error))
        self.persist(self._journal.remove)

    def give_back(
        self, spec: Spec, attempt: Attempt, checkpoint: Checkpoint | None = None
    ) -> Ending | None:
        """Give the task back for another attempt; where it has to end instead, say how.

        The next attempt goes on from the ``checkpoint``, or without one from the task's last.
        """
        assert attempt.reason is not None
        requeue = partial(
            mutations.requeue,
            me=self._me,
            spec=spec,
            attempt=attempt,
            checkpoint=checkpoint,
            bell_at=self._ctx.clock.wall(),
        )
        try:
            self.persist(partial(self._ctx.ledger.change, self._task, requeue))
        except SupersededError as error:
            state = self.persist(partial(self._ctx.ledger.state, self._task))
            if not is_mine(state, self._me):
                raise LeaseLost(str(error)) from error
            if state.kill is not None:
                return Ending(Status.KILLED, Reason.KILLED, f"killed by {state.kill.by}")
            preempted = attempt.reason is Reason.PREEMPTED
            reason = Reason.MAX_PREEMPTIONS if preempted else attempt.reason
            return Ending(Status.ERROR, reason, f"{attempt.message}; no attempt is left")
        self._log(Event.TASK_REQUEUED, reason=attempt.reason.value)
        self._ctx.tally.add(Count.TASKS_REQUEUED, attempt.reason.value)
        try:
            self._bell.ring()
        except QueueError as error:
            log.warning("no bell rung; the sweep will", task=self._task.id, error=str(error))
        self.persist(self._journal.remove)
        return None

    def abandon(self, order: LeaseLost) -> None:
        """Report nothing: the task is another's. Local files are kept for a while."""
        self._log(Event.LEASE_LOST, error=str(order))
        self._ctx.tally.add(Count.LEASES_LOST)
        self._ctx.journals.set_aside(self._journal.folder, str(order))

    def change(self, change: Callable[[State], State]) -> State:
        """Change the state as its holder."""
        try:
            return self.persist(partial(self._ctx.ledger.change, self._task, change))
        except SupersededError as error:
            raise LeaseLost(str(error)) from error

    def persist(self, call: Callable[[], _T]) -> _T:
        """Repeat a small call through any outage: of the store, of its permissions, of the disk.

        A kill or a notice of preemption does not end that: what they ask for needs the store. On a
        full disk the reserve is used.
        """

        def tried() -> _T:
            try:
                return call()
            except (NoSpaceError, OSError):
                self._journal.reserve.give_up_if_full()
                raise

        return self.insist(tried)

    def insist(self, call: Callable[[], _T]) -> _T:
        """Repeat a call like `persist`, but one that may take any space."""
        return self.retry(call, on=(StoreUnavailableError, StoreRefusedError, OSError))

    def retry(
        self,
        call: Callable[[], _T],
        on: tuple[type[Exception], ...] = (StoreUnavailableError,),
    ) -> _T:
        """Repeat a call while it fails in one of these ways."""
        while True:
            try:
                return retrying(
                    call,
                    clock=self._ctx.clock,
                    wake=self._orders.wake,
                    on=on,
                    cap=_LONGEST_PAUSE,
                    log=self._tell,
                )
            except InterruptedRetryError:
                self._orders.wake.clear()
                if isinstance(self._orders.interrupted, Detached | LeaseLost):
                    raise self._orders.interrupted from None
            except (NotFoundError, CorruptError, TooNewError) as error:
                raise LeaseLost(str(error)) from error

    def _tell(self, error: BaseException, pause: float) -> None:
        log.warning("tried again", task=self._task.id, error=str(error), seconds=round(pause, 1))

    def _log(self, event: Event, **fields: object) -> None:
        log.info(event, task=self._task.id, epoch=self._me.epoch, **fields)
