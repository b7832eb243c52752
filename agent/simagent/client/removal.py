"""Deleting tasks, so that what was interrupted is finished by the next one."""

from collections.abc import Iterator
from functools import partial

from simagent.client.calls import Calls
from simagent.client.errors import ClientError
from simagent.client.listing import Listing
from simagent.domain import mutations
from simagent.domain.keys import TaskKeys
from simagent.domain.mutations import SupersededError
from simagent.domain.state import Status
from simagent.ports.store import NotFoundError

TOMBSTONE_SECONDS = 30 * 86_400.0
"""How long it is known of a task that it was there."""


class Removal:
    """Removes tasks that have ended, and what is left of them."""

    def __init__(self, calls: Calls, listing: Listing) -> None:
        self._calls = calls
        self._listing = listing

    def delete(self, task: TaskKeys) -> None:
        """Remove an ended task and all that belongs to it; a tombstone is kept for 30 days."""
        calls, at = self._calls, self._calls.clock.wall()
        try:
            calls.found(task, lambda: calls.ledger.change(task, partial(mutations.delete, at=at)))
        except SupersededError as error:
            raise ClientError(f"task {task.id}: {error}: kill it first") from None
        calls.remove_marker(task)
        self._remove_rest(task)

    def prune(self, *, older_than: float) -> Iterator[TaskKeys]:
        """Delete the tasks that ended more than ``older_than`` seconds ago; yield each.

        Finishes deletes that were interrupted, and removes tombstones after 30 days.
        """
        now = self._calls.clock.wall()
        for key in list(self._listing.entries()):
            try:
                row = self._listing.row(self._listing.task(key))
            except NotFoundError:  # its tombstone was removed, and then we were interrupted
                self._remove(key)
                continue
            if row is None or not row.state.terminal:
                continue
            age = now - (row.state.ended_at or now)
            if row.state.status is Status.DELETED:
                self._remove_rest(row.task)
                if age > TOMBSTONE_SECONDS:
                    self._remove(row.task.state)
                    self._remove(key)
            elif age > older_than:
                self.delete(row.task)
                yield row.task

    def _remove_rest(self, task: TaskKeys) -> None:
        """Remove all of a deleted task but its tombstone."""
        for key in list(self._calls.scan(task.root)):
            if key != task.state:
                self._remove(key)

    def _remove(self, key: str) -> None:
        self._calls.retried(partial(self._calls.ledger.store.delete, key))
