"""What the agent works with, in which version: asked beside all else, as some take seconds."""

import platform
import threading
from collections.abc import Callable, Mapping

import structlog

from simagent import __version__
from simagent.ports.clock import Clock, Wake
from simagent.ports.launcher import LaunchError, Launchers
from simagent.ports.runtime import Runtime
from simagent.worker.journal import FORMAT

_FRESH = 600.0
_PATIENCE = 1.0

log = structlog.get_logger()

OWN: Mapping[str, str] = {
    "simagent": __version__,
    "python": platform.python_version(),
    "journal": str(FORMAT),
}
"""Of the agent itself."""


class Versions:
    """Tells the versions, as they were asked for at most ten minutes ago.

    Nobody asks before somebody wants to know; who does waits for a second at most.
    """

    def __init__(self, ask: Callable[[], Mapping[str, str]], clock: Clock) -> None:
        self._ask = ask
        self._clock = clock
        self._known: Mapping[str, str] = {}
        self._asked: float | None = None
        self._lock = threading.Lock()
        self._there = Wake()

    def tell(self) -> Mapping[str, str]:
        """Give what is known. Any thread may ask."""
        now = self._clock.now()
        with self._lock:
            first = self._asked is None
            if first or now - (self._asked or 0.0) > _FRESH:
                self._asked = now
                threading.Thread(target=self._look, name="versions", daemon=True).start()
        if first:
            self._clock.wait(_PATIENCE, self._there)
        return {**OWN, **self._known}

    def _look(self) -> None:
        try:
            self._known = self._ask()
        except Exception as error:  # noqa: BLE001 - nothing hangs on it
            log.debug("versions not known", error=repr(error))
        self._there.set()


def ask_engines(runtimes: Mapping[str, Runtime], mpi: str) -> Mapping[str, str]:
    """Ask what runs containers here; takes seconds where one hangs. ``mpi`` starts ranks."""
    found = {
        name: runtime.trouble() or runtime.about()[0]
        for name, runtime in runtimes.items()
        if name != "process"
    }
    return {name: text for name, text in {**found, "mpi": mpi}.items() if text}


def ask_mpi(launchers: Launchers) -> str:
    """Ask which MPI starts ranks here; empty: none."""
    try:
        return launchers.find(None).mpi
    except LaunchError:
        return ""
