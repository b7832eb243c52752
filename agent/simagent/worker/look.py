"""Looks after a running attempt: for a kill, and by telling its steps that an agent is there."""

from collections.abc import Callable

import structlog

from simagent.domain.keys import TaskKeys
from simagent.ledger import CorruptError, Ledger, TooNewError
from simagent.ports.clock import Clock, Wake
from simagent.ports.store import StoreError
from simagent.worker.orders import Orders

_KEEP_ALIVE_EVERY = 30.0

log = structlog.get_logger()


class Look:
    """Reads the task's state every so often, so that a kill need not wait for a renewal."""

    def __init__(
        self,
        ledger: Ledger,
        clock: Clock,
        *,
        task: TaskKeys,
        orders: Orders,
        every: float,
        keep_alive: Callable[[], None],
    ) -> None:
        self._ledger = ledger
        self._clock = clock
        self._task = task
        self._orders = orders
        self._every = every
        self._keep_alive = keep_alive
        self._stop = Wake()

    def run(self) -> None:
        """Look until `stop`."""
        kept_alive = self._clock.now()
        self._keep_alive()
        while not self._clock.wait(self._every, self._stop):
            if self._clock.now() - kept_alive >= _KEEP_ALIVE_EVERY:
                kept_alive = self._clock.now()
                self._keep_alive()
            try:
                state = self._ledger.state(self._task)
            except (StoreError, CorruptError, TooNewError) as error:
                log.debug("state not read", task=self._task.id, error=str(error))
                continue  # the lease's thread decides what an outage means
            if state.kill is not None:
                self._orders.ask_kill(state.kill)

    def stop(self) -> None:
        """End the thread."""
        self._stop.set()
