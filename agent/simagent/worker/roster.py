"""The members of a cluster, watched for signs of life."""

from dataclasses import dataclass

import structlog
from pydantic import ValidationError

from simagent.domain import keys
from simagent.domain.cluster import SHOWS_EVERY, Member
from simagent.domain.events import Event
from simagent.ledger import Ledger
from simagent.ports.clock import Clock
from simagent.ports.store import NotFoundError

LOOK_EVERY = 5.0
GONE_AFTER = 4 * SHOWS_EVERY
FORGOTTEN_AFTER = 86_400.0
_DOUBTED_FOR = 30.0

log = structlog.get_logger()


@dataclass(slots=True)
class _Seen:
    etag: str
    since: float
    proven: bool
    """It has shown itself since the first look: until then its record may be an old one."""
    record: Member | None = None
    doubted: float = 0.0
    """Until when it is not used, for it could not be entered."""
    why: str = ""
    told: bool = False
    written: float = 0.0
    """When it was first seen as it is, whatever happened since."""


class Roster:
    """The members of a cluster, as they show themselves in the store.

    One lives that this observer has seen to change its record within `GONE_AFTER`, having looked
    about every `LOOK_EVERY`. After an outage that is counted anew. No clocks of two machines are
    compared.
    """

    def __init__(self, ledger: Ledger, clock: Clock, cluster: str) -> None:
        self._ledger = ledger
        self._clock = clock
        self._cluster = cluster
        self._seen: dict[str, _Seen] = {}
        self._looked: float | None = None
        self._failures = 0

    def look(self) -> None:
        """See who shows itself. Raises StoreError."""
        asked, before = self._clock.now(), self._looked
        entries = list(self._ledger.store.scan(keys.cluster_members(self._cluster)))
        now = self._clock.now()
        anew = before is None or asked - before > GONE_AFTER / 2
        anew = anew or self._failures != self._ledger.failures
        known, found = self._seen, {}
        for entry in entries:
            seen = known.get(entry.key)
            if seen is None:
                seen = _Seen("", now, proven=before is not None)
            elif seen.etag != entry.etag:
                seen.proven = True
            if anew or seen.etag != entry.etag:
                seen.since = now
            found[entry.key] = seen
            if seen.etag != entry.etag:
                seen.written = now
                self._read(entry.key, seen)
        self._seen = found  # as a whole: other threads look at it
        self._looked, self._failures = now, self._ledger.failures
        self._tell(known)

    def forget(self) -> None:
        """Remove the records of those that have been silent for a day. Raises StoreError.

        One that comes back writes it anew.
        """
        for key, seen in list(self._seen.items()):
            if self._clock.now() - seen.written >= FORGOTTEN_AFTER:
                self._ledger.store.delete(key)
                log.info("member that is gone removed", cluster=self._cluster, key=key)
                self._seen = {other: it for other, it in self._seen.items() if other != key}

    def members(self) -> list[Member]:
        """List who lives and can take part, by the names of their hosts."""
        known = [(seen.record, self._amiss(seen)) for seen in self._seen.values()]
        found = [record for record, why in known if record is not None and not why]
        return sorted(found, key=lambda member: (member.host, member.agent))

    def amiss(self) -> dict[str, str]:
        """Tell of each member that cannot take part why, by the name of its host."""
        troubles = {}
        for seen in self._seen.values():
            record = seen.record  # it may be gone at the next look, by another thread
            if record is not None and (why := self._amiss(seen)):
                troubles[record.host] = why
        return troubles

    def find(self, agent: str) -> Member | None:
        """Give what a member last told of itself, whether or not it still lives.

        Of one that was not looked at yet the store is asked. Raises StoreError.
        """
        key = keys.cluster_member(self._cluster, agent)
        seen = self._seen.get(key)
        if seen is not None:
            return seen.record
        try:
            return Member.model_validate_json(self._ledger.store.get(key).data)
        except (NotFoundError, ValidationError):
            return None

    def doubt(self, agent: str, why: str) -> None:
        """Do not use a member for a while, which could not be entered."""
        seen = self._seen.get(keys.cluster_member(self._cluster, agent))
        if seen is not None:
            seen.doubted, seen.why = self._clock.now() + _DOUBTED_FOR, why

    def _amiss(self, seen: _Seen) -> str:
        now = self._clock.now()
        if not seen.proven:
            return "it has not shown itself yet"
        if now - seen.since >= GONE_AFTER:
            return f"its agent has been silent for {now - seen.since:.0f} s"
        if now < seen.doubted:
            return seen.why
        record = seen.record
        return record.trouble if record is not None else ""

    def _read(self, key: str, seen: _Seen) -> None:
        try:
            blob = self._ledger.store.get(key)
        except NotFoundError:
            return
        seen.etag = blob.etag
        before = seen.record
        try:
            seen.record = Member.model_validate_json(blob.data)
            if before is not None and before.incarnation != seen.record.incarnation:
                seen.doubted = 0.0  # what was wrong with it may be over
        except ValidationError as error:
            log.debug("member cannot be read", key=key, error=str(error).splitlines()[0])
            seen.record = None

    def _tell(self, known: dict[str, _Seen]) -> None:
        """Log who came and who went."""
        for seen in self._seen.values():
            if seen.record is None or not seen.proven:
                continue
            why, host = self._amiss(seen), seen.record.host
            if not why and not seen.told:
                log.info(Event.HOST_JOINED, cluster=self._cluster, host=host)
            elif why and seen.told:
                log.warning(Event.HOST_GONE, cluster=self._cluster, host=host, error=why)
            seen.told = not why
        for key in known.keys() - self._seen.keys():
            gone = known[key]
            if gone.told and gone.record is not None:
                log.warning(
                    Event.HOST_GONE, cluster=self._cluster, host=gone.record.host, error="it left"
                )
