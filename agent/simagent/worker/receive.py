"""RECEIVE: what a bell asks for, judged by the task's state alone."""

import random
from collections.abc import Callable
from dataclasses import dataclass, replace

import structlog

from simagent.domain import mutations
from simagent.domain.events import Event
from simagent.domain.keys import TaskKeys
from simagent.domain.reasons import Reason
from simagent.domain.spec import Spec
from simagent.domain.state import HELD, Judged, State, Status
from simagent.domain.support import unsupported
from simagent.domain.times import Times
from simagent.ledger import CorruptError, Ledger, TooNewError
from simagent.ports.clock import Clock
from simagent.ports.store import NotFoundError
from simagent.worker.choice import Refusal
from simagent.worker.silence import Sign, Silence

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Gone:
    """The task has ended or does not exist: its marker and its bell can go.

    ``poison`` where it took its agents down, for the dead letters: why.
    """

    poison: str = ""


@dataclass(frozen=True, slots=True)
class Hide:
    """Nothing to do now: look again after some seconds.

    ``refused`` where this agent cannot run the task; ``never`` is what was judged, where it never
    will. ``room`` where there is no room for it just now. ``lost`` where its holder is dead, so
    that another agent may take it.
    """

    seconds: float
    why: str
    refused: bool = False
    lost: bool = False
    room: bool = False
    never: State | None = None


@dataclass(frozen=True, slots=True)
class Claim:
    """The task may be taken."""

    state: State
    spec: Spec
    lost: bool


@dataclass(frozen=True, slots=True)
class Close:
    """The task has to be ended, as nobody holds it alive."""

    change: Callable[[State], State]


Verdict = Gone | Hide | Claim | Close


def poison_of(state: State) -> str:
    """Tell why the bell of an ended task belongs to the dead letters; empty if it does not."""
    lost = state.status is Status.ERROR and state.reason is Reason.AGENT_LOST
    return f"{Reason.AGENT_LOST}: {state.message}" if lost else ""


def tell_of_loss(task: TaskKeys, state: State, *, before: int) -> None:
    """Log the end of the attempt ``before`` where its agent was lost, which cannot do so itself."""
    for attempt in state.attempts:
        if attempt.epoch == before and attempt.reason is Reason.AGENT_LOST:
            log.warning(Event.ATTEMPT_LOST, task=task.id, epoch=attempt.epoch, agent=attempt.agent)


@dataclass(slots=True)
class _Suspicion:
    silence: Silence
    receipt: str | None


class Suspects:
    """Held tasks whose holders are watched for signs of life, each as a `Silence`."""

    def __init__(self, ledger: Ledger, clock: Clock, times: Times) -> None:
        self._ledger = ledger
        self._clock = clock
        self._times = times
        self._seen: dict[TaskKeys, _Suspicion] = {}

    def observe(self, task: TaskKeys, judged: Judged, receipt: str | None, asked: float) -> Sign:
        """Note what was read of a held task, and tell what it shows of its holder.

        ``asked`` is when the reading began: a slow answer proves no longer silence.
        """
        seen = self._seen.get(task)
        if seen is None:
            silence = Silence(self._ledger, self._clock, self._times, judged)
            self._seen[task] = _Suspicion(silence, receipt)
            log.info(Event.TASK_SUSPECTED, task=task.id, epoch=judged.epoch)
            return Sign.SILENT
        sign = seen.silence.observe(judged, asked)
        if sign is Sign.ALIVE:
            del self._seen[task]
        seen.receipt = receipt or seen.receipt
        return sign

    def forget(self, task: TaskKeys) -> None:
        """Stop watching a task."""
        self._seen.pop(task, None)

    def due(self) -> list[tuple[TaskKeys, str | None]]:
        """List the watched tasks, with their bells' receipts, that are to be judged again."""
        now = self._clock.now()
        return [
            (task, seen.receipt)
            for task, seen in self._seen.items()
            if now - seen.silence.last >= self._times.renew_every
        ]


class Judge:
    """Decides what a bell asks of this agent, without changing anything."""

    def __init__(
        self,
        ledger: Ledger,
        clock: Clock,
        times: Times,
        *,
        can_run: Callable[[Spec], Refusal | None],
        of_newer: Callable[[TaskKeys], bool] = lambda _task: False,
    ) -> None:
        """``of_newer`` tells of a task that a newer agent of this machine has begun it."""
        self._ledger = ledger
        self._clock = clock
        self._times = times
        self._can_run = can_run
        self._of_newer = of_newer
        self.suspects = Suspects(ledger, clock, times)

    def judge(self, task: TaskKeys, receipt: str | None = None) -> Verdict:
        """Read the task and decide. Raises StoreError, and `CorruptError` for its state."""
        asked = self._clock.now()
        try:
            state = self._ledger.state(task)
        except NotFoundError:
            return self._settled(task, Gone())
        except TooNewError as error:
            return self._settled(
                task, self._refused(f"{Reason.AGENT_TOO_OLD}: {error}", lost=False)
            )
        if state.terminal:
            return self._settled(task, Gone(poison_of(state)))
        if state.status is Status.SUBMITTED:
            return self._settled(task, Hide(self._times.hide_submitted, "submission under way"))
        if state.status not in HELD:
            return self._settled(task, self._free(task, state, lost=False))
        match self.suspects.observe(task, state.judged, receipt, asked):
            case Sign.ALIVE:
                return Hide(self._times.hide_alive, "held, and its holder is alive")
            case Sign.SILENT:
                return Hide(self._times.suspect, "held; its holder is watched")
            case Sign.DEAD:
                return self._settled(task, self._free(task, state, lost=True))

    def _free(self, task: TaskKeys, state: State, *, lost: bool) -> Verdict:
        judged = state.judged
        wall = self._clock.wall()
        try:
            spec = self._ledger.spec(task, sha256_=state.spec_sha256)
        except TooNewError as error:
            return self._refused(f"{Reason.AGENT_TOO_OLD}: {error}", lost=lost)
        except CorruptError as error:
            message = str(error)
            return Close(
                lambda s: mutations.reject(
                    s, judged=judged, reason=Reason.INVALID_SPEC, message=message, at=wall
                )
            )
        if state.kill is not None or mutations.limits_used(state, spec, lost=lost):
            return Close(lambda s: mutations.close(s, judged=judged, spec=spec, at=wall))
        if self._of_newer(task):
            why = f"{Reason.AGENT_TOO_OLD}: a newer agent of this machine has begun it"
            return self._refused(why, lost=lost)
        unknown = next(unsupported(spec), None)
        refusal = Refusal(unknown, lasting=True) if unknown else self._can_run(spec)
        if refusal is not None:
            never = state if refusal.lasting else None
            return replace(self._refused(refusal.why, lost=lost, never=never), room=refusal.room)
        return Claim(state, spec, lost)

    def _refused(self, why: str, *, lost: bool, never: State | None = None) -> Hide:
        seconds = self._times.hide_refused * random.uniform(1, 2)  # noqa: S311 - jitter
        return Hide(seconds, why, refused=True, lost=lost, never=never)

    def _settled(self, task: TaskKeys, verdict: Verdict) -> Verdict:
        self.suspects.forget(task)
        return verdict
