"""Packing beside commands that run: the cores are theirs.

Priorities alone do not do that: they count among the threads of a cgroup or session, and commands
have their own. So a thread that finds it had to wait for a core rests for much longer than it ran.
"""

import threading
import time
from collections.abc import Callable

_REST = 19
_LONGEST = 0.5
_CROWDED = 0.1
"""Share of the time it ran for which a thread waited, from which on it had to share a core."""


class Manners:
    """For the threads of one job, which call `rest` after each piece of work.

    ``yields`` tells whether commands run that go before it.
    """

    def __init__(
        self,
        yields: Callable[[], bool],
        *,
        times: Callable[[], tuple[float, float]] | None = None,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        """``times`` tells for how many seconds a thread has run, and waited for a core."""
        self.yields = yields
        self._times = times or _times
        self._sleep = sleep
        self._seen = threading.local()

    def rest(self) -> None:
        """Sleep, where commands run and this thread waited for a core since it was called last.

        It then gets a twentieth of a core.
        """
        if not self.yields():
            return
        ran, waited = self._times()
        before_ran, before_waited = getattr(self._seen, "times", (ran, waited))
        self._seen.times = ran, waited
        if waited - before_waited > _CROWDED * (ran - before_ran):
            self._sleep(min(_LONGEST, _REST * (ran - before_ran)))


def _times() -> tuple[float, float]:
    """Tell for how many seconds this thread has run, and waited for a core.

    Both are 0 where the kernel does not tell (Documentation/scheduler/sched-stats.rst).
    """
    try:
        with open("/proc/thread-self/schedstat", "rb") as file:
            ran, waited, _ = file.read().split()
    except (OSError, ValueError):
        return 0.0, 0.0
    return int(ran) / 1e9, int(waited) / 1e9
