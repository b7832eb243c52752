"""The list of a project's tasks: as few reads as may be, many of them at a time."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from itertools import islice
from typing import TypeVar

from simagent.client.calls import Calls
from simagent.domain import keys
from simagent.domain.keys import TaskKeys
from simagent.domain.spec import Spec
from simagent.domain.state import TERMINAL, State, Status
from simagent.ledger import CorruptError, TooNewError
from simagent.ports.store import NotFoundError, StoreRefusedError

AT_A_TIME = 16
"""Requests that are under way at the same time: as many as a client of S3 has connections."""
_FIRST, _MOST = 64, 2048
"""Rows that are read ahead: few at first, as the first ones may do."""
_MANY_OPEN = 5000
"""Open tasks beyond which the index is walked all the same."""
_LONG = 3.0

_T = TypeVar("_T")
_U = TypeVar("_U")


@dataclass(frozen=True, slots=True)
class Listed:
    """A row of the task list. ``spec`` is None where it cannot be read."""

    task: TaskKeys
    state: State
    spec: Spec | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What is to be listed: tasks that match all of it. ``name`` is a glob.

    No statuses are all but `deleted`.
    """

    statuses: frozenset[Status] = frozenset()
    name: str | None = None
    tags: Mapping[str, str] = field(default_factory=dict)

    @property
    def only_open(self) -> bool:
        """Whether no task that has ended is wanted."""
        return bool(self.statuses) and not self.statuses & TERMINAL

    def stands(self, state: State) -> bool:
        """Tell whether a task that stands so is wanted."""
        return state.status in (self.statuses or set(Status) - {Status.DELETED})

    def describes(self, spec: Spec | None) -> bool:
        """Tell whether a task that is described so is wanted."""
        if self.name is not None and not (spec and fnmatchcase(spec.name, self.name)):
            return False
        return all(spec and spec.tags.get(key) == value for key, value in self.tags.items())


EVERY = Wanted()
"""All tasks but those that were deleted."""


class Listing:
    """Walks the tasks of a project."""

    def __init__(self, calls: Calls, project: str) -> None:
        self._calls = calls
        self._project = project

    def rows(
        self, wanted: Wanted, limit: int | None = None, among: Iterable[TaskKeys] | None = None
    ) -> Iterator[Listed]:
        """Walk the tasks that are wanted, newest first, up to ``limit``.

        Or those ``among`` some, in their order.
        """
        few = self._open() if wanted.only_open and among is None else None
        if among is not None:
            rows: Iterable[Listed] = (r for r in self._read(among, wanted) if r is not None)
        elif few is not None:
            found = (row for row in self._read(few, wanted) if row is not None)
            rows = sorted(found, key=lambda row: (-row.state.submitted_at, row.task.id))
        else:
            rows = self._walk(wanted, limit)
        return islice(rows, limit)

    def entries(self) -> Iterator[str]:
        """Walk the keys of the index, newest first."""
        return self._calls.scan(keys.index_prefix(self._project))

    def task(self, entry: str) -> TaskKeys:
        """Tell the task of an index entry."""
        return TaskKeys(self._project, keys.index_task(entry))

    def row(self, task: TaskKeys, wanted: Wanted | None = None) -> Listed | None:
        """Read a task; None where it cannot be, or is not wanted. Raises `NotFoundError`."""
        ledger = self._calls.ledger
        try:
            state = self._calls.retried(lambda: ledger.state(task))
        except (CorruptError, TooNewError):
            return None
        if wanted is not None and not wanted.stands(state):
            return None
        spec: Spec | None = None
        try:
            spec = self._calls.retried(lambda: ledger.spec(task))
        except (CorruptError, TooNewError):
            spec = None
        return (
            None if wanted is not None and not wanted.describes(spec) else Listed(task, state, spec)
        )

    def _walk(self, wanted: Wanted, limit: int | None) -> Iterator[Listed]:
        """Read the index's tasks from the newest on; it is not read further than is asked for."""
        began, told, seen, shown = self._calls.clock.now(), False, 0, 0
        entries = self.entries()
        size = min(_MOST, limit or _FIRST)
        while window := [self.task(entry) for entry in islice(entries, size)]:
            for row in self._read(window, wanted):
                seen += 1
                if row is not None:
                    shown += 1
                    yield row
            if not told and self._calls.clock.now() - began > _LONG:
                told = True
                self._calls.notice(
                    f"{shown} of the {seen} newest tasks match so far: going on to the oldest, for "
                    "each task that has ended has to be read"
                )
            size = min(_MOST, 2 * size)

    def _read(self, tasks: Iterable[TaskKeys], wanted: Wanted) -> Iterator[Listed | None]:
        """Read tasks, in their order; None for each that is not wanted, or not there."""

        def read(task: TaskKeys) -> Listed | None:
            try:
                return self.row(task, wanted)
            except NotFoundError:
                return None

        return at_a_time(read, tasks)

    def _open(self) -> list[TaskKeys] | None:
        """List the project's tasks that may not have ended; None where that is not worth it."""
        found: list[TaskKeys] = []
        try:
            for key in self._calls.scan(keys.OPEN):
                try:
                    task = keys.marked(key.rpartition("/")[2])
                except ValueError:
                    continue
                if task.project == self._project:
                    found.append(task)
                if len(found) > _MANY_OPEN:
                    return None
        except StoreRefusedError:  # this client may see its project alone
            return None
        return found


def at_a_time(call: Callable[[_T], _U], over: Iterable[_T]) -> Iterator[_U]:
    """Call for each, some at the same time; yield the results in their order.

    What is left is not begun where one raises, or where the walk is left, and what is on its way
    is not waited for.
    """
    pool = ThreadPoolExecutor(AT_A_TIME, thread_name_prefix="simagent-read")
    try:
        yield from pool.map(call, over)
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
