"""What the processes of a container use: looked at now and then, as its engine does not tell.

Nothing but the last moments before the end is missed: the kernel adds up what a process has used,
and passes the time of those that ended on to their parents, of which the container's init is one.
"""

import os
import time
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from simagent.ports.runtime import StepExit

_FIRST, _LONGEST = 0.05, 2.0
_TICKS = os.sysconf("SC_CLK_TCK")
_TIMES = slice(11, 15)  # of proc_pid_stat(5): user, system, and both of the children that ended


@dataclass
class Usage:
    """What was seen so far; times are seconds."""

    user: float = 0.0
    system: float = 0.0
    largest: int = 0
    pause: float = _FIRST
    looked: float = 0.0

    def due(self) -> float:
        """Give the seconds until the next look: soon at first, as many commands are short."""
        return max(0.0, self.looked + self.pause - time.monotonic())

    def look(self, pids: Iterable[int]) -> None:
        """Look at all processes of a container, the first of them, too."""
        self.looked = time.monotonic()
        self.pause = min(2 * self.pause, _LONGEST)
        user = system = 0
        for pid in pids:
            try:
                stat = Path(f"/proc/{pid}/stat").read_bytes()
                status = Path(f"/proc/{pid}/status").read_bytes()
            except OSError:  # it has ended, and its parent has its times
                continue
            own = [int(field) for field in stat[stat.rindex(b")") + 2 :].split()[_TIMES]]
            user += own[0] + own[2]
            system += own[1] + own[3]
            self.largest = max(self.largest, _peak(status))
        self.user = max(self.user, user / _TICKS)
        self.system = max(self.system, system / _TICKS)

    def of(self, exit_: StepExit) -> StepExit:
        """Say in a step's end what it used, at least."""
        return replace(
            exit_,
            user_seconds=self.user,
            system_seconds=self.system,
            max_rss_bytes=self.largest,
        )


def _peak(status: bytes) -> int:
    for line in status.splitlines():
        if line.startswith(b"VmHWM:"):
            return int(line.split()[1]) * 1024
    return 0
