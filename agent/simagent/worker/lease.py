"""RENEW: the thread that shows that the holder lives. Nothing else runs on it."""

from collections.abc import Callable

import structlog

from simagent.domain import mutations
from simagent.domain.events import Event
from simagent.domain.keys import TaskKeys
from simagent.domain.mutations import SupersededError
from simagent.domain.state import Attempt, Holder, State
from simagent.domain.times import Times
from simagent.ledger import CorruptError, Ledger, TooNewError, Version
from simagent.ports.clock import Clock, Wake
from simagent.ports.store import NotFoundError, StoreError
from simagent.telemetry.tally import Count, Tally
from simagent.worker.orders import LeaseLost, Orders, Partitioned

log = structlog.get_logger()


class Lease:
    """Renews one attempt's lease until it is stopped or lost.

    ``stop_after`` is the seconds without a renewal after which the run is ended although nobody
    else is known to hold the task; None lets it go on.
    """

    def __init__(
        self,
        ledger: Ledger,
        clock: Clock,
        times: Times,
        *,
        task: TaskKeys,
        me: Holder,
        beat: int,
        orders: Orders,
        progress: Callable[[], Attempt],
        stop_after: float | None,
        tally: Tally | None = None,
    ) -> None:
        self._ledger = ledger
        self._clock = clock
        self._times = times
        self._task = task
        self._me = me
        self._beat = beat
        self._orders = orders
        self._progress = progress
        self._stop_after = stop_after
        self._tally = tally or Tally()
        self._known: Version[State] | None = None
        """What was written last: where nobody has written since, it need not be read again."""
        self.renewed = clock.now()
        """When it was renewed last, by the clock's `now`."""
        self._stop = Wake()
        self._hurry = Wake()
        self._quiet = False
        self.late = False
        """It was not renewed in time."""

    def run(self) -> None:
        """Renew until `stop`, or until another is proven to hold the task."""
        wait = self._times.renew_every
        while not self._clock.wait(wait, self._stop, self._hurry) or not self._stop.is_set():
            self._hurry.clear()
            try:
                self.renew()
            except (SupersededError, NotFoundError) as error:
                if not self._quiet:
                    self._orders.interrupt(LeaseLost(str(error)))
                return
            except (StoreError, CorruptError, TooNewError) as error:
                self._lapse(error)
                wait = self._times.renew_retry
            else:
                wait = self._times.renew_every

    def renew(self) -> State:
        """Renew once. Raises StoreError, and `SupersededError` where the lease is lost."""
        # A beat of its own for each try: one whose answer was lost must not stand in for the next.
        self._beat += 1
        beat, attempt = self._beat, self._progress()
        asked = self._clock.now()  # others may count from then on, not from when the answer came
        known, self._known = self._known, None
        self._known = self._ledger.change_from(
            known,
            self._task,
            lambda s: mutations.renew(s, me=self._me, beat=beat, attempt=attempt),
        )
        state = self._known.state
        self.renewed = asked
        self.late = False
        self._tally.add(Count.LEASE_RENEWALS)
        if state.kill is not None:
            self._orders.ask_kill(state.kill)
        return state

    def hurry(self) -> None:
        """Renew at once: there is something to tell. Any thread may call it."""
        self._hurry.set()

    def end_quietly(self) -> None:
        """Renew on, but do not take the task's own end for a loss."""
        self._quiet = True

    def stop(self) -> None:
        """End the thread."""
        self._stop.set()

    def _lapse(self, error: Exception) -> None:
        # Expiry only permits others to claim; without proof that one did, the run goes on.
        self._tally.add(Count.LEASE_RENEWAL_FAILURES)
        silent = self._clock.now() - self.renewed
        if silent >= self._times.lease_ttl and not self.late:
            self.late = True
            log.warning(Event.LEASE_LATE, task=self._task.id, seconds=silent, error=str(error))
        if self._stop_after is not None and silent >= self._stop_after:
            self._orders.interrupt(Partitioned(f"the store was not reached for {silent:.0f} s"))
