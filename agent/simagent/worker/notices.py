"""Asks the cloud whether this machine is about to be taken away."""

from collections.abc import Callable

import structlog

from simagent.domain.events import Event
from simagent.ports.clock import Clock, Wake
from simagent.ports.cloud import Cloud, CloudError, Notice
from simagent.worker.orders import TakenAway

_SAFE_BEFORE = 20.0
_LEAST = 8.0
_PAUSE_AFTER_FAILURE = 15.0

log = structlog.get_logger()


class NoticeWatch:
    """A thread of the agent that hands a notice on as an order, once.

    All has to be done 20 s before the machine goes; where that leaves less than 8 s, in a third of
    the time, but no more than these.
    """

    def __init__(self, cloud: Cloud, clock: Clock, leave: Callable[[TakenAway], None]) -> None:
        self._cloud = cloud
        self._clock = clock
        self._leave = leave
        self._warned = False
        self._failing = False
        self._pause = 0.0
        self._over = False

    def run(self, stop: Wake) -> None:
        """Ask until ``stop`` is set, or until the machine is certain to go."""
        while not self._over and not self._clock.wait(self._pause, stop):
            self.ask()

    def ask(self) -> None:
        """Ask once, now."""
        asked = self._clock.now()
        try:
            notice = self._cloud.notice()
        except CloudError as error:
            self._fail(error)
            self._pause = _PAUSE_AFTER_FAILURE
            return
        self._failing = False
        self._pause = self._cloud.poll_every
        if notice is None:
            return
        if notice.certain:
            self._over = True
            self._tell(notice)
            left = max(notice.left - _SAFE_BEFORE, min(notice.left / 3, _LEAST))
            self._leave(TakenAway(notice.what, asked + left, self._done))
        elif not self._warned:
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
