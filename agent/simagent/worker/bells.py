"""Keeps the bell of a running attempt in flight, so that others hear it soon after a crash."""

import structlog

from simagent.domain import bell
from simagent.domain.keys import TaskKeys
from simagent.domain.times import Times
from simagent.ports.clock import Clock
from simagent.ports.queue import Queue, QueueError

log = structlog.get_logger()


class BellKeeper:
    """The queue message of one attempt. Its failures are harmless: the sweep rings again.

    The agent's loop keeps it, the attempt's own thread ends it.
    """

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
        now, receipt = self._clock.now(), self.receipt
        if receipt is None or now - self._extended < self._times.bell_extend:
            return
        self._extended = now
        try:
            if now - self._received < self._times.bell_renew:
                self._queue.hide(receipt, self._times.bell_visibility)
                return
            self._queue.send(bell.encode(self._task), delay=self._times.bell_visibility)
            self._queue.delete(receipt)
            self.receipt = None
        except QueueError as error:
            log.debug("bell not extended", task=self._task.id, error=str(error))

    def silence(self) -> None:
        """Delete the bell: the task has ended, or there is a new one. Raises QueueError."""
        receipt = self.receipt  # the loop may replace it just now
        if receipt is not None:
            self._queue.delete(receipt)

    def ring(self) -> None:
        """The task was given back: let others hear of it at once. Raises QueueError."""
        self._queue.send(bell.encode(self._task))
        self.silence()
