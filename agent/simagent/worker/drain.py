"""Drain: an agent takes no more tasks, and ends when those that it runs have ended.

It is asked for by a file in the state folder, which the agent looks at twice a second. A signal to
the process named in the lock file could hit another one that got its number, or a `simagent run`;
a socket is more to set up and to keep safe. A file needs no more than the right to write to the
folder, and it stays: an agent that crashes or is restarted while it drains goes on with that. It
ends with what it was for: the agent removes it when it has drained, and one from before the machine
was booted does not count.
"""

from collections.abc import Callable
from pathlib import Path

import structlog

from simagent.ports.clock import Clock, Waitable
from simagent.worker.identity import boot_id

_EVERY = 0.5

log = structlog.get_logger()


class DrainFile:
    """The wish that the agent of a state folder drain."""

    def __init__(self, state_dir: Path) -> None:
        self._path = state_dir / "drain"
        self._boot_id = boot_id()

    @property
    def asked(self) -> bool:
        """Whether the agent is to drain."""
        try:
            return self._path.read_text(errors="replace") == self._boot_id
        except OSError:
            return False

    def ask(self) -> None:
        """Let the agent drain. Raises OSError."""
        temporary = self._path.with_suffix(".new")
        temporary.write_text(self._boot_id)
        temporary.replace(self._path)

    def withdraw(self) -> None:
        """Let the agent take tasks. Raises OSError."""
        self._path.unlink(missing_ok=True)

    def watch(self, clock: Clock, stop: Waitable, changed: Callable[[], None]) -> None:
        """Call ``changed`` whenever it is asked for or withdrawn, until ``stop`` is ready."""
        before = False
        while True:
            if self.asked != before:
                before = not before
                log.info("no more tasks are taken" if before else "tasks are taken again")
                changed()
            if clock.wait(_EVERY, stop):
                return
