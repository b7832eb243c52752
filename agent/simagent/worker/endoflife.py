"""When an agent ends by itself: it had nothing to do for long, or its machine's time is over.

The rule alone: the loop asks it once a turn, and what it decides upon is done by an `End`.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Protocol

import structlog

from simagent.domain.events import Event
from simagent.ports.clock import Clock
from simagent.worker.orders import Preempted

_FIRST_PAUSE = 30.0
_LONGEST_PAUSE = 900.0
_DAY = 86_400.0

log = structlog.get_logger()


class EndFailedError(Exception):
    """The end could not be brought about; the message says why. It is tried again."""


class EndRefusedError(EndFailedError):
    """The machine is to stay: whoever decides about it said so."""


class End(Protocol):
    """What is done at the end: it may end the machine, or leave that to others."""

    name: str
    """What it does, for people: such as ``poweroff``."""

    def __call__(self, *, idle: bool) -> None:
        """Do it; ``idle``: nobody needs the machine, else it may be replaced. Takes its time.

        Raises `EndFailedError`, `EndRefusedError`.
        """


class Exit:
    """The end of the agent is all."""

    name = "exit"

    def __call__(self, *, idle: bool) -> None:
        """Nothing more is to be done."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """How long, in seconds; None: without end.

    ``lifetime`` counts from ``born``, a time of the clock. Tasks that run when it is over may run
    on for ``grace``.
    """

    idle: float | None = None
    lifetime: float | None = None
    grace: float | None = None
    born: float = 0.0


EXIT = Exit()
NO_END = Terms()


class EndOfLife:
    """Watches over one agent. All of it is called by one thread, but for what ``begin`` starts."""

    def __init__(
        self, terms: Terms, end: End, clock: Clock, begin: Callable[[Callable[[], None]], object]
    ) -> None:
        """``begin`` runs something beside the caller, and has it look again afterwards."""
        self._terms = terms
        self._lives_until = math.inf if terms.lifetime is None else terms.born + terms.lifetime
        self._runs_until = math.inf if terms.grace is None else self._lives_until + terms.grace
        self._end = end
        self._clock = clock
        self._begin = begin
        self._idle_since = clock.now()
        self._not_before = 0.0
        self._failures = 0
        self._trying = False
        self._expired = False
        self._trouble = ""
        self._shown = ""
        self._order: Preempted | None = None
        self.over = False
        """Whether the end was brought about: the agent leaves."""

    @property
    def closing(self) -> bool:
        """Whether no more is taken: not while the end is being brought about, either."""
        return self._expired or self._trying or self.over

    @property
    def left(self) -> float:
        """Seconds until `look` may find something new; at most a day."""
        now = self._clock.now()
        due = [self._lives_until, self._runs_until, self._due]
        return min([_DAY, *(when - now for when in due if when > now)])

    @property
    def why(self) -> str:
        """Tell why it ends, where it does."""
        if self._expired:
            return f"the lifetime of {self._terms.lifetime:g} s is over"
        return f"nothing to do for {self._terms.idle or 0.0:g} s"

    @property
    def status(self) -> str:
        """Tell people what is ahead; empty: nothing is near."""
        what = f"{self.why}: {self._end.name}" if self._expired else self._end.name
        if self._trying or self.over:
            return f"{self.why}: {self._end.name} is under way"
        if self._trouble:
            return f"{what}: {self._trouble}"
        return self.why if self._expired else self._shown

    def look(self, *, busy: bool, wanted: bool = False) -> Preempted | None:
        """Find out what is due; give the order for what still runs when the grace is over.

        ``busy``: something runs here, or is not settled yet: no end is brought about. ``wanted``:
        something may be asked of the agent any moment, so that it does not count as idle.
        """
        now = self._clock.now()
        if self._trying or self.over:
            return None
        if now >= self._lives_until:
            self._expire()
        if busy or wanted:
            self._idle_since, self._shown = now, ""
            if not self._expired:
                self._forget_trouble()
        if busy:
            if now >= self._runs_until:
                self._order = self._order or Preempted(f"{self.why}, and the grace after it")
                return self._order
        elif now >= self._due:
            self._try()
        elif self._due < math.inf and not (wanted or self._shown):
            self._shown = f"{self._end.name} at {self._wall(self._due)} if nothing comes"
        return None

    # --- What `look` comes to -----------------------------------------------------------------

    @property
    def _due(self) -> float:
        """Tell when an agent with nothing to do ends."""
        timeout = math.inf if self._terms.idle is None else self._terms.idle
        return max(0.0 if self._expired else self._idle_since + timeout, self._not_before)

    def _expire(self) -> None:
        if not self._expired:
            self._expired = True
            self._forget_trouble()
            log.info(Event.LIFE_OVER, why=self.why, action=self._end.name)

    def _try(self) -> None:
        self._trying = True
        if not self._expired:
            log.info(Event.LIFE_OVER, why=self.why, action=self._end.name)
        self._begin(self._bring_about)

    def _bring_about(self) -> None:
        """Have the end done; carry on where that fails. Of a thread of its own."""
        try:
            self._end(idle=not self._expired)
        except EndRefusedError as error:
            again = self._terms.idle if not self._expired else None
            self._carry_on(error, again or self._pause)
        except EndFailedError as error:
            self._carry_on(error, self._pause)
        else:
            self.over = True
        finally:
            self._trying = False

    @property
    def _pause(self) -> float:
        return min(_LONGEST_PAUSE, _FIRST_PAUSE * 2.0 ** min(self._failures, 10))

    def _carry_on(self, error: EndFailedError, again_in: float) -> None:
        log.warning(
            Event.END_FAILED, action=self._end.name, error=str(error), again_in=round(again_in)
        )
        self._failures += 1
        self._not_before = self._clock.now() + again_in
        self._trouble = f"{error}; again at {self._wall(self._not_before)}"

    def _forget_trouble(self) -> None:
        self._trouble, self._failures, self._not_before = "", 0, 0.0

    def _wall(self, when: float) -> str:
        wall = self._clock.wall() + when - self._clock.now()
        return f"{datetime.fromtimestamp(wall, UTC):%H:%M:%S} UTC"
