"""The control thread of an attempt: sees whether somebody attends to it, and does what they ask.

Whoever follows an attempt, asks about its files or kills it changes one small object beside the
task's state. Nothing else is looked at until that has changed, for every look costs a request. The
thread also tells the attempt's steps, every so often, that an agent looks after them.
"""

from collections.abc import Callable
from dataclasses import dataclass

import structlog

from simagent.domain.keys import TaskKeys
from simagent.domain.live import ATTENDED
from simagent.ledger import CorruptError, Ledger, TooNewError
from simagent.ports.clock import Clock, Wake
from simagent.ports.store import NotFoundError, StoreError
from simagent.worker.live import LiveFiles
from simagent.worker.orders import Orders

_KEEP_ALIVE_EVERY = 30.0

log = structlog.get_logger()


@dataclass(frozen=True, slots=True, kw_only=True)
class Looks:
    """Seconds between two looks: while nobody attends to the attempt, and while somebody does."""

    every: float
    attended: float


REMOTE_LOOKS = Looks(every=5.0, attended=1.0)
"""For a store that charges for every look."""
LOCAL_LOOKS = Looks(every=0.3, attended=0.3)
"""For a store on this machine."""


class Control:
    """Looks at what people want of one attempt.

    ``follow`` is told until when somebody attends to it, in seconds of the clock's `now`. The
    lease's thread notices a kill, too; this one does it sooner.
    """

    def __init__(
        self,
        ledger: Ledger,
        clock: Clock,
        *,
        task: TaskKeys,
        orders: Orders,
        live: LiveFiles,
        looks: Looks,
        follow: Callable[[float], None],
        keep_alive: Callable[[], None],
    ) -> None:
        self._ledger = ledger
        self._clock = clock
        self._task = task
        self._orders = orders
        self._live = live
        self._looks = looks
        self._follow = follow
        self._keep_alive = keep_alive
        self._seen: str | None = None
        self._attended_until = clock.now()
        self._stop = Wake()

    def run(self) -> None:
        """Look until `stop`; at an attempt's own end nothing is left to be answered."""
        kept_alive = self._clock.now()
        self._keep_alive()
        while not self._clock.wait(self._pause(), self._stop):
            if self._clock.now() - kept_alive >= _KEEP_ALIVE_EVERY:
                kept_alive = self._clock.now()
                self._keep_alive()
            try:
                self.look()
            except StoreError as error:
                log.debug("nothing seen of who attends", task=self._task.id, error=str(error))
        if self._orders.interrupted is None:  # else another attempt or incarnation goes on
            try:
                self._live.clear()
            except StoreError as error:
                log.debug("live files not cleared", task=self._task.id, error=str(error))

    def stop(self) -> None:
        """End the thread."""
        self._stop.set()

    def look(self) -> None:
        """See whether somebody attends to the attempt, and serve them. Raises StoreError."""
        try:
            version = self._ledger.store.get(self._task.control).etag
        except NotFoundError:
            version = None
        if version in (None, self._seen):
            self._live.serve(anew=False)
            return
        # By this clock alone: those who follow renew it before it is over.
        self._attended_until = self._clock.now() + ATTENDED
        self._follow(self._attended_until)
        self._look_for_kill()
        self._live.serve()
        # Only now: what failed is done at the next look.
        self._seen = version

    def _pause(self) -> float:
        attended = self._clock.now() < self._attended_until or self._live.waiting
        return self._looks.attended if attended else self._looks.every

    def _look_for_kill(self) -> None:
        try:
            state = self._ledger.state(self._task)
        except (CorruptError, TooNewError) as error:
            log.debug("state not read", task=self._task.id, error=str(error))
            return  # the lease's thread decides what that means
        if state.kill is not None:
            self._orders.ask_kill(state.kill)
