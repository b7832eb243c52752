"""When a holder counts as dead: by what this observer has itself read, on its own clock."""

from enum import Enum, auto

from simagent.domain.times import Times
from simagent.ledger import Ledger
from simagent.ports.clock import Clock


class Sign(Enum):
    """What two readings show of a holder."""

    ALIVE = auto()
    SILENT = auto()
    DEAD = auto()


class Silence:
    """A holder that is watched for signs of life.

    It is dead when this observer has itself read the same of it for at least a TTL on its own
    boot-time clock, every store call between having been answered. It is to be read again every
    `renew_every`; a longer pause begins anew: an outage, or a sleep of this machine, that nobody
    noticed would look like silence. No clocks of two machines are compared.
    """

    def __init__(self, ledger: Ledger, clock: Clock, times: Times, shown: object) -> None:
        """``shown`` is what was just read: all that its holder changes to show that it lives."""
        self._ledger = ledger
        self._clock = clock
        self._times = times
        self._shown = shown
        self._since = clock.now()
        self._failures = ledger.failures
        self.last = self._since
        """When it was read last."""

    def observe(self, shown: object, asked: float) -> Sign:
        """Note what was read again, and tell what it shows.

        ``asked`` is when the reading began: a slow answer proves no longer silence.
        """
        now, failures = self._clock.now(), self._ledger.failures
        changed = shown != self._shown
        gap = asked - self.last > 2 * self._times.renew_every
        self._shown, self.last = shown, now
        if changed or gap or self._failures != failures:
            self._since, self._failures = now, failures
        if changed:
            return Sign.ALIVE
        return Sign.DEAD if asked - self._since >= self._times.lease_ttl else Sign.SILENT
