"""What reaches a running attempt from outside, and ends or interrupts it."""

import threading
from collections.abc import Callable

from simagent.domain.reasons import Reason
from simagent.domain.state import Attempt, Kill
from simagent.ports.clock import Wake


class Interrupted(Exception):
    """An attempt does not go on here. ``rank`` tells which order outweighs which.

    All that it asks for has to be done at ``until``, in seconds of the clock, where that is known.
    """

    rank = 0
    until: float | None = None
    reason = Reason.AGENT_ERROR
    """Why a step is told to end for it."""

    def outweighs(self, other: "Interrupted | None") -> bool:
        """Tell whether it is to be obeyed in the place of another one that stands.

        Of the same kind it is the one that leaves less time.
        """
        if other is None or self.rank != other.rank:
            return other is None or self.rank > other.rank
        return self.until is not None and (other.until is None or self.until < other.until)


class Partitioned(Interrupted):
    """The store was unreachable for longer than the task may go on without it."""

    rank = 1
    reason = Reason.PARTITIONED


class Preempted(Interrupted):
    """The machine goes away: the task is given back."""

    rank = 2
    reason = Reason.PREEMPTED

    def __init__(
        self,
        message: str,
        until: float | None = None,
        over: Callable[[], None] = lambda: None,
    ) -> None:
        """``over`` is called by the agent when nothing is left here that was to be done."""
        super().__init__(message)
        self.until = until
        self.over = over


class TakenAway(Preempted):
    """The cloud takes the machine. If it stays after all, an agent is to work on it again."""


class Detached(Interrupted):
    """The agent stops; the steps go on and the next incarnation attaches."""

    rank = 3


class LeaseLost(Interrupted):
    """Another holds the task: whatever runs here is ended and nothing is reported."""

    rank = 4
    reason = Reason.AGENT_LOST


class Orders:
    """Flags that other threads raise and the attempt's thread obeys."""

    def __init__(self) -> None:
        self.wake = Wake()
        self.kill: Kill | None = None
        self.no_space: str | None = None
        """That the disk is about to be full, in words."""
        self.interrupted: Interrupted | None = None
        """The standing order not to go on, if any."""
        self._lock = threading.RLock()

    def ask_kill(self, kill: Kill) -> None:
        """Somebody asked for the task's end."""
        if self.kill is None:
            self.kill = kill
            self.wake.set()

    def tell_no_space(self, lack: str) -> None:
        """The disk is about to be full: the task has to end."""
        if self.no_space is None:
            self.no_space = lack
            self.wake.set()

    @property
    def to_end(self) -> bool:
        """Whether the task has to end, here and now."""
        return self.kill is not None or self.no_space is not None

    def interrupt(self, order: Interrupted) -> None:
        """Do not go on here, unless an order that outweighs this one stands already."""
        with self._lock:  # or one that came meanwhile, and outweighs it, would be lost
            if not order.outweighs(self.interrupted):
                return
            self.interrupted = order
        self.wake.set()

    def noted(self, attempt: Attempt) -> Attempt:
        """Note in what is told of an attempt that its machine goes away, if it does.

        Where there is no time to give it back, others learn by it that it was no loss.
        """
        order = self.interrupted
        if not isinstance(order, Preempted):
            return attempt
        return attempt.with_(reason=Reason.PREEMPTED, message=str(order))

    def time_for(self, most: float, now: float, share: float = 1.0) -> float:
        """Tell how many seconds something may take: ``most``, or a share of all that is left."""
        order = self.interrupted
        if order is None or order.until is None:
            return most
        return min(most, share * max(0.0, order.until - now))

    def check(self) -> None:
        """Raise the standing order not to go on, if there is one."""
        if self.interrupted is not None:
            raise self.interrupted
