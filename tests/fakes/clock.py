"""Time that passes only when somebody waits for it."""

import heapq
import itertools
import select
import threading
from collections.abc import Callable

from simagent.ports.clock import SystemClock, Waitable


class FakeClock:
    """A clock whose waits return at once, having moved the time on.

    What `at` planned happens while a wait passes its time. For tests of one thread; what several
    threads or processes do at a time wants `SystemClock`.
    """

    def __init__(self, now: float = 1_000.0, wall: float = 1_700_000_000.0) -> None:
        self._now = now
        self._wall_offset = wall - now
        self._planned: list[tuple[float, int, Callable[[], object]]] = []
        self._numbers = itertools.count()
        self._mutex = threading.RLock()

    def now(self) -> float:
        return self._now

    def wall(self) -> float:
        return self._now + self._wall_offset

    def wait(self, timeout: float | None, *sources: Waitable) -> bool:
        """Return True if a source is ready, by itself or by what was planned; else False, later."""
        with self._mutex:
            deadline = None if timeout is None else self._now + max(0.0, timeout)
            while not _ready(sources):
                if self._planned and (deadline is None or self._planned[0][0] <= deadline):
                    self._next()
                elif deadline is None:
                    raise AssertionError("this would wait for ever: nothing is planned")
                else:
                    self._now = max(self._now, deadline)
                    return False
            return True

    def advance(self, seconds: float) -> None:
        """Let time pass, with all that was planned for it."""
        self.wait(seconds)

    def at(self, when: float, action: Callable[[], object]) -> None:
        """Plan to call ``action`` as soon as `now` is ``when``."""
        heapq.heappush(self._planned, (when, next(self._numbers), action))

    def after(self, seconds: float, action: Callable[[], object]) -> None:
        """Plan to call ``action`` when ``seconds`` have passed."""
        self.at(self._now + seconds, action)

    def jump_wall(self, seconds: float) -> None:
        """Set the wall clock on, or back, as an administrator would; `now` does not move."""
        self._wall_offset += seconds

    def _next(self) -> None:
        when, _, action = heapq.heappop(self._planned)
        self._now = max(self._now, when)
        action()


def _ready(sources: tuple[Waitable, ...]) -> bool:
    poller = select.poll()
    for source in sources:
        poller.register(source.fileno(), select.POLLIN)
    return bool(poller.poll(0))


class FastClock:
    """The machine's clocks, so many times as fast: hours of threads that wait pass in seconds."""

    def __init__(self, times: float) -> None:
        self._times = times
        self._real = SystemClock()
        self._began = self._real.now()
        self._wall = self._real.wall()

    def now(self) -> float:
        return self._began + (self._real.now() - self._began) * self._times

    def wall(self) -> float:
        return self._wall + self.now() - self._began

    def wait(self, timeout: float | None, *sources: Waitable) -> bool:
        return self._real.wait(None if timeout is None else timeout / self._times, *sources)
