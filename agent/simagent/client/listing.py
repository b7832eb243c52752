"""The list of a project's tasks."""

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import partial

from simagent.client.calls import Calls
from simagent.domain import keys
from simagent.domain.keys import TaskKeys
from simagent.domain.spec import Spec
from simagent.domain.state import State
from simagent.ledger import CorruptError, TooNewError
from simagent.ports.store import NotFoundError


@dataclass(frozen=True, slots=True)
class Listed:
    """A row of the task list. ``spec`` is None where it cannot be read."""

    task: TaskKeys
    state: State
    spec: Spec | None


class Listing:
    """Walks the tasks of a project."""

    def __init__(self, calls: Calls, project: str) -> None:
        self._calls = calls
        self._project = project

    def rows(self) -> Iterator[Listed]:
        """Walk the tasks, newest first."""
        for key in self.entries():
            with suppress(NotFoundError):
                row = self.row(key)
                if row is not None:
                    yield row

    def entries(self) -> Iterator[str]:
        """Walk the keys of the index, newest first."""
        return self._calls.scan(keys.index_prefix(self._project))

    def row(self, entry: str) -> Listed | None:
        """Read what an index entry leads to; None where it cannot be. Raises `NotFoundError`."""
        task = TaskKeys(self._project, keys.index_task(entry))
        ledger = self._calls.ledger
        try:
            state = self._calls.retried(partial(ledger.state, task))
        except (CorruptError, TooNewError):
            return None
        try:
            spec = self._calls.retried(partial(ledger.spec, task))
        except (CorruptError, TooNewError):
            spec = None
        return Listed(task, state, spec)
