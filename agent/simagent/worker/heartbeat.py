"""Shows the other agents of the group, and people, that this one lives."""

import structlog

from simagent.domain import keys
from simagent.domain.fleet import Heartbeat
from simagent.ports.clock import Wake
from simagent.ports.store import StoreError
from simagent.worker.context import Context

log = structlog.get_logger()


class Heart:
    """A thread of the agent that writes `agents/<agent>.json`, one PUT a minute.

    No failure matters: whoever watches waits for several beats. They are not counted in the
    ledger either, whose failures put off the proof that a holder is dead.
    """

    def __init__(self, ctx: Context) -> None:
        self._ctx = ctx
        self._beats = 0
        self.over = False
        """Set before the end where nothing is left here: then nothing is shown any more."""

    def run(self, stop: Wake) -> None:
        """Beat until ``stop`` is set."""
        self.beat()
        while not self._ctx.clock.wait(self._ctx.times.heartbeat_every, stop):
            self.beat()
        if self.over:
            self.withdraw()

    def beat(self) -> None:
        """Write what this agent is."""
        ctx, identity = self._ctx, self._ctx.identity
        self._beats += 1
        heartbeat = Heartbeat(
            agent=identity.agent,
            incarnation=identity.incarnation,
            group=ctx.settings.group,
            version=identity.version,
            beat=self._beats,
            at=ctx.clock.wall(),
            machine=dict(identity.machine),
            runtimes=self._runtimes(),
        )
        key = keys.agent(identity.agent)
        try:
            ctx.ledger.store.put(key, heartbeat.model_dump_json(indent=1).encode())
        except StoreError as error:
            log.debug("heartbeat not written", key=key, error=str(error))

    def withdraw(self) -> None:
        """Remove it: this agent has ended, and holds nothing."""
        key = keys.agent(self._ctx.identity.agent)
        try:
            self._ctx.ledger.store.delete(key)
        except StoreError as error:
            log.debug("heartbeat not removed", key=key, error=str(error))

    def _runtimes(self) -> tuple[str, ...]:
        settings = self._ctx.settings
        allowed = (*(("process",) if settings.allow_process else ()), *settings.containers)
        return tuple(
            name
            for name, runtime in self._ctx.runtimes.items()
            if name in allowed and runtime.trouble() is None
        )
