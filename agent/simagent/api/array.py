"""An array of tasks as the Python client has it in hand."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import partial

from simagent.api.reading import Duration, to_seconds
from simagent.api.task import Task
from simagent.client.caller import whoami
from simagent.client.errors import ClientError
from simagent.client.listing import at_a_time
from simagent.client.tasks import Tasks
from simagent.domain.arrays import ArrayRecord
from simagent.domain.keys import TaskKeys
from simagent.domain.state import State, Status


class Array:
    """The handle of an array: iterate over it for its tasks, by their indexes.

    Made by `Client.submit_array` and `Client.array`.
    """

    def __init__(self, tasks: Callable[[], Tasks], array_id: str, record: ArrayRecord) -> None:
        self._open = tasks
        self._id = array_id
        self._record = record

    @property
    def id(self) -> str:
        """The array's id."""
        return self._id

    def __len__(self) -> int:
        return self._record.size

    def __iter__(self) -> Iterator[Task]:
        return iter(self.tasks())

    def __getitem__(self, index: int) -> Task:
        return self.tasks()[index]

    def __repr__(self) -> str:
        return f"<Array {self._id} of {len(self)} tasks>"

    @property
    def name(self) -> str:
        """The name that its tasks have."""
        return self._record.spec.name

    def tasks(self) -> Sequence[Task]:
        """Give the handles of its tasks, by their indexes; nothing is read."""
        return [Task(self._open, keys) for keys in self._keys()]

    def states(self) -> Iterator[State | None]:
        """Read how its tasks stand, by their indexes; None for one that is not there (yet)."""
        return (state for _, state in self._open().arrays.states(self._keys()))

    def counts(self) -> dict[Status, int]:
        """Count its tasks by how they stand; those that are not there (yet) are `submitted`."""
        counted = Counter(state.status if state else Status.SUBMITTED for state in self.states())
        return {status: counted[status] for status in Status if counted[status]}

    def wait(self) -> Iterator[tuple[Task, State]]:
        """Yield its tasks with their last states, each as it ends, until all have ended."""
        for keys, state in self._open().arrays.ended(self._id):
            yield Task(self._open, keys, state=state), state

    def kill(self, *, grace: Duration | None = None) -> dict[Status, int]:
        """Ask for the end of all its tasks, as `Task.kill` does; count how they stand then."""
        seconds = None if grace is None else to_seconds("grace", grace)

        def kill(keys: TaskKeys) -> Status | None:
            try:
                return self._open().kill(keys, by=whoami(), grace=seconds).status
            except ClientError:
                return None  # it was not submitted yet, or is gone

        found = Counter(at_a_time(kill, self._keys()))
        return {status: found[status] for status in Status if found[status]}

    def delete(self) -> None:
        """Remove all its tasks, which must have ended, and what they share."""
        present = [
            keys
            for keys, state in self._open().arrays.states(self._keys())
            if state is not None and state.status is not Status.DELETED
        ]
        for _ in at_a_time(partial(self._open().delete), present):
            pass
        self._open().arrays.tidy(self._id)

    def _keys(self) -> list[TaskKeys]:
        return self._open().arrays.tasks(self._id)
