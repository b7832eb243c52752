"""The telemetry of one attempt, set up from its journal."""

from collections.abc import Callable
from pathlib import Path

from simagent.domain.keys import STREAMS
from simagent.telemetry.logs import LogShipper
from simagent.telemetry.metrics import Sampler
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
    ) -> None:
        self._clock = ctx.clock
        keys = journal.entry.keys.attempt(journal.entry.epoch)
        store = ctx.ledger.store
        journal.logs.mkdir(exist_ok=True)
        journal.artifacts.mkdir(parents=True, exist_ok=True)
        self._logs = LogShipper(store, keys, {stream: journal.logs / stream for stream in STREAMS})
        self._metrics = MetricsLog(store, keys, journal.metrics)
        self._pump = TelemetryPump(
            logs=self._logs,
            metrics=self._metrics,
            sampler=Sampler(
                pids=pids,
                workdir=Path(journal.artifacts),
                host=str(ctx.identity.machine.get("hostname", "")),
                clock=ctx.clock,
            ),
            clock=ctx.clock,
            on_crash=on_crash,
            pace=ctx.settings.pace,
            name=f"telemetry {journal.entry.task}",
        )

    def start(self) -> None:
        """Start shipping."""
        self._pump.start()

    def stop(self, within: float, *, final: bool = True) -> bool:
        """End shipping within some seconds; tell whether everything is in the store."""
        return self._pump.stop(self._clock.now() + within, final=final)

    def finish(self) -> None:
        """Ship what `stop` could not. Raises StoreError."""
        self._logs.finish()
        self._metrics.ship()
