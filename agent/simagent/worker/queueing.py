"""Tasks that found no room beside what runs here, and how they come to it all the same."""

from collections import deque
from dataclasses import dataclass

import structlog

from simagent.domain.keys import TaskKeys
from simagent.domain.times import Times
from simagent.ports.clock import Clock

_MOST = 8
_PATIENCE = 10
_KEPT_FREE = 60

log = structlog.get_logger()


@dataclass(slots=True)
class _Waiting:
    """Since when a task is refused here, with the bell that was heard of it last."""

    since: float
    receipt: str | None


class Line:
    """The tasks that an agent refused for lack of room, and would take as soon as there is some.

    Their bells are left to others. Here they are looked at again when something that ran is over,
    the longest waiting first, and every `hide_refused`. One that waits for ten times that long is
    next: until it has found room, or was taken elsewhere, nothing else is begun here; after
    sixty times that long, what was kept free is given to others, and its wait begins anew.

    So are those that were refused for another reason, as soon as a host more has joined the cluster
    that the agent leads.

    Who has refused several shortly after another hears no more for a while: each bell that is heard
    in vain is hidden from those who could take it.
    """

    def __init__(self, clock: Clock, times: Times) -> None:
        self._clock = clock
        self._every = times.hide_refused
        self._waiting: dict[TaskKeys, _Waiting] = {}
        self._refused: deque[float] = deque(maxlen=_MOST)
        self._looked = clock.now()
        self._ended = 0
        self._left: dict[TaskKeys, str | None] = {}
        self._joined = 0
        self._kept_for: TaskKeys | None = None

    @property
    def hears(self) -> bool:
        """Whether bells are to be heard."""
        if self.kept_for() is not None:
            return False
        now = self._clock.now()
        return len(self._refused) < _MOST or now - self._refused[0] >= self._every

    def kept_for(self) -> TaskKeys | None:
        """Tell which task has waited so long that nothing is begun before it."""
        now = self._clock.now()
        for task, waiting in list(self._waiting.items())[:1]:  # in the order of their times
            waited = now - waiting.since
            if waited >= (_PATIENCE + _KEPT_FREE) * self._every:
                del self._waiting[task]
                self._kept_for = None
            elif waited >= _PATIENCE * self._every:
                if self._kept_for != task:
                    log.info("room is kept free", task=task.id, waited=round(waited))
                self._kept_for = task
                return task
        return None

    def refused(self, task: TaskKeys, receipt: str | None) -> bool:
        """Note that there is no room for a task; tell whether its bell is a new one."""
        now = self._clock.now()
        waiting = self._waiting.get(task)
        if waiting is not None and waiting.receipt == receipt:
            return False
        self._refused.append(now)
        if waiting is not None:
            waiting.receipt = receipt
        elif len(self._waiting) < _MOST:
            self._waiting[task] = _Waiting(now, receipt)
        return True

    def left(self, task: TaskKeys, receipt: str | None) -> None:
        """Note that a task cannot run here just now for another reason than room."""
        self._left[task] = receipt
        if len(self._left) > _MOST:
            del self._left[next(iter(self._left))]

    def settled(self, task: TaskKeys) -> None:
        """Note that a task no longer waits here."""
        self._waiting.pop(task, None)
        self._left.pop(task, None)

    def again(self, ended: int, joined: int = 0) -> list[tuple[TaskKeys, str | None]]:
        """List the tasks to be looked at again, with their bells' receipts.

        ``ended`` counts what has made room so far, ``joined`` when hosts came.
        """
        if joined != self._joined:
            self._joined = joined
            return [*self._left.items(), *self._due(ended)]
        return self._due(ended)

    def _due(self, ended: int) -> list[tuple[TaskKeys, str | None]]:
        now = self._clock.now()
        if ended == self._ended and now - self._looked < self._every:
            return []
        if ended != self._ended:
            self._refused.clear()
        self._ended, self._looked = ended, now
        most = None if self.kept_for() is None else 1
        return [(task, waiting.receipt) for task, waiting in self._waiting.items()][:most]
