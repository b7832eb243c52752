"""Asks the cloud whether this machine is about to be taken away."""

from collections.abc import Callable

import structlog

from simagent.domain.events import Event
from simagent.ports.clock import Clock, Wake
from simagent.ports.cloud import Cloud, CloudError, Notice
from simagent.worker.orders import Preempted

_SAFE_BEFORE = 20.0
_LEAST = 8.0
_PAUSE_AFTER_FAILURE = 15.0

log = structlog.get_logger()


class NoticeWatch:
    """A thread of the agent that hands a notice on as an order, once.

    All has to be done 20 s before the machine goes; where that leaves less than 8 s, in a third of
    the time, but no more than these.
    """

    def __init__(self, cloud: Cloud, clock: Clock, leave: Callable[[Preempted], None]) -> None:
        self._cloud = cloud
        self._clock = clock
        self._leave = leave
        self._warned = False
        self._failing = False

    def run(self, stop: Wake) -> None:
        """Ask until ``stop`` is set, or until the machine is certain to go."""
        pause = 0.0
        while not self._clock.wait(pause, stop):
            asked = self._clock.now()
            pause = self._cloud.poll_every
            try:
                notice = self._cloud.notice()
            except CloudError as error:
                self._fail(error)
                pause = _PAUSE_AFTER_FAILURE
                continue
            self._failing = False
            if notice is None:
                continue
            if notice.certain:
                self._tell(notice)
                left = max(notice.left - _SAFE_BEFORE, min(notice.left / 3, _LEAST))
                self._leave(Preempted(notice.what, asked + left, self._done))
                return
            if not self._warned:
                self._warned = True
                self._tell(notice)

    def _tell(self, notice: Notice) -> None:
        log.warning(
            Event.MACHINE_LEAVES,
            cloud=self._cloud.name,
            what=notice.what,
            seconds=round(notice.left),
            certain=notice.certain,
        )

    def _done(self) -> None:
        try:
            self._cloud.done()
        except CloudError as error:
            log.warning("the cloud was not told that nothing is left to be done", error=str(error))

    def _fail(self, error: CloudError) -> None:
        if not self._failing:
            log.warning("the cloud does not tell whether it takes the machine", error=str(error))
        self._failing = True
