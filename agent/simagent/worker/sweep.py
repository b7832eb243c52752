"""SWEEP: walk the open tasks, ring lost bells again, end what nobody can run any more."""

import random
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import structlog
from pydantic import ValidationError

from simagent.domain import bell, keys, mutations
from simagent.domain.events import Event
from simagent.domain.keys import TaskKeys
from simagent.domain.mutations import SupersededError
from simagent.domain.reasons import Reason
from simagent.domain.state import Record, State, Status
from simagent.domain.times import Times
from simagent.ledger import CorruptError, Ledger, TooNewError
from simagent.ports.clock import Clock
from simagent.ports.queue import Queue
from simagent.ports.store import NotFoundError, PreconditionError, StoreRefusedError
from simagent.worker.fleet import Vanished
from simagent.worker.receive import Claim, Close, Hide, Judge, Verdict, tell_of_loss
from simagent.worker.refusals import Refusals

_BATCH = 200
_MOST_PATIENCE = 4

log = structlog.get_logger()


@dataclass(slots=True)
class Swept:
    """What one sweep did, in numbers of tasks."""

    seen: int = 0
    rung: int = 0
    closed: int = 0
    tidied: int = 0
    held: int = 0


class _Turn(Record):
    """What the agents of a group agree on: how often was swept, and where the walk goes on."""

    format: int = 1
    round: int = 0
    cursor: str = ""


@dataclass(slots=True)
class _Quiet:
    bell_at: float | None
    since: float
    looked: float


class Sweeper:
    """Sweeps one group, at most one of its agents at a time.

    Only waits of days are measured against wall times that others wrote; an early or a late ring
    does no harm. Without ``refusals``, who sweeps speaks for no agent: it says of no task that it
    cannot run.
    """

    def __init__(
        self,
        ledger: Ledger,
        queue: Queue,
        clock: Clock,
        times: Times,
        judge: Judge,
        *,
        group: str,
        refusals: Refusals | None = None,
    ) -> None:
        self._ledger = ledger
        self._queue = queue
        self._clock = clock
        self._times = times
        self._judge = judge
        self._group = group
        self._refusals = refusals
        self._round: int | None = None
        self._next = clock.now() + times.sweep_every * random.uniform(0.2, 1)  # noqa: S311 - jitter
        self._quiet: dict[TaskKeys, _Quiet] = {}
        self._vanished = Vanished(ledger, clock)

    def due(self) -> bool:
        """Tell whether this agent should look whether a sweep is needed."""
        return self._clock.now() >= self._next

    def sweep_if_due(self) -> Swept | None:
        """Sweep unless another agent did since the last look. Raises StoreError, QueueError."""
        self._next = self._clock.now() + self._times.sweep_every * random.uniform(1, 2)  # noqa: S311
        return self.sweep(force=False)

    def sweep(self, *, force: bool = True) -> Swept | None:
        """Walk the next batch of open tasks. Raises StoreError, QueueError."""
        batch = self._take_turn(force=force)
        if batch is None:
            return None
        swept = Swept()
        refused = self._look_at(batch, swept)
        self._vanished.prune_if_due()
        log.info(Event.SWEPT, seen=swept.seen, rung=swept.rung, closed=swept.closed)
        if refused is not None:
            raise refused
        return swept

    def walk(self) -> Swept:
        """Look at all open tasks once, the first to the last, wherever the group's agents are.

        Raises StoreError, QueueError.
        """
        swept, after, refused = Swept(), "", None
        while batch := self._ledger.markers(self._group, after=after, limit=_BATCH):
            refused = self._look_at(batch, swept) or refused
            after = batch[-1]
        if refused is not None:
            raise refused
        return swept

    def _look_at(self, batch: list[str], swept: Swept) -> StoreRefusedError | None:
        """Look at tasks; give why one of them may not be seen, which holds up no other."""
        refused: StoreRefusedError | None = None
        for name in batch:
            swept.seen += 1
            try:
                task = self._ledger.marked(self._group, name)
                if task is not None:  # else it ended just now
                    self._look(task, swept)
            except (CorruptError, TooNewError) as error:
                log.warning("open task cannot be read", marker=name, error=str(error))
            except StoreRefusedError as error:
                refused = error
            except SupersededError:
                continue  # somebody else did something about it just now
        self._forget_old()
        return refused

    def _take_turn(self, *, force: bool) -> list[str] | None:
        """Agree with the other agents on who sweeps; give the markers to look at."""
        key = keys.sweep(self._group)
        turn, etag = self._read_turn(key)
        seen, self._round = self._round, turn.round
        if not force and seen is not None and seen != self._round:
            return None
        batch = self._ledger.markers(self._group, after=turn.cursor, limit=_BATCH)
        following = batch[-1] if len(batch) == _BATCH else ""
        turn = turn.with_(round=turn.round + 1, cursor=following)
        try:
            body = turn.model_dump_json().encode()
            self._ledger.store.put(key, body, if_match=etag, if_absent=etag is None)
        except PreconditionError:
            return None
        self._round = turn.round
        return batch

    def _read_turn(self, key: str) -> tuple[_Turn, str | None]:
        try:
            blob = self._ledger.store.get(key)
        except NotFoundError:
            return _Turn(), None
        try:
            return _Turn.model_validate_json(blob.data), blob.etag
        except ValidationError as error:
            log.warning("sweep record cannot be read", key=key, error=str(error).splitlines()[0])
            return _Turn(), blob.etag

    def _look(self, task: TaskKeys, swept: Swept) -> None:
        try:
            state = self._ledger.state(task)
        except NotFoundError:
            if self._quiet_for(task, None) >= self._times.marker_limit:
                self._tidy(task, swept)
            return
        if state.terminal:
            self._tidy(task, swept)
        elif state.status is Status.SUBMITTED:
            if self._clock.wall() - state.submitted_at > self._times.submit_limit:
                self._give_up(task, state, swept)
        elif state.status is Status.QUEUED:
            self._ring_if_old(task, state, swept)
        else:
            self._look_at_holder(task, swept)

    def _look_at_holder(self, task: TaskKeys, swept: Swept) -> None:
        verdict = self._judge.judge(task)
        if self._ended(task, verdict, swept):
            return
        match verdict:
            case Claim() | Hide(lost=True):
                self._queue.send(bell.encode(task))
                swept.rung += 1
            case _:
                swept.held += 1

    def _ended(self, task: TaskKeys, verdict: Verdict, swept: Swept) -> bool:
        """End a task that nobody may run any more, or can; tell whether it was one."""
        match verdict:
            case Close(change=change):
                end: Callable[[State], State] | None = change
            case Hide(refused=True) if self._refusals is not None:
                end = self._refusals.end(task, verdict)
            case _:
                end = None
        if end is None:
            return False
        state = self._ledger.change(task, end)
        tell_of_loss(task, state, before=state.epoch)
        log.warning(Event.TASK_CLOSED, task=task.id, status=state.status.value, reason=state.reason)
        swept.closed += 1
        self._tidy(task, swept)
        return True

    def _give_up(self, task: TaskKeys, state: State, swept: Swept) -> None:
        change = partial(
            mutations.reject,
            judged=state.judged,
            reason=Reason.NEVER_QUEUED,
            message="the submission was not completed in time",
            at=self._clock.wall(),
        )
        self._ledger.change(task, change)
        swept.closed += 1
        self._tidy(task, swept)

    def _ring_if_old(self, task: TaskKeys, state: State, swept: Swept) -> None:
        wall = self._clock.wall()
        age = max(wall - (state.bell_at or 0.0), self._quiet_for(task, state.bell_at))
        # A task that waits long was rung before: each time it is left alone for twice as long.
        queued = max([state.submitted_at, *(a.ended or 0.0 for a in state.attempts)])
        waited = (state.bell_at or 0.0) - queued
        longest = _MOST_PATIENCE * self._times.ring_after
        if age < max(self._times.ring_after, min(waited, longest)):
            return
        # Also an agent that is too busy to hear bells has to say what it cannot run.
        if self._refusals is not None and self._ended(task, self._judge.judge(task), swept):
            return
        self._ledger.change(task, partial(mutations.ring, judged=state.judged, bell_at=wall))
        self._queue.send(bell.encode(task))
        swept.rung += 1

    def _quiet_for(self, task: TaskKeys, bell_at: float | None) -> float:
        """Tell for how long this sweeper has seen nothing change about a task, in seconds."""
        now = self._clock.now()
        seen = self._quiet.get(task)
        if seen is None or seen.bell_at != bell_at:
            seen = self._quiet[task] = _Quiet(bell_at, now, now)
        seen.looked = now
        return now - seen.since

    def _forget_old(self) -> None:
        """Forget tasks that have not been met for so long that others must have ended them."""
        oldest = self._clock.now() - 2 * self._times.marker_limit
        self._quiet = {task: seen for task, seen in self._quiet.items() if seen.looked >= oldest}

    def _tidy(self, task: TaskKeys, swept: Swept) -> None:
        self._ledger.remove_marker(self._group, task)
        self._quiet.pop(task, None)
        swept.tidied += 1
