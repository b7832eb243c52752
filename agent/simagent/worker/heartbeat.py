"""Shows the other agents of the group, and people, that this one lives, and what it does."""

from collections.abc import Callable
from dataclasses import dataclass

import structlog

from simagent.domain import keys
from simagent.domain.fleet import Carried, Heartbeat
from simagent.ports.clock import Wake
from simagent.ports.store import StoreError
from simagent.worker.context import Context

_REST = 1 / 6

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Doing:
    """What an agent does: the attempts it carries on, and how many slots are free."""

    slots: int = 1
    free: int = 1
    draining: bool = False
    tasks: tuple[Carried, ...] = ()


class Heart:
    """A thread of the agent that writes `agents/<agent>.json`, one PUT a minute.

    After a `change` it does so at once, but not more often than every sixth of that.

    No failure matters: whoever watches waits for several beats. They are not counted in the
    ledger either, whose failures put off the proof that a holder is dead.
    """

    def __init__(self, ctx: Context, doing: Callable[[], Doing] = Doing) -> None:
        """``doing`` is called by a thread of its own."""
        self._ctx = ctx
        self._doing = doing
        self._changed = Wake()
        self._started = ctx.clock.wall()
        self._beats = 0
        self.over = False
        """Set before the end where nothing is left here: then nothing is shown any more."""

    def run(self, stop: Wake) -> None:
        """Beat until ``stop`` is set."""
        clock, every = self._ctx.clock, self._ctx.times.heartbeat_every
        while True:
            self._changed.clear()
            self.beat()
            if clock.wait(every * _REST, stop):
                break
            clock.wait(every * (1 - _REST), stop, self._changed)
            if stop.is_set():
                break
        if self.over:
            self.withdraw()

    def change(self) -> None:
        """Note that the agent does something else now. Any thread may call it."""
        self._changed.set()

    def beat(self) -> None:
        """Write what this agent is."""
        ctx, identity = self._ctx, self._ctx.identity
        self._beats += 1
        doing = self._doing()
        heartbeat = Heartbeat(
            agent=identity.agent,
            incarnation=identity.incarnation,
            group=ctx.settings.group,
            version=identity.version,
            beat=self._beats,
            at=ctx.clock.wall(),
            machine=dict(identity.machine),
            runtimes=self._runtimes(),
            tags=ctx.settings.tags,
            slots=doing.slots,
            free=doing.free,
            draining=doing.draining,
            tasks=doing.tasks,
            started=self._started,
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
