"""What of an attempt is brought into the store before its task is given back, by its worth.

Logs, then the checkpoint that a later attempt goes on from, then what there is of outputs: for
people to look at, as the later attempt may not make the same again.
"""

import threading
from functools import partial

import structlog

from simagent.domain.spec import Spec
from simagent.domain.state import Checkpoint, Output
from simagent.ports.retry import Retry, retrying
from simagent.ports.store import StoreError
from simagent.transfer.outputs import EMPTY, Snapshot, select
from simagent.transfer.publishing import upload_outputs
from simagent.worker.checkpoints import Checkpoints
from simagent.worker.context import Context
from simagent.worker.endings import Left
from simagent.worker.journal import ARTIFACTS, Journal
from simagent.worker.orders import Orders
from simagent.worker.telemetry import Telemetry

_FLUSH_SECONDS = 10.0
_SHARE_TO_FLUSH = 1 / 3  # of the time left
_OUTPUTS_WITHIN = 30.0
_SHARE_OF_OUTPUTS = 0.7  # of the time left, but for
_TO_GIVE_BACK = 3.0
_LEAST_SECONDS = 1.0
_MOST_BYTES_A_SECOND = 100 << 20
"""What would take longer even so is not begun: the task would wait for nothing."""

log = structlog.get_logger()


class Farewell:
    """Takes leave of an attempt in the time that its orders leave."""

    def __init__(self, ctx: Context, spec: Spec, journal: Journal, orders: Orders) -> None:
        self._ctx = ctx
        self._spec = spec
        self._journal = journal
        self._orders = orders

    def take(
        self, left: Left | None, telemetry: Telemetry, checkpoints: Checkpoints | None
    ) -> tuple[Checkpoint | None, Output | None]:
        """Store what there is time for; give the last checkpoint, and the outputs so far.

        ``left`` is how the commands ended. Raises `Detached` and `LeaseLost`.
        """
        now = self._ctx.clock.now()
        telemetry.stop(self._orders.time_for(_FLUSH_SECONDS, now, _SHARE_TO_FLUSH))
        kept = checkpoints.last(left) if checkpoints is not None else None
        order = self._orders.interrupted
        goes = order is not None and order.until is not None and left is not None
        return kept, self._outputs() if goes else None

    def _outputs(self) -> Output | None:
        """Upload what there is of outputs, beside where the task's own would be."""
        now = self._ctx.clock.now()
        left = self._orders.time_for(_OUTPUTS_WITHIN, now) - _TO_GIVE_BACK
        within = _SHARE_OF_OUTPUTS * left
        done: list[Output] = []
        if within >= _LEAST_SECONDS:
            # A call of the store's may hang; where one does, it is left alone.
            thread = threading.Thread(
                target=self._upload, args=(done, now, within), name="outputs so far", daemon=True
            )
            thread.start()
            thread.join(within)
        return done[0] if done else None

    def _upload(self, done: list[Output], now: float, within: float) -> None:
        clock, entry = self._ctx.clock, self._journal.entry
        retry: Retry = partial(retrying, clock=clock, deadline=now + within)

        def check(_bytes: int) -> None:
            if clock.now() >= now + within:
                raise TimeoutError("it took too long")

        try:
            before = Snapshot.load(self._journal.inputs) if self._journal.inputs.exists() else EMPTY
            selection = select(self._journal.base, before, self._spec.outputs, beneath=ARTIFACTS)
            size = sum(member.size for member in selection.members)
            if not selection.members or size > within * _MOST_BYTES_A_SECOND:
                return
            uploaded = upload_outputs(
                self._ctx.ledger.store,
                entry.keys.attempt(entry.epoch).partial,
                selection,
                {},
                epoch=entry.epoch,
                threads=self._ctx.settings.pack_threads,
                retry=retry,
                clock=clock,
                on_progress=check,
            )
        except (OSError, StoreError, ValueError) as error:
            log.warning("outputs so far not stored", task=entry.task, error=str(error))
        else:
            done.append(uploaded.output)
