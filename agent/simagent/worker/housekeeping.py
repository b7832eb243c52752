"""What an agent does between bells: whatever needs the store, and is due."""

from collections.abc import Callable

import structlog

from simagent.domain.keys import TaskKeys
from simagent.domain.state import Status
from simagent.ledger import CorruptError, TooNewError
from simagent.ports.queue import QueueError
from simagent.ports.store import NotFoundError, StoreError
from simagent.worker.context import Context
from simagent.worker.health import Health
from simagent.worker.journal import Journal
from simagent.worker.newer import NewerAttempts
from simagent.worker.queueing import Line
from simagent.worker.receive import Judge
from simagent.worker.reception import Reception
from simagent.worker.recovery import recover
from simagent.worker.refusals import Refusals
from simagent.worker.slots import Slots
from simagent.worker.span import keep_alive
from simagent.worker.sweep import Sweeper

_BATCH = 200

log = structlog.get_logger()


class House:
    """Settles the journals of earlier incarnations, judges suspects again, sweeps the group."""

    def __init__(
        self,
        ctx: Context,
        judge: Judge,
        reception: Reception,
        *,
        slots: Slots,
        line: Line,
        refusals: Refusals | None,
        unsettled: list[Journal],
        newer: NewerAttempts,
        store: Health,
        queue: Health,
    ) -> None:
        self._ctx = ctx
        self._suspects = judge.suspects
        self._reception = reception
        self._slots = slots
        self._line = line
        self._refusals = refusals
        self._unsettled = unsettled
        self._newer = newer
        self._store = store
        self._queue = queue
        self._sweeper = Sweeper(
            ctx.ledger,
            ctx.queue,
            ctx.clock,
            ctx.times,
            judge,
            group=ctx.settings.group,
            refusals=refusals,
        )

    def keep(self, takes: Callable[[TaskKeys], bool], *, closing: bool) -> None:
        """Do what is due.

        ``takes`` tells of a task whether it would be taken; none is taken any more if ``closing``.
        """
        for journal in self._unsettled:
            keep_alive(self._ctx, journal)
        self._newer.tend()
        if self._store.paused:
            return
        if self._refusals is not None:
            self._refusals.watch()
        suspects = self._suspects.due()
        probe = self._store.failing
        used = probe or self._newer.due or bool(self._unsettled or suspects)
        with self._queue.watch(QueueError, proof=False), self._store.watch(StoreError, proof=used):
            if probe:
                self._ctx.ledger.markers(self._ctx.settings.group, after="", limit=1)
            self._newer.look()
            self._settle()
            for task, receipt in suspects:
                self._reception.reconsider(task, receipt, free=takes(task))
            if self._slots.free and not closing:
                joined = self._ctx.head.joined if self._ctx.head is not None else 0
                for task, receipt in self._line.again(self._slots.ended, joined):
                    self._reception.reconsider(task, receipt, free=takes(task))
            if self._sweeper.due() and not closing:
                self._sweeper.sweep_if_due()
        before = self._ctx.clock.wall() - self._ctx.times.set_aside_keep
        self._ctx.journals.expire(before=before, agent=self._ctx.identity.agent)

    def is_empty(self) -> bool:
        """Tell whether no task of the group waits for an agent."""
        group = self._ctx.settings.group
        with self._store.watch(StoreError):
            open_tasks = self._ctx.ledger.open_tasks(group, after="", limit=_BATCH)
            return not any(self._is_queued(task) for task in open_tasks)
        return False

    def _is_queued(self, task: TaskKeys) -> bool:
        try:
            return self._ctx.ledger.state(task).status is Status.QUEUED
        except (NotFoundError, CorruptError, TooNewError):
            return False

    def take_up(self) -> bool:
        """Take up what an earlier agent left here, to be given back; tell whether that is all."""
        with self._store.watch(StoreError):
            self._settle()
        return not self._unsettled

    def _settle(self) -> None:
        while self._unsettled:
            journal = self._unsettled[-1]
            try:
                recovered = recover(self._ctx, journal)
            except OSError as error:
                log.warning("restart not written down", path=str(journal.folder), error=str(error))
                return  # the disk is full or broken: at the next turn again
            self._unsettled.pop()
            if recovered is not None:
                self._slots.start(journal, *recovered)
