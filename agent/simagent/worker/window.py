"""What others see of an agent while it runs: a socket of this machine, and metrics if wanted."""

import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self

from simagent.ports.clock import Clock, Waitable, Wake
from simagent.worker.snapshot import Snapshot, Source
from simagent.worker.statussocket import StatusSocket

_END_WITHIN = 1.0


class Shutter(Protocol):
    """Something else that shows snapshots, such as a server of metrics."""

    trouble: str
    """Why it does not; empty: it does."""

    def run(self, stop: Waitable) -> None:
        """Show them until ``stop`` is ready."""


class Window:
    """Open as long as it is a context: from before an agent is made until it has ended.

    Its threads hold up nothing, and end nothing: what cannot be seen works all the same.
    """

    def __init__(
        self,
        state_dir: Path,
        clock: Clock,
        first: Source,
        more: Callable[[Source], Shutter] | None = None,
    ) -> None:
        """``first`` is shown until there is more to see; ``more`` makes what shows it elsewhere."""
        self._source = first
        self._socket = StatusSocket(state_dir, clock, lambda: self.look().as_dict())
        self._more = None if more is None else more(self.look)
        self._stop = Wake()
        self._threads: list[threading.Thread] = []

    def show(self, source: Source) -> None:
        """Show another agent's snapshots from now on."""
        self._source = source

    def look(self) -> Snapshot:
        """Take a snapshot."""
        seen = self._source()
        if self._more is not None and self._more.trouble:
            return replace(seen, notices=(*seen.notices, self._more.trouble))
        return seen

    def __enter__(self) -> Self:
        shutters = {"status": self._socket.run}
        if self._more is not None:
            shutters["metrics"] = self._more.run
        for name, run in shutters.items():
            thread = threading.Thread(target=run, args=(self._stop,), name=name, daemon=True)
            thread.start()
            self._threads.append(thread)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(_END_WITHIN)
