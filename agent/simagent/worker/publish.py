"""FINAL's work: what the run made goes into the store, with its logs and metrics beside it."""

from collections.abc import Callable
from functools import partial
from math import inf
from pathlib import Path

import structlog

from simagent.domain.keys import STREAMS, Stream
from simagent.domain.reasons import Reason
from simagent.domain.spec import Spec
from simagent.domain.state import Output
from simagent.ports.store import StoreError, StoreForbiddenError, StoreUnavailableError
from simagent.telemetry.segments import write_csv
from simagent.telemetry.spool import count_line, cut_line
from simagent.telemetry.timeline import Timeline
from simagent.transfer.outputs import EMPTY, Snapshot, select, snapshot
from simagent.transfer.publishing import Extra, Uploaded, upload_outputs
from simagent.worker.context import Context
from simagent.worker.disk import is_no_space
from simagent.worker.holding import Holding
from simagent.worker.journal import ARTIFACTS, Journal
from simagent.worker.orders import Orders
from simagent.worker.room import NoRoomError, Patience

_TAIL_BYTES = 4096
_TAIL_LINES = 20
_SHARE_TO_PUBLISH = 0.8  # of the time left
_PASSING = (StoreUnavailableError, StoreForbiddenError)

log = structlog.get_logger()


class OutputFailedError(Exception):
    """The outputs cannot be published; the message says why."""

    def __init__(self, message: str, reason: Reason = Reason.OUTPUT_FAILED) -> None:
        super().__init__(message)
        self.reason = reason


class UnreadOutputsError(OutputFailedError):
    """Some outputs cannot be read; what can be is published as `output`."""

    def __init__(self, message: str, output: Output) -> None:
        super().__init__(message)
        self.output = output


def publish(
    ctx: Context,
    spec: Spec,
    journal: Journal,
    timeline: Timeline,
    holding: Holding,
    *,
    yields: Callable[[], bool] = lambda: False,
    orders: Orders | None = None,
    reason: Reason | None = None,
) -> Output:
    """Pack and upload the outputs; may be repeated after a crash anywhere.

    On one core alone while ``yields``. A task that failed for the ``reason`` that its machine goes
    away goes without them, where its ``orders`` leave no time.

    Raises `OutputFailedError`, and `Interrupted` where an order came.
    """
    entry, until = journal.entry, _until(ctx, orders, reason)

    def check(_bytes: int) -> None:
        if ctx.clock.now() >= until:
            raise OutputFailedError("outputs not published: the machine goes away before")

    try:
        # By way of the attempt's base: a command can put a link where its folder was.
        selection = select(journal.base, _before(journal), spec.outputs, beneath=ARTIFACTS)
        extras = {f"{name}.txt": _log(journal, name) for name in STREAMS}
        csv = journal.folder / "system_metrics.csv"
        if _has_table(journal, csv):
            extras[csv.name] = Extra(csv)
        uploaded = upload_outputs(
            ctx.ledger.store,
            entry.keys.attempt(entry.epoch),
            selection,
            extras,
            epoch=entry.epoch,
            threads=ctx.settings.pack_threads,
            layout=spec.outputs.layout,
            record=journal.folder / "published.jsonl",
            yields=yields,
            # What is forbidden may be allowed again; nothing else has what the simulation made.
            retry=Patience(ctx, journal, partial(holding.retry, on=_PASSING)),
            clock=ctx.clock,
            on_progress=check,
        )
    except NoRoomError as error:
        raise OutputFailedError(f"outputs not published: {error}", Reason.DISK_FULL) from error
    except (OSError, StoreError) as error:
        raise OutputFailedError(f"outputs not published: {error}") from error
    for note in uploaded.unread:
        raise UnreadOutputsError(
            f"{len(uploaded.unread)} outputs could not be read, such as {note.path!r} ({note.why})",
            uploaded.output,
        )
    for note in uploaded.changed:
        log.warning("output changed while packed", task=entry.task, path=note.path, why=note.why)
    _tell_times(timeline, uploaded)
    return uploaded.output


def _tell_times(timeline: Timeline, uploaded: Uploaded) -> None:
    output = uploaded.output
    stored = output.archive_bytes
    if output.layout == "archive":  # it is uploaded while it is packed: the two take the same time
        timeline.add("pack", uploaded.upload_seconds, output.bytes)
    else:
        stored = output.bytes
    timeline.add("upload", uploaded.upload_seconds, stored)
    timeline.add("verify", uploaded.verify_seconds, stored)


def _until(ctx: Context, orders: Orders | None, reason: Reason | None) -> float:
    """Tell by when a task that fails as its machine goes away has to do without outputs."""
    now = ctx.clock.now()
    if orders is None or reason not in (Reason.PREEMPTED, Reason.MAX_PREEMPTIONS):
        return inf
    return now + orders.time_for(inf, now, _SHARE_TO_PUBLISH)


def _log(journal: Journal, stream: Stream) -> Extra:
    """Give a log as it is in the store: cut, and saying so, where it is too long."""
    most = journal.entry.cut_at.get(stream, journal.entry.max_log_bytes)
    if most is None:
        return Extra(journal.logs / stream)
    return Extra(journal.logs / stream, most, lambda size: cut_line(most) + count_line(size - most))


def _has_table(journal: Journal, csv: Path) -> bool:
    """Make a table of the metrics, where there are any; on a full disk go without."""
    try:
        write_csv(journal.metrics, csv)
    except FileNotFoundError:
        return False
    except OSError as error:
        if not is_no_space(error):
            raise
        log.warning("no room for a table", path=str(csv), error=str(error))
        return False
    return True


def stderr_tail(journal: Journal) -> str:
    """Give the last lines of standard error, for `show`."""
    try:
        with (journal.logs / "stderr").open("rb") as file:
            size = file.seek(0, 2)
            file.seek(max(0, size - _TAIL_BYTES))
            text = file.read(_TAIL_BYTES).decode(errors="replace")
    except FileNotFoundError:
        return ""
    return "\n".join(text.splitlines()[-_TAIL_LINES:])


def _before(journal: Journal) -> Snapshot:
    if not journal.entry.prepared:
        journal.artifacts.mkdir(parents=True, exist_ok=True)
        return snapshot(journal.base, ARTIFACTS)  # nothing ran: what lies there is no output
    try:
        return Snapshot.load(journal.inputs)
    except (OSError, ValueError) as error:
        log.warning("inputs not known, all files are published", error=str(error))
        return EMPTY
