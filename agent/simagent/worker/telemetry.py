"""The telemetry of one attempt, set up from its journal."""

from collections.abc import Callable, Iterable

from simagent.domain.keys import STREAMS, AttemptKeys
from simagent.telemetry.logs import LogShipper
from simagent.telemetry.metrics import Sample, Sampler
from simagent.telemetry.pump import TelemetryPump
from simagent.telemetry.segments import MetricsLog
from simagent.worker.context import Context
from simagent.worker.journal import Journal


class Telemetry:
    """Ships an attempt's logs and metrics while it runs, and the rest of them at its end."""

    def __init__(
        self,
        ctx: Context,
        journal: Journal,
        pids: Callable[[], list[int]],
        on_crash: Callable[[BaseException], None],
        *,
        others: Callable[[], Iterable[Sample]] = tuple,
    ) -> None:
        """``others`` takes away what was sampled on other hosts of the attempt since last time."""
        self._clock = ctx.clock
        self._store = ctx.ledger.store
        self._journal = journal
        journal.logs.mkdir(exist_ok=True)
        self._pump = TelemetryPump(
            logs=self._logs(),
            metrics=self._metrics(),
            sampler=Sampler(
                pids=pids,
                workdir=journal.base,
                host=str(ctx.identity.machine.get("hostname", "")),
                clock=ctx.clock,
            ),
            others=others,
            clock=ctx.clock,
            on_crash=on_crash,
            pace=ctx.settings.pace,
            name=f"telemetry {journal.entry.task}",
        )

    @property
    def last(self) -> Sample:
        """The last sample of this host. Any thread may ask."""
        return self._pump.last

    def start(self) -> None:
        """Start shipping."""
        self._pump.start()

    def follow(self, until: float) -> None:
        """Ship as somebody reads along, until this time of the clock's `now`."""
        self._pump.follow(until)

    def stop(self, within: float, *, final: bool = True) -> bool:
        """End shipping within some seconds; tell whether everything is in the store."""
        return self._pump.stop(self._clock.now() + within, final=final)

    def finish(self) -> None:
        """Ship what `stop` could not. Raises StoreError.

        With shippers of its own: a call of the stopped thread may still be hanging in the others.
        """
        self._logs().finish()
        metrics = self._metrics()
        while metrics.ship():
            continue

    def cut(self) -> None:
        """Leave out of the logs what is not in the store yet, and say so there.

        Raises StoreError, OSError; can then be repeated.
        """
        entry = self._journal.entry
        if not entry.cut_at:
            self._journal.write(cut_at=self._logs().missing())
        self._logs().finish()

    def _logs(self) -> LogShipper:
        files = {stream: self._journal.logs / stream for stream in STREAMS}
        most = self._journal.entry.max_log_bytes
        cut_at = self._journal.entry.cut_at
        return LogShipper(self._store, self._keys, files, max_bytes=most, cut_at=cut_at)

    def _metrics(self) -> MetricsLog:
        return MetricsLog(self._store, self._keys, self._journal.metrics)

    @property
    def _keys(self) -> AttemptKeys:
        return self._journal.entry.keys.attempt(self._journal.entry.epoch)
