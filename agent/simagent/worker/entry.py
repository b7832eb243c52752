"""One run on a member: a step of its own, and whichever connection has a hold on it."""

import math
import os
import threading
from collections.abc import Callable
from pathlib import Path

import structlog

from simagent.cluster.messages import Enter, Exited, Sampled
from simagent.ports.clock import Clock, Waitable, Wake
from simagent.ports.runtime import Step, StepExit
from simagent.telemetry.metrics import Sampler

_LAST_BYTES = 2000
_MOST_CHARACTERS = 500

log = structlog.get_logger()


class Entry:
    """A run that was asked for. Who changes it holds its ``lock``.

    ``step`` is None while it is not known whether it runs, ``exited`` is its end once nothing of it
    is left. ``since`` is when it was begun or found again, on the agent's clock.
    """

    def __init__(self, request: Enter, folder: Path, clock: Clock) -> None:
        self.request = request
        self.folder = folder
        self.lock = threading.RLock()
        self.since = clock.now()
        self.image: str | None = None
        self.recorded = False
        """Whether its record is written: it may have been started."""
        self.step: Step | None = None
        self.exited: Exited | None = None
        self.why = ""
        """Why it was told to end, if it was."""
        self.alone_since: float | None = self.since
        """Since when no connection has a hold on it."""
        self._grace = self._stopped = math.inf
        self._asked = threading.Lock()
        self._clock = clock
        self._taken = Wake()

    def held(self) -> Wake:
        """Take it from the connection that has it; give what becomes ready when it is taken."""
        with self.lock:
            self._taken.set()
            self._taken = Wake()
            self.alone_since = None
            return self._taken

    def let_go(self, taken: Wake) -> None:
        """Note that a connection has no hold on it any more, unless another one has."""
        with self.lock:
            if taken is self._taken:
                self.alone_since = self._clock.now()

    def end(self, why: str, grace: float) -> None:
        """Have it ended; returns at once, also while it is being started."""
        with self._asked:  # by the head, for its record, and as the machine goes away
            first, self.why = not self.why, self.why or why
            self._grace = min(grace, self._grace)
        if first:
            attempt = self.request.attempt
            log.info("ranks are told to end", task=attempt.task, epoch=attempt.epoch, why=why)
        if self.lock.acquire(blocking=False):
            try:
                self.obey()
            finally:
                self.lock.release()

    def obey(self) -> None:
        """Stop the step where that was asked for, unless it was stopped so already."""
        if self.why and self.step is not None and self._grace < self._stopped:
            self._stopped = self._grace
            self.step.stop(self._grace)

    def told(self, exit_: StepExit) -> Exited:
        """Tell how it ended, with its last words where that was none too well."""
        message = exit_.message
        if exit_.stopped and self.why:
            message = self.why
        elif exit_.exit_code != 0 and not message:
            message = self._last_words()
        if exit_.reason is not None:
            message = f"{exit_.reason.value}: {message}"
        return Exited(code=exit_.exit_code, signal=exit_.signal, message=message)

    def _last_words(self) -> str:
        for name in ("stderr", "stdout"):
            try:
                with (self.folder / name).open("rb") as file:
                    end = file.seek(0, os.SEEK_END)
                    file.seek(max(0, end - _LAST_BYTES))
                    words = " ".join(file.read().decode(errors="replace").split())
            except OSError:
                continue
            if words:
                return "".join(c for c in words[-_MOST_CHARACTERS:] if c.isprintable())
        return ""


class EntryHold:
    """What a connection has of a run: `simagent.cluster.duties.Hold` tells what each does."""

    def __init__(
        self,
        entry: Entry,
        conclude: Callable[[Entry, StepExit], Exited],
        *,
        host: str,
        workdir: Path,
        clock: Clock,
    ) -> None:
        self._entry = entry
        self._conclude = conclude
        self._taken = entry.held()
        self._sampler = Sampler(pids=self._pids, workdir=workdir, host=host, clock=clock)

    @property
    def taken(self) -> Waitable:
        """Ready once another connection has the run."""
        return self._taken

    def wait(self, timeout: float | None, *wakes: Waitable) -> Exited | None:
        """Give the run's end as soon as nothing of it is left."""
        entry = self._entry
        if entry.exited is None and entry.step is not None:
            exit_ = entry.step.wait(timeout, *wakes)
            if exit_ is not None:
                return self._conclude(entry, exit_)
        return entry.exited

    def sample(self) -> Sampled:
        """Take a sample of the host and of the run."""
        return Sampled(sample=self._sampler.sample())

    def leave(self, grace: float, why: str) -> None:
        """Ask for the run's end. Returns at once."""
        self._entry.end(why, grace)

    def release(self) -> None:
        """Let go of the run."""
        self._entry.let_go(self._taken)

    def _pids(self) -> list[int]:
        step = self._entry.step
        return [] if step is None else step.pids()
