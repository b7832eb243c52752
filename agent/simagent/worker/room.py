"""How long to wait for room on a disk that is full of the task's own files."""

from collections.abc import Callable
from functools import partial
from typing import TypeVar

from simagent.domain.state import Status
from simagent.ports.retry import Retry
from simagent.ports.store import NoSpaceError
from simagent.worker.context import Context
from simagent.worker.disk import on_same_disk
from simagent.worker.journal import Journal

_T = TypeVar("_T")


class NoRoomError(Exception):
    """There was no room for too long; the message tells for what."""


class Patience:
    """Repeats calls of the store by ``retry``; where its disk is the task's own, for some time.

    A disk of the store's own is an outage: others may make room. The one that the task's files are
    on may be full of them, and they only go with the task's end. Calls raise `NoRoomError` then.
    """

    def __init__(self, ctx: Context, journal: Journal, retry: Retry) -> None:
        self._ctx = ctx
        self._journal = journal
        self._retry = retry
        self._until: float | None = None

    def __call__(self, call: Callable[[], _T]) -> _T:
        """Give what the call gives."""
        return self._retry(partial(self._try, call))

    def _try(self, call: Callable[[], _T]) -> _T:
        try:
            return call()
        except NoSpaceError as error:
            if error.path is None or not on_same_disk(error.path, self._journal.folder):
                raise
            now, wait = self._ctx.clock.now(), self._ctx.settings.room_wait
            if self._until is None:
                wait *= 10 if self._journal.entry.outcome is Status.SUCCEEDED else 1
                self._until = now + wait
            if now < self._until:
                raise
            raise NoRoomError(str(error)) from error
