"""Drain: an agent takes no more tasks, and ends when those that it runs have ended.

It may also be told to give back what runs, by a time: then it does what it does when its machine is
taken away.

It is asked for by a file in the state folder, which the agent looks at twice a second. A signal to
the process named in the lock file could hit another one that got its number, or a `simagent run`;
a socket is more to set up and to keep safe. A file needs no more than the right to write to the
folder, and it stays: an agent that crashes or is restarted while it drains goes on with that. It
ends with what it was for: the agent removes it when it has drained, and one from before the machine
was booted does not count, nor does its time, which is of CLOCK_BOOTTIME.
"""

import secrets
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import structlog

from simagent.ports.clock import Clock, Waitable
from simagent.ports.passing import passes
from simagent.worker.identity import boot_id
from simagent.worker.orders import Preempted

_EVERY = 0.5
_GIVE_BACK = "give back until"

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Drain:
    """What is asked for. With ``until``, a time of the clock, tasks are given back until then."""

    until: float | None = None


class DrainFile:
    """The wish that the agent of a state folder drain."""

    def __init__(self, state_dir: Path) -> None:
        self._path = state_dir / "drain"
        self._boot_id = boot_id()
        self._known: Drain | None = None
        """What was asked for when that was read last."""

    @property
    def asked(self) -> bool:
        """Whether the agent is to drain."""
        return self.wish is not None

    @property
    def wish(self) -> Drain | None:
        """What the agent is to do; None: nothing."""
        try:
            known = self._read(self._path.read_text(errors="replace"))
        except OSError as error:
            known = self._known if passes(error) else None  # the first: it stands as it did
        self._known = known
        return known  # other threads ask, too

    def _read(self, text: str) -> Drain | None:
        first, *more = text.split("\n")
        if first != self._boot_id:
            return None
        with suppress(ValueError):
            for line in more:
                if line.startswith(_GIVE_BACK):
                    return Drain(float(line.removeprefix(_GIVE_BACK)))
        return Drain()

    def ask(self, until: float | None = None) -> None:
        """Let the agent drain, and give back its tasks by a time where one is named.

        Raises OSError.
        """
        text = self._boot_id if until is None else f"{self._boot_id}\n{_GIVE_BACK} {until:.3f}"
        # Two may ask at a time: each by a file of its own.
        temporary = self._path.with_suffix(f".{secrets.token_hex(4)}.new")
        try:
            temporary.write_text(text)
            temporary.replace(self._path)
        finally:
            temporary.unlink(missing_ok=True)

    def withdraw(self) -> None:
        """Let the agent take tasks. Raises OSError."""
        self._path.unlink(missing_ok=True)

    def watch(
        self,
        clock: Clock,
        stop: Waitable,
        changed: Callable[[], None],
        leave: Callable[[Preempted], None],
    ) -> None:
        """Call ``changed`` whenever it is asked for or withdrawn, until ``stop`` is ready.

        ``leave`` is called once, where tasks are to be given back.
        """
        before = left = False
        while True:
            wish = self.wish
            if (wish is not None) != before:
                before = not before
                log.info("no more tasks are taken" if before else "tasks are taken again")
                changed()
            if wish is not None and wish.until is not None and not left:
                left = True
                log.info("tasks are given back", seconds=round(wish.until - clock.now(), 1))
                leave(Preempted("the agent was told to give its tasks back", wish.until))
            if clock.wait(_EVERY, stop):
                return
