"""The telemetry thread of an attempt: it ships logs, takes samples and ships those."""

import random
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import structlog

from simagent.ports.clock import Clock, Wake
from simagent.ports.store import StoreError
from simagent.telemetry.logs import LogShipper
from simagent.telemetry.metrics import Sample, Sampler
from simagent.telemetry.segments import MetricsLog

_CHECK_SECONDS = 1.0
_MAX_PAUSE = 30.0

_log = structlog.get_logger()


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """How long bytes may wait until they are shipped, and samples until they are taken. Seconds.

    ``first`` holds until something was shipped, ``followed`` while somebody follows the log,
    ``idle`` otherwise. Full chunks are shipped within a second in any case. ``followed`` leaves
    a follower two seconds to see within three what was printed.
    """

    first: float = 15.0
    followed: float = 1.0
    idle: float = 60.0
    sample: float = 5.0
    segment: float = 60.0


REMOTE_PACE = Pace()
"""For a store that charges for every write."""
LOCAL_PACE = Pace(first=0.25, followed=0.25, idle=0.25, segment=15.0)
"""For a store on this machine, where a write costs next to nothing."""


class _Lane:
    """One kind of work that may fail for a while: warns once, then pauses ever longer."""

    def __init__(self, name: str, clock: Clock) -> None:
        self._name = name
        self._clock = clock
        self._failures = 0
        self.retry_at = clock.now()

    @property
    def failing(self) -> bool:
        """Whether the last try failed."""
        return self._failures > 0

    def attempt(self, action: Callable[[], object]) -> bool:
        """Do it and tell whether it worked."""
        try:
            action()
        except (StoreError, OSError) as error:
            if not self.failing:
                _log.warning("telemetry is late", late=self._name, error=str(error))
            pause = min(_MAX_PAUSE, 2.0 ** min(self._failures, 10))
            self._failures += 1
            self.retry_at = self._clock.now() + pause * random.uniform(0.5, 1.0)  # noqa: S311
            return False
        if self.failing:
            _log.info("telemetry goes on", late=self._name)
        self._failures = 0
        return True


@dataclass(frozen=True, slots=True)
class _Ending:
    """How to end: until when (seconds of the clock), and whether the steps are over."""

    deadline: float
    final: bool


class TelemetryPump:
    """Ships the telemetry of one attempt from a thread of its own.

    A store or disk that fails only delays it: one warning, then ever longer pauses. Any other
    exception is a bug: the thread ends and ``on_crash`` gets it. Everything is found again in
    the store, so a restarted agent just makes a new pump for the attempt.
    """

    def __init__(
        self,
        *,
        logs: LogShipper,
        metrics: MetricsLog,
        sampler: Sampler,
        clock: Clock,
        on_crash: Callable[[Exception], None],
        pace: Pace = REMOTE_PACE,
        name: str = "telemetry",
        others: Callable[[], Iterable[Sample]] = tuple,
    ) -> None:
        """``others`` takes away what was sampled elsewhere since it was called last."""
        self._logs = logs
        self._metrics = metrics
        self._sampler = sampler
        self._others = others
        self._clock = clock
        self._on_crash = on_crash
        self._pace = pace
        self._wake = Wake()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._sampling = _Lane("samples", clock)
        self._log_lane = _Lane("logs", clock)
        self._metrics_lane = _Lane("metrics", clock)
        self._ending: _Ending | None = None
        self._complete = False
        self.last: Sample = {}
        """The last sample that was taken here."""
        self._flushed: float | None = None
        self._began = clock.now()
        self._follow_until = self._began
        self._sample_at = self._began
        self._segment_at = self._began + pace.first

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def follow(self, until: float) -> None:
        """Ship at the pace of a follower until this time, in seconds of the clock's `now`."""
        self._follow_until = max(self._follow_until, until)
        self._wake.set()

    def stop(self, deadline: float, *, final: bool = True) -> bool:
        """Ship the rest, trying until ``deadline`` (seconds of the clock's `now`); end the thread.

        ``final`` also joins the logs' small chunks and checks them, when the steps are over;
        without it the attempt goes on and a later pump takes over. Tells whether everything is
        in the store. May be called again, with an earlier deadline too.
        """
        if self._ending is None or deadline < self._ending.deadline:
            self._ending = _Ending(deadline, final)
        self._wake.set()
        if self._thread.is_alive():
            # A second more than is left: the last call may just be coming back.
            self._thread.join(max(0.0, deadline - self._clock.now()) + 1.0)
        return self._complete

    def turn(self) -> float:
        """Do what is due and return the seconds until the next turn."""
        if self._clock.now() >= self._sample_at:
            self._sample_at = self._clock.now() + self._pace.sample
            self._sampling.attempt(self._take_sample)
        if self._clock.now() >= self._log_lane.retry_at:
            self._log_lane.attempt(self._ship_logs)
        if self._clock.now() >= self._segment_due() and self._metrics_lane.attempt(
            self._metrics.ship
        ):
            self._segment_at = self._clock.now() + self._pace.segment
        now = self._clock.now()
        logs_at = max(now + self._check_after(), self._log_lane.retry_at)
        return max(0.0, min(self._sample_at, logs_at, self._segment_due()) - now)

    def _run(self) -> None:
        try:
            while self._ending is None:
                self._clock.wait(self.turn(), self._wake)
                self._wake.clear()
            self._complete = self._finish()
        except Exception as error:  # noqa: BLE001 - whatever it is, the supervisor must know
            self._on_crash(error)

    def _flush_after(self) -> float:
        """Tell how long a byte may wait now."""
        waits = self._pace.first if self._flushed is None else self._pace.idle
        followed = self._clock.now() < self._follow_until
        return min(waits, self._pace.followed) if followed else waits

    def _flush_at(self) -> float:
        """Tell when to ship what does not fill a chunk."""
        return (self._began if self._flushed is None else self._flushed) + self._flush_after()

    def _check_after(self) -> float:
        """Tell after how many seconds to look at the files again."""
        if self._logs.behind:
            return 0.0
        until_flush = self._flush_at() - self._clock.now()
        # Where the first flush is due, it waits for the first byte.
        return min(_CHECK_SECONDS, until_flush if until_flush > 0 else self._flush_after())

    def _segment_due(self) -> float:
        return max(self._segment_at, self._metrics_lane.retry_at)

    def _ship_logs(self) -> None:
        now = self._clock.now()
        flush = now >= self._flush_at()
        shipped = self._logs.ship(flush=flush)
        if flush and (shipped or self._flushed is not None):
            self._flushed = now

    def _take_sample(self) -> None:
        self.last = self._sampler.sample()
        self._metrics.append(self.last)
        for sample in self._others():
            self._metrics.append(sample)

    def _finish(self) -> bool:
        """Ship all until it is done or the deadline has come; tell which."""
        self._sampling.attempt(self._take_sample)
        while self._ending is not None:
            logs = self._log_lane.attempt(self._ship_rest) and not self._logs.behind
            if logs and self._ending.final:
                logs = self._log_lane.attempt(self._logs.finish)
            metrics = self._metrics_lane.attempt(self._ship_samples)
            now = self._clock.now()
            if (logs and metrics) or now >= self._ending.deadline:
                return logs and metrics
            lane = self._metrics_lane if logs else self._log_lane
            until = min(self._ending.deadline, lane.retry_at) if lane.failing else now
            self._clock.wait(max(0.0, until - now), self._wake)
            self._wake.clear()
        return False

    def _ship_rest(self) -> None:
        """Ship what is left; of a long backlog, a part."""
        self._logs.ship(flush=True)

    def _ship_samples(self) -> None:
        while self._metrics.ship():
            continue
