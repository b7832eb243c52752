"""The control thread of an attempt: looks for a kill, and serves requests about its files.

It also tells the attempt's steps, every so often, that an agent looks after them.
"""

from collections.abc import Callable

import structlog

from simagent.domain.keys import TaskKeys
from simagent.ledger import CorruptError, Ledger, TooNewError
from simagent.ports.clock import Clock, Wake
from simagent.ports.store import StoreError
from simagent.worker.live import LiveFiles
from simagent.worker.orders import Orders

_KEEP_ALIVE_EVERY = 30.0

log = structlog.get_logger()


class Control:
    """Looks at what people want of one attempt, every ``every`` seconds.

    The lease's thread notices a kill, too; this one does it sooner.
    """

    def __init__(
        self,
        ledger: Ledger,
        clock: Clock,
        *,
        task: TaskKeys,
        orders: Orders,
        live: LiveFiles,
        every: float,
        keep_alive: Callable[[], None],
    ) -> None:
        self._ledger = ledger
        self._clock = clock
        self._task = task
        self._orders = orders
        self._live = live
        self._every = every
        self._keep_alive = keep_alive
        self._stop = Wake()

    def run(self) -> None:
        """Look until `stop`; at an attempt's own end nothing is left to be answered."""
        kept_alive = self._clock.now()
        self._keep_alive()
        while not self._clock.wait(self._every, self._stop):
            if self._clock.now() - kept_alive >= _KEEP_ALIVE_EVERY:
                kept_alive = self._clock.now()
                self._keep_alive()
            self._look_for_kill()
            self._serve(self._live.serve)
        if self._orders.interrupted is None:  # else another attempt or incarnation goes on
            self._serve(self._live.clear)

    def stop(self) -> None:
        """End the thread."""
        self._stop.set()

    def _look_for_kill(self) -> None:
        try:
            state = self._ledger.state(self._task)
        except (StoreError, CorruptError, TooNewError) as error:
            log.debug("state not read", task=self._task.id, error=str(error))
            return  # the lease's thread decides what an outage means
        if state.kill is not None:
            self._orders.ask_kill(state.kill)

    def _serve(self, action: Callable[[], None]) -> None:
        try:
            action()
        except StoreError as error:
            log.debug("live files not served", task=self._task.id, error=str(error))
