"""The agents, as they show themselves in the store."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

from pydantic import ValidationError

from simagent.domain import keys
from simagent.domain.fleet import Heartbeat
from simagent.ports.clock import Clock
from simagent.ports.store import NotFoundError, Store

_AT_ONCE = 16
"""Requests: as many as a client of S3 has connections."""


class Agents:
    """Reads and tidies the heartbeats of all groups. Methods raise StoreError."""

    def __init__(self, store: Store, clock: Clock) -> None:
        self._store = store
        self._clock = clock

    def all(self) -> list[Heartbeat]:
        """List the agents as they showed themselves last, by group and name.

        Those that cannot be read, of a newer version say, are left out.
        """
        found = [entry.key for entry in self._store.scan(keys.AGENTS)]
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            read = list(pool.map(self._read, found))
        there = [heartbeat for heartbeat in read if heartbeat is not None]
        return sorted(there, key=lambda heartbeat: (heartbeat.group, heartbeat.agent))

    def silent(self, heartbeat: Heartbeat, *, after: float) -> bool:
        """Tell whether an agent has shown nothing new for ``after`` seconds.

        By what its clock said then, and this machine's says now: no more than a hint.
        """
        return self._clock.wall() - heartbeat.at >= after

    def prune(self, *, watch: float) -> list[str]:
        """Remove the heartbeats that do not change while they are watched; name whose they were.

        Takes ``watch`` seconds, where there are any that look silent. One that lives all the same
        shows itself again.
        """
        suspects = {
            keys.agent(heartbeat.agent)
            for heartbeat in self.all()
            if self.silent(heartbeat, after=watch)
        }
        if not suspects:
            return []
        before = dict(self._entries())
        end = self._clock.now() + watch
        while (left := end - self._clock.now()) > 0:
            self._clock.wait(left)
        silent = [
            key for key, etag in self._entries() if key in suspects and before.get(key) == etag
        ]
        for key in silent:
            self._store.delete(key)
        return [keys.agent_name(key) for key in silent]

    def _entries(self) -> Iterator[tuple[str, str]]:
        for entry in self._store.scan(keys.AGENTS):
            yield entry.key, entry.etag

    def _read(self, key: str) -> Heartbeat | None:
        try:
            return Heartbeat.model_validate_json(self._store.get(key).data)
        except (NotFoundError, ValidationError):
            return None
