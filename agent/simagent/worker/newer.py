"""Attempts that a newer version of the agent began here: they are left for it to go on with.

Their journals may say what is not understood here, so nothing is done by them. But a command is of
use as long as its task is this agent's by the state, and nobody else could end it after that.
"""

from collections.abc import Iterator
from functools import partial

import structlog

from simagent.domain.events import Event
from simagent.domain.keys import TaskKeys
from simagent.domain.reasons import Reason
from simagent.ledger import CorruptError, TooNewError
from simagent.ports.store import NotFoundError
from simagent.worker.context import Context
from simagent.worker.journal import Entry, Journal
from simagent.worker.journal_entry import NewerJournal
from simagent.worker.recovery import stop_leftovers
from simagent.worker.span import keep_folder_alive

log = structlog.get_logger()


class NewerAttempts:
    """Those that are still this agent's: each takes a slot, until a newer agent is here again."""

    def __init__(self, ctx: Context) -> None:
        self._ctx = ctx
        self._left = ctx.journals.newer()
        self._due = ctx.clock.now()
        for it in self._left:
            log.warning(Event.JOURNAL_TOO_NEW, path=str(it.folder), task=it.task.id, epoch=it.epoch)

    def __len__(self) -> int:
        return len(self._left)

    def has(self, task: TaskKeys) -> bool:
        """Tell whether a task is one of them."""
        return any(it.task == task for it in self._left)

    def entries(self) -> Iterator[Entry]:
        """Yield what can be read of their journals."""
        for it in self._left:
            if it.entry is not None:
                yield it.entry

    @property
    def notices(self) -> tuple[str, ...]:
        """Tell people of them."""
        return tuple(
            f"{Reason.AGENT_TOO_OLD}: task {it.task.id} was begun here by a newer version: what "
            "runs of it goes on, and waits for an agent of that version"
            for it in self._left
        )

    def tend(self) -> None:
        """Tell what runs of them that an agent is here; to be called every few seconds."""
        for it in self._left:
            keep_folder_alive(self._ctx, it.folder)

    @property
    def due(self) -> bool:
        """Whether there is something to look at in the store."""
        return bool(self._left) and self._ctx.clock.now() >= self._due

    def look(self) -> None:
        """End what runs of those whose task is another's, or has ended. Raises StoreError."""
        if not self.due:
            return
        for it in list(self._left):
            if not self._mine(it):
                log.warning(Event.LEASE_LOST, task=it.task.id, epoch=it.epoch)
                stop_leftovers(self._ctx, it.folder)
                self._left.remove(it)
        self._due = self._ctx.clock.now() + self._ctx.times.renew_every

    def _mine(self, it: NewerJournal) -> bool:
        try:
            state = self._ctx.ledger.state(it.task)
        except NotFoundError:
            return False
        except (CorruptError, TooNewError):
            return True  # nobody knows: what runs is left alone
        held = state.lease is not None and state.lease.agent == self._ctx.identity.agent
        return held and not state.terminal and state.epoch == it.epoch


def left_behind(ctx: Context) -> tuple[list[Journal], NewerAttempts]:
    """Find what earlier incarnations have left: what is to be settled, and a newer version's."""
    unsettled = list(ctx.journals.all(end=partial(stop_leftovers, ctx)))
    newer = NewerAttempts(ctx)
    if ctx.head is not None:
        ctx.head.adopt(journal.entry for journal in unsettled)
        ctx.head.adopt(newer.entries())
    return unsettled, newer
