"""Whether an engine answers: says so once when it stops and once when it is back."""

import random
from collections.abc import Iterator
from contextlib import contextmanager

import structlog

from simagent.domain.events import Event
from simagent.ports.clock import Clock

_LONGEST_PAUSE = 5.0

log = structlog.get_logger()


class Health:
    """The health of one engine, as the main loop sees it. Failures pause its use ever longer."""

    def __init__(self, clock: Clock, *, lost: Event, back: Event, doubt: str = "") -> None:
        """``doubt`` is why it could not be used before, if it could not: it has to be tried."""
        self._clock = clock
        self._lost = lost
        self._back = back
        self._failures = int(bool(doubt))
        self._since = clock.now()
        self._until = 0.0
        self.trouble = doubt
        """Why it does not answer; empty: it did."""

    @property
    def pause_left(self) -> float:
        """Seconds until it is to be used again."""
        return max(0.0, self._until - self._clock.now())

    @property
    def failing(self) -> bool:
        """Whether it did not answer when it was last used."""
        return self._failures > 0

    @property
    def paused(self) -> bool:
        """Whether it is to be left alone for now."""
        return self._failures > 0 and self.pause_left > 0.0

    @contextmanager
    def watch(self, kind: type[Exception], *, proof: bool = True) -> Iterator[None]:
        """Take an exception of this kind for an outage, the end of the block for health.

        Without ``proof`` its end says nothing: the block need not have used the engine.
        """
        try:
            yield
        except kind as error:
            if self._failures == 0:
                self._since = self._clock.now()
                log.warning(self._lost, error=str(error))
            pause = min(_LONGEST_PAUSE, 2.0 ** min(self._failures, 10))
            self.trouble = str(error)  # first: others see that it fails, and ask why
            self._failures += 1
            self._until = self._clock.now() + pause * random.uniform(0.5, 1.0)  # noqa: S311
            return
        if self._failures and proof:
            log.info(self._back, seconds=round(self._clock.now() - self._since, 1))
            self._failures, self.trouble = 0, ""
