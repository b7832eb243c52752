"""The other agents of a group, watched for signs of life."""

from collections.abc import Iterator
from dataclasses import dataclass

import structlog
from pydantic import ValidationError

from simagent.domain import keys
from simagent.domain.fleet import Heartbeat
from simagent.domain.times import Times
from simagent.ledger import Ledger
from simagent.ports.clock import Clock
from simagent.ports.store import NotFoundError, StoreError

_LOOK_EVERY = 3600.0
_GONE_FOR = 86_400.0

log = structlog.get_logger()


@dataclass(slots=True)
class _Seen:
    """An agent's heartbeat. ``record`` is what was read last; None: nothing that can be read."""

    etag: str
    since: float
    record: Heartbeat | None = None
    read: str = ""
    gone: bool = False


class Fleet:
    """The agents of a group but for this one, as far as they are not proven gone.

    One is gone when its heartbeat was removed, or when this observer has itself seen the very same
    one for at least `agent_ttl` on its own boot-time clock, having looked about every
    `heartbeat_every`, every store call between having been answered: as a holder is proven dead
    (`Suspects`). Until then it counts as alive. No clocks of two machines are compared.
    """

    def __init__(
        self, ledger: Ledger, clock: Clock, times: Times, *, group: str, agent: str
    ) -> None:
        """``agent`` is who looks."""
        self._ledger = ledger
        self._clock = clock
        self._times = times
        self._group = group
        self._me = keys.agent(agent)
        self._seen: dict[str, _Seen] = {}
        self._looked: float | None = None
        self._failures = 0

    @property
    def due(self) -> bool:
        """Whether it is time to look, for those who have to know who lives."""
        looked = self._looked
        return looked is None or self._clock.now() - looked >= self._times.heartbeat_every

    def look(self) -> None:
        """See whose heartbeats there are, and which have changed. Raises StoreError."""
        asked, before, self._looked = self._clock.now(), self._looked, None
        entries = list(self._ledger.store.scan(keys.AGENTS))
        now = self._clock.now()
        # After a pause begin anew: in an outage or a sleep of this machine nobody is seen to live.
        anew = (
            before is None
            or asked - before > 2 * self._times.heartbeat_every
            or self._failures != self._ledger.failures
        )
        self._looked, self._failures = now, self._ledger.failures
        known, self._seen = self._seen, {}
        for entry in entries:
            if entry.key == self._me:
                continue
            seen = self._seen[entry.key] = known.get(entry.key) or _Seen(entry.etag, now)
            if anew or seen.etag != entry.etag:
                seen.etag, seen.since = entry.etag, now
            seen.gone = asked - seen.since >= self._times.agent_ttl

    def alive(self) -> Iterator[tuple[str, str]]:
        """Yield the names and incarnations of the group's other agents, as they were read last.

        One whose heartbeat cannot be read may be of any group, and of no known incarnation. Raises
        StoreError.
        """
        for key, seen in list(self._seen.items()):
            if seen.gone:
                continue
            if not seen.read:
                self._read(key, seen)
            record = seen.record
            if key in self._seen and (record is None or record.group == self._group):
                yield keys.agent_name(key), record.incarnation if record else ""

    def read(self) -> None:
        """Read anew what has changed of those who live: their incarnations, and their groups.

        Raises StoreError.
        """
        for key, seen in list(self._seen.items()):
            if not seen.gone and seen.read != seen.etag:
                self._read(key, seen)

    def _read(self, key: str, seen: _Seen) -> None:
        try:
            blob = self._ledger.store.get(key)
        except NotFoundError:
            del self._seen[key]
            return
        seen.read = blob.etag
        try:
            seen.record = Heartbeat.model_validate_json(blob.data)
        except ValidationError as error:
            log.debug("heartbeat cannot be read", key=key, error=str(error).splitlines()[0])
            seen.record = None


class Vanished:
    """Removes the heartbeats of agents that have been gone for so long that nobody asks for them.

    That is so where this observer has read the very same one twice, a day apart.
    """

    def __init__(self, ledger: Ledger, clock: Clock) -> None:
        self._ledger = ledger
        self._clock = clock
        self._seen: dict[str, tuple[str, float]] = {}
        self._next = clock.now()

    def prune_if_due(self) -> None:
        """Look, about once an hour, and remove. Raises StoreError."""
        now = self._clock.now()
        if now < self._next:
            return
        self._next = now + _LOOK_EVERY
        known, self._seen = self._seen, {}
        for entry in list(self._ledger.store.scan(keys.AGENTS)):
            etag, since = known.get(entry.key, (entry.etag, now))
            if etag == entry.etag and now - since >= _GONE_FOR:
                self._ledger.store.delete(entry.key)
                log.info("heartbeat of an agent that is gone removed", key=entry.key)
            else:
                self._seen[entry.key] = (entry.etag, since if etag == entry.etag else now)


def look_quietly(fleet: Fleet) -> None:
    """Look, where a failure is no more than a look that is missing."""
    try:
        fleet.look()
    except StoreError as error:
        log.debug("agents not looked at", error=str(error))
