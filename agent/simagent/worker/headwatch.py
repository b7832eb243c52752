"""A member's look at the record of its head: whom to let in, and what may run here."""

import structlog

from simagent.cluster.sshd import Sshd, SshdError
from simagent.domain import keys
from simagent.domain.cluster import Head, HeadLease
from simagent.domain.events import Event
from simagent.ledger import CorruptError, TooNewError
from simagent.ports.clock import Wake
from simagent.ports.store import StoreError
from simagent.worker.entries import Entries
from simagent.worker.health import Health
from simagent.worker.membership import Membership

_EVERY = 5.0

log = structlog.get_logger()


class HeadWatch:
    """A thread of a member that reads the head's record, and does as it says.

    Only what was really read counts: an outage of the store ends nothing, and lets in whom the
    last record named.
    """

    def __init__(self, member: Membership, entries: Entries, sshd: Sshd) -> None:
        self._member = member
        self._entries = entries
        self._sshd = sshd
        self._every = min(_EVERY, member.times.renew_every)
        self._store = Health(member.clock, lost=Event.STORE_LOST, back=Event.STORE_BACK)
        self._lease: HeadLease | None = None
        self._led_at = 0.0
        self.trouble = "it has only just been started"
        """Why nobody can be let in; empty: somebody can."""

    @property
    def unread(self) -> str:
        """Tell why the record cannot be read; empty: it can."""
        return self._store.trouble

    @property
    def led(self) -> bool:
        """Whether the cluster has a head, by its lease: one that was renewed of late."""
        since = self._member.clock.now() - self._led_at
        return self._lease is not None and since < self._member.times.lease_ttl

    def run(self, stop: Wake) -> None:
        """Look now and then, until ``stop`` is set."""
        while True:
            self.look()
            if self._member.clock.wait(self._every, stop):
                return

    def look(self) -> None:
        """Read the record, and see to it that the ssh server runs."""
        trouble = ""
        if not self._store.paused:
            with self._store.watch(StoreError):
                trouble = self._read()
        try:
            self._sshd.ensure()
        except SshdError as error:
            trouble = trouble or str(error)
        if trouble and trouble != self.trouble:
            log.warning("no ranks can come here", why=trouble)
        self.trouble = trouble

    def _read(self) -> str:
        read_at = self._member.clock.now()
        try:
            head = self._member.ledger.document(keys.cluster_head(self._member.cluster), Head())
        except (CorruptError, TooNewError) as error:
            return str(error)
        if head.lease != self._lease:
            self._lease, self._led_at = head.lease, read_at
        self._entries.judge(head, read_at)
        try:
            self._sshd.authorize(head.public_key or None)
        except SshdError as error:
            return str(error)
        return ""
