"""The head tries MPI on its hosts: when they are there, and before a task begins on them."""

import threading
from collections.abc import Callable
from typing import Protocol

import structlog

from simagent.domain.keys import TaskKeys
from simagent.ports.clock import Clock, Wake
from simagent.worker.attempt import AttemptRun
from simagent.worker.claim import claim
from simagent.worker.context import Context
from simagent.worker.head import Head
from simagent.worker.orders import Preempted
from simagent.worker.receive import Claim
from simagent.worker.recovery import recover
from simagent.worker.roster import LOOK_EVERY
from simagent.worker.threads import Threads

_AGAIN = 3600.0
_TICK = 0.5
_ENDS_WITHIN = 5.0
_ABANDONED_AFTER = 60.0

log = structlog.get_logger()


class Probe(Protocol):
    """What tries MPI."""

    def __call__(self, hosts: frozenset[str], stop: Wake) -> bool:
        """Try it on all hosts, or know of that from before; tell whether it works.

        ``hosts`` are the others, in words that change with them. It is broken off when ``stop`` is
        set.
        """


class Trial:
    """Has MPI tried once on each set of hosts, while no commands run and no task begins.

    What fails is told and no more: it is tried again after an hour, or with other hosts.
    """

    def __init__(self, head: Head, clock: Clock, probe: Probe) -> None:
        self._head = head
        self._clock = clock
        self._probe = probe
        self._stop = Wake()
        self._stopped = False
        self._thread: threading.Thread | None = None
        self.runs = False
        """Whether hosts are being tried."""
        self._works: frozenset[str] = frozenset()
        self._failed: tuple[frozenset[str], float] | None = None
        self._seen: tuple[frozenset[str], float] = frozenset(), clock.now()
        self.changed: Callable[[], None] = lambda: None
        """Called by another thread when tasks may begin again."""

    def holds(self, *, free: bool) -> bool:
        """Tell whether no task is to begin just now: hosts are tried, or about to be.

        That begins with this call where it is due, and if ``free``: no commands run here.
        """
        if self.runs:
            return True
        if self._stopped or self._head.trouble() is not None:
            return False
        hosts, now = makeup(self._head), self._clock.now()
        if hosts <= self._works or self._failed_lately(hosts, now):
            return False
        if hosts != self._seen[0]:
            self._seen = hosts, now
        if self._head.size == 1 and now - self._seen[1] < LOOK_EVERY:
            return True  # nobody said how many there will be: others may come with them
        if free:
            self.runs = True
            self._thread = threading.Thread(
                target=self._try, args=(hosts,), name="mpi check", daemon=True
            )
            self._thread.start()
        return True

    @property
    def first(self) -> bool:
        """Whether hosts are being tried for the first time: a task that waits may not be known."""
        return self.runs and not self._works and self._failed is None

    def stop(self) -> None:
        """Try no more; returns at once."""
        self._stopped = True
        self._stop.set()

    def join(self) -> None:
        """Wait for the end of what was stopped, shortly: the next agent would end it, too."""
        if self._thread is not None:
            self._thread.join(_ENDS_WITHIN)

    def _failed_lately(self, hosts: frozenset[str], now: float) -> bool:
        if self._failed is None:
            return False
        failed, at = self._failed
        return hosts == failed and now - at < _AGAIN

    def _try(self, hosts: frozenset[str]) -> None:
        works = False
        try:
            works = self._probe(hosts, self._stop)
        except Exception as error:  # the agent's tasks do not depend on it
            log.exception("MPI not tried", error=f"{type(error).__name__}: {error}")
        if works:
            self._works = hosts
        else:
            self._failed = hosts, self._clock.now()
        self.runs = False
        self.changed()


def makeup(head: Head) -> frozenset[str]:
    """Tell which other hosts there are, each with what MPI on it depends on."""
    lines = set()
    for place in head.places()[1:]:
        words = [place.name, place.agent, place.address, str(place.slots)]
        member = head.member(place)
        if member is not None:
            words += [f"uid {member.uid}", member.version, *member.mpi, *member.runtimes]
        lines.add(" ".join(words))
    return frozenset(lines)


def carry_out(ctx: Context, task: TaskKeys, stop: Wake, within: float) -> str:
    """Claim a task that lies in a store of the agent's own, and carry it through.

    It is broken off, and that is told, when ``stop`` is set or it is not over ``within`` so many
    seconds. Raises `NoRuntimeError`, StoreError, OSError where it cannot be begun.
    """
    state, spec = ctx.ledger.state(task), ctx.ledger.spec(task)
    claimed = claim(ctx, task, Claim(state, spec, lost=False), None)
    assert claimed is not None, "nobody else knows of it"
    journal, state = claimed
    journal.write(trial=True)
    ended = Wake()
    threads = Threads(ended)
    run = AttemptRun(ctx, threads, journal, state, spec)
    thread = threads.start(f"attempt {task.id}", run.run)
    until, broken = ctx.clock.now() + within, ""
    while not thread.ended:
        ctx.clock.wait(_TICK, *((ended,) if broken else (ended, stop)))
        ended.clear()
        now = ctx.clock.now()
        if broken and now >= until:
            log.error("the trial of MPI does not end", task=task.id)
            break
        if not broken and (stop.is_set() or now >= until):
            broken = "the agent stops" if stop.is_set() else f"not over after {within:g} s"
            run.interrupt(Preempted(broken, until=now + _ENDS_WITHIN))
            until = now + _ABANDONED_AFTER
    if threads.error is None:
        return broken
    recover(ctx, journal)  # as the next agent would
    return repr(threads.error)
