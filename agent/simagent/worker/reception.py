"""Does what a bell asks for: the one place where verdicts become actions."""

import random
from collections.abc import Callable

import structlog

from simagent.domain import bell
from simagent.domain.events import Event
from simagent.domain.keys import TaskKeys
from simagent.domain.mutations import SupersededError
from simagent.domain.reasons import Reason
from simagent.domain.spec import Spec
from simagent.domain.state import State
from simagent.ledger import CorruptError, TooNewError
from simagent.ports.queue import Message
from simagent.worker.choice import NoRuntimeError
from simagent.worker.claim import ClaimUnknownError, claim
from simagent.worker.context import Context
from simagent.worker.journal import Journal
from simagent.worker.queueing import Line
from simagent.worker.receive import Claim, Close, Gone, Hide, Judge, poison_of, tell_of_loss
from simagent.worker.refusals import Refusals
from simagent.worker.shares import Share

log = structlog.get_logger()


class Reception:
    """Hears bells. ``start`` gets what was claimed, ``unsettled`` what may have been.

    Without ``refusals`` the tasks that cannot run here are left to others, whoever there is.
    ``share`` tells what of the machine a task is given, ``line`` has those that found no room.
    """

    def __init__(
        self,
        ctx: Context,
        judge: Judge,
        start: Callable[[Journal, State, Spec], None],
        unsettled: Callable[[Journal], None],
        refusals: Refusals | None = None,
        *,
        share: Callable[[Spec], Share] | None = None,
        line: Line | None = None,
    ) -> None:
        self._ctx = ctx
        self._judge = judge
        self._start = start
        self._unsettled = unsettled
        self._refusals = refusals
        self._share = share
        self._line = line

    def hear(self, message: Message) -> None:
        """Do what a message asks for. Raises StoreError, QueueError: it is heard again then."""
        try:
            task = bell.parse(message.body)
        except bell.NewerBellError as error:
            log.info(Event.TASK_REFUSED, task=None, reason=f"{Reason.AGENT_TOO_OLD}: {error}")
            self._hide(message.receipt, self._a_while())
            return
        except ValueError as error:
            self._reject(message, str(error))
            return
        try:
            self.consider(task, message.receipt)
        except CorruptError as error:
            self._reject(message, str(error))

    def reconsider(self, task: TaskKeys, receipt: str | None, *, free: bool = True) -> None:
        """Judge a task again that is watched, or wanted; claim only where ``free``.

        Raises StoreError, QueueError.
        """
        try:
            self.consider(task, receipt, free=free)
        except CorruptError as error:
            self._judge.suspects.forget(task)
            self._settle(task)
            log.warning(Event.TASK_REFUSED, task=task.id, reason=str(error))

    def consider(self, task: TaskKeys, receipt: str | None, *, free: bool = True) -> None:
        """Judge a task and act. Raises StoreError, QueueError, `CorruptError`."""
        verdict = self._judge.judge(task, receipt)
        waits = isinstance(verdict, Claim) and not free
        if not (waits or (isinstance(verdict, Hide) and verdict.room)):
            self._settle(task)
        match verdict:
            case Gone(poison=poison):
                self._dismiss(task, receipt, poison)
            case Hide(room=True):
                self._let_wait(task, receipt, verdict)
            case Hide(refused=True):
                self._leave_to_others(task, receipt, verdict)
            case Hide():
                self._hide(receipt, verdict.seconds)
            case Close(change=change):
                self._close(task, change, receipt)
            case Claim() if free:
                self._claim(task, verdict, receipt)
            case Claim(lost=True):
                self._call_others(task, receipt)

    def _settle(self, task: TaskKeys) -> None:
        """Let a task wait for room no longer."""
        if self._line is not None:
            self._line.settled(task)

    def _close(self, task: TaskKeys, change: Callable[[State], State], receipt: str | None) -> None:
        try:
            state = self._ctx.ledger.change(task, change)
        except (SupersededError, TooNewError):
            return  # it moved on: the bell comes again
        tell_of_loss(task, state, before=state.epoch)
        log.warning(Event.TASK_CLOSED, task=task.id, status=state.status.value, reason=state.reason)
        self._dismiss(task, receipt, poison_of(state))

    def _claim(self, task: TaskKeys, verdict: Claim, receipt: str | None) -> None:
        try:
            share = None if self._share is None else self._share(verdict.spec)
            claimed = claim(self._ctx, task, verdict, receipt, share)
        except ClaimUnknownError as error:
            self._unsettled(error.journal)
            raise
        except OSError as error:
            self._refuse(task, receipt, self._a_while(), f"cannot write down the claim: {error}")
            return
        except NoRuntimeError as error:
            self._refuse(task, receipt, self._a_while(), str(error))
            return
        if claimed is not None:
            self._start(*claimed, verdict.spec)

    def _leave_to_others(self, task: TaskKeys, receipt: str | None, verdict: Hide) -> None:
        end = self._refusals.end(task, verdict) if self._refusals else None
        if end is not None:
            self._close(task, end, receipt)
            return
        if self._line is not None:
            self._line.left(task, receipt)
        self._refuse(task, receipt, verdict.seconds, verdict.why)
        if verdict.lost and receipt is None:
            self._call_others(task, None)

    def _let_wait(self, task: TaskKeys, receipt: str | None, verdict: Hide) -> None:
        """Leave a task that found no room to others, but for what is done by `Line`."""
        new = self._line is None or self._line.refused(task, receipt)
        if verdict.lost:
            self._call_others(task, receipt)
        elif new:
            self._refuse(task, receipt, verdict.seconds, verdict.why)

    def _call_others(self, task: TaskKeys, receipt: str | None) -> None:
        """Let the bell be heard of a task whose holder is dead, and that is not taken here.

        The verdict is used up with this: who only met it in a sweep would not come to it again.
        """
        if receipt is None:
            self._ctx.queue.send(bell.encode(task))
        else:
            self._ctx.queue.hide(receipt, 0.0)

    def _a_while(self) -> float:
        return self._ctx.times.hide_refused * random.uniform(1, 2)  # noqa: S311 - jitter

    def _dismiss(self, task: TaskKeys, receipt: str | None, poison: str = "") -> None:
        self._ctx.ledger.remove_marker(self._ctx.settings.group, task)
        if receipt is None:
            return
        if poison:
            self._ctx.queue.reject(Message(bell.encode(task), receipt, receives=0), poison)
        else:
            self._ctx.queue.delete(receipt)

    def _refuse(self, task: TaskKeys, receipt: str | None, seconds: float, why: str) -> None:
        log.info(Event.TASK_REFUSED, task=task.id, reason=why)
        self._hide(receipt, seconds)

    def _hide(self, receipt: str | None, seconds: float) -> None:
        if receipt is not None:
            self._ctx.queue.hide(receipt, seconds)

    def _reject(self, message: Message, reason: str) -> None:
        log.warning(Event.BELL_REJECTED, reason=reason)
        self._ctx.queue.reject(message, reason)
