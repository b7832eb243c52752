"""Time, and waiting, as the core sees them: injected, so that no test sleeps.

Deadlines use the boot-time clock, which goes on while a machine is suspended and never jumps. No
two machines' clocks are ever compared: wall time is for people to read.
"""

import math
import os
import select
import time
from typing import Protocol

_LONGEST_WAIT = 86_400.0
"""Seconds: poll(2) takes no more than some 24 days, in milliseconds."""


class Waitable(Protocol):
    """Anything that select() can wait for; ready means readable."""

    def fileno(self) -> int:
        """Give the file descriptor."""


class Clock(Protocol):
    """The two clocks, and the one way to wait."""

    def now(self) -> float:
        """Give seconds of CLOCK_BOOTTIME."""

    def wall(self) -> float:
        """Give seconds since the Unix epoch."""

    def wait(self, timeout: float | None, *sources: Waitable) -> bool:
        """Wait until a source is ready (True) or ``timeout`` seconds have passed (False).

        False also after a day: whoever waits for longer looks at the clock and waits again.
        """


class SystemClock:
    """The machine's own clocks."""

    def now(self) -> float:
        """Give seconds of CLOCK_BOOTTIME."""
        return time.clock_gettime(time.CLOCK_BOOTTIME)

    def wall(self) -> float:
        """Give seconds since the Unix epoch."""
        return time.time()

    def wait(self, timeout: float | None, *sources: Waitable) -> bool:
        """Wait until a source is ready (True) or ``timeout`` seconds have passed (False)."""
        poller = select.poll()
        for source in sources:
            poller.register(source.fileno(), select.POLLIN)
        return bool(poller.poll(poll_timeout(timeout)))


def poll_timeout(seconds: float | None) -> int | None:
    """Give what poll() takes for a wait of some seconds, rounded up, a day at most."""
    if seconds is None:
        return None
    return max(0, math.ceil(min(seconds, _LONGEST_WAIT) * 1000))


class Wake:
    """An event that threads set and select() waits for. Safe to set in a signal handler."""

    _fd = -1

    def __init__(self) -> None:
        self._fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)

    def fileno(self) -> int:
        """Give the file descriptor."""
        return self._fd

    def set(self) -> None:
        """Make every wait on it return, until it is cleared."""
        os.eventfd_write(self._fd, 1)

    def clear(self) -> None:
        """Forget that it was set."""
        try:
            os.eventfd_read(self._fd)
        except BlockingIOError:
            return

    def is_set(self) -> bool:
        """Tell whether a wait would return at once."""
        return SystemClock().wait(0.0, self)

    def __del__(self) -> None:
        if self._fd >= 0:  # else there was no file left to make it of
            os.close(self._fd)
