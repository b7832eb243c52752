"""Keeps the bell of a running attempt in flight, so that others hear it soon after a crash."""

import structlog

from simagent.domain import bell
from simagent.domain.keys import TaskKeys
from simagent.domain.times import Times
from simagent.ports.clock import Clock
from simagent.ports.queue import Queue, QueueError

log = structlog.get_logger()


class BellKeeper:
    """The queue message of one attempt. Its failures are harmless: the sweep rings again."""

    def __init__(
        self, queue: Queue, clock: Clock, times: Times, task: TaskKeys, receipt: str | None
    ) -> None:
        self._queue = queue
        self._clock = clock
        self._times = times
        self._task = task
        self.receipt = receipt
        self._received = self._extended = clock.now()

    def keep(self) -> None:
        """Extend the bell's time in flight where that is due; replace one that grows too old."""
        now = self._clock.now()
        if self.receipt is None or now - self._extended < self._times.bell_extend:
            return
        self._extended = now
        try:
            if now - self._received < self._times.bell_renew:
                self._queue.hide(self.receipt, self._times.bell_visibility)
                return
            self._queue.send(bell.encode(self._task), delay=self._times.bell_visibility)
            self._queue.delete(self.receipt)
            self.receipt = None
        except QueueError as error:
            log.debug("bell not extended", task=self._task.id, error=str(error))

    def silence(self) -> None:
        """The task has ended: delete the bell. Raises QueueError."""
        if self.receipt is not None:
            self._queue.delete(self.receipt)

    def ring(self) -> None:
        """The task was given back: let others hear of it at once. Raises QueueError."""
        self._queue.send(bell.encode(self._task))
        if self.receipt is not None:
            self._queue.delete(self.receipt)
