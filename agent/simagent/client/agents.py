"""The agents, as they show themselves in the store."""

from collections.abc import Sequence
from functools import partial

from simagent.client.calls import Calls
from simagent.client.listing import at_a_time
from simagent.domain import keys
from simagent.domain.fleet import Heartbeat


class Agents:
    """Reads and tidies the heartbeats of all groups. Methods raise StoreError."""

    def __init__(self, calls: Calls) -> None:
        self._calls = calls
        self._clock = calls.clock

    def all(self) -> list[Heartbeat]:
        """List the agents as they showed themselves last, by group and name.

        Those that cannot be read, of a newer version say, are left out.
        """
        read = at_a_time(partial(self._calls.record, Heartbeat), self._calls.scan(keys.AGENTS))
        there = [heartbeat for heartbeat in read if heartbeat is not None]
        return sorted(there, key=lambda heartbeat: (heartbeat.group, heartbeat.agent))

    def silent(self, heartbeat: Heartbeat, *, after: float) -> bool:
        """Tell whether an agent has shown nothing new for ``after`` seconds.

        By what its clock said then, and this machine's says now: no more than a hint.
        """
        return self._clock.wall() - heartbeat.at >= after

    def prune(self, *, watch: float, group: str | None = None) -> list[str]:
        """Remove the heartbeats that do not change while they are watched; name whose they were.

        Those of all groups, or of one. Takes ``watch`` seconds, where there are any that look
        silent. One that lives all the same shows itself again.
        """
        suspects = {
            keys.agent(heartbeat.agent)
            for heartbeat in self.all()
            if group in (None, heartbeat.group) and self.silent(heartbeat, after=watch)
        }
        if not suspects:
            return []
        before = dict(self._etags())
        end = self._clock.now() + watch
        while (left := end - self._clock.now()) > 0:
            self._clock.wait(left)
        silent = [key for key, etag in self._etags() if key in suspects and before.get(key) == etag]
        for key in silent:
            self._calls.retried(partial(self._calls.ledger.store.delete, key))
        return [keys.agent_name(key) for key in silent]

    def _etags(self) -> Sequence[tuple[str, str]]:
        return self._calls.retried(
            lambda: [(e.key, e.etag) for e in self._calls.ledger.store.scan(keys.AGENTS)]
        )
