"""Arrays of tasks: submitted so that it may be repeated, found again, and removed as a whole."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from functools import partial

from pydantic import ValidationError

from simagent.client.caller import whoami
from simagent.client.calls import Calls
from simagent.client.errors import ClientError, UsageError
from simagent.client.listing import at_a_time
from simagent.client.removal import TOMBSTONE_SECONDS
from simagent.domain import bell, keys
from simagent.domain.arrays import ArrayRecord, element, element_spec, elements
from simagent.domain.keys import ArrayKeys, TaskKeys
from simagent.domain.mutations import SupersededError
from simagent.domain.spec import Spec
from simagent.domain.state import State, Status
from simagent.ledger import CorruptError, TooNewError, sha256, spec_bytes
from simagent.ports.queue import Queue, QueueError
from simagent.ports.store import Body, NotFoundError, PreconditionError, StoreRefusedError

_AT_ONCE = 200
"""Elements that are written before their bells are rung, and that are looked at in a turn."""


class Arrays:
    """The arrays of a project. ``open_queue`` gives the queue of a group."""

    def __init__(self, calls: Calls, open_queue: Callable[[str], Queue], project: str) -> None:
        self._calls = calls
        self._ledger = calls.ledger
        self._open_queue = open_queue
        self._project = project

    def find(self, array_id: str) -> ArrayRecord | None:
        """Read what is written down of an array; None where there is none of that id."""
        key = ArrayKeys(self._project, array_id).record
        try:
            data = self._calls.retried(partial(self._ledger.store.get, key)).data
            return ArrayRecord.model_validate_json(data)
        except NotFoundError:
            return None
        except ValidationError as error:
            first = str(error).splitlines()[0]
            raise ClientError(f"array {array_id} cannot be read: {first}") from None

    def tasks(self, array_id: str) -> list[TaskKeys]:
        """Name the tasks of an array, by their indexes; none where there is no such array."""
        record = self.find(array_id)
        return elements(ArrayKeys(self._project, array_id), record.size) if record else []

    def submit(
        self,
        array: ArrayKeys,
        spec: Spec,
        bodies: dict[int, Body],
        *,
        on_progress: Callable[[int], None] = lambda _done: None,
    ) -> ArrayRecord:
        """Submit an array, or go on with an interrupted submission of the same spec.

        ``on_progress`` is told how many tasks are submitted. Raises `UsageError` where the id is
        taken by another array.
        """
        record, again = self._begin(array, spec)
        self._upload(array, bodies)
        heard = True
        for first in range(0, record.size, _AT_ONCE):
            indexes = range(first, min(first + _AT_ONCE, record.size))
            create = partial(self._create, array, record, again=again)
            waiting = [task for task in at_a_time(create, indexes) if task is not None]
            heard = self._ring(spec.group, waiting, heard)
            on_progress(indexes.stop)
        return record

    def states(self, tasks: Iterable[TaskKeys]) -> Iterator[tuple[TaskKeys, State | None]]:
        """Read the states of tasks, in their order; None where there is none to be read."""

        def read(task: TaskKeys) -> tuple[TaskKeys, State | None]:
            try:
                return task, self._calls.retried(partial(self._ledger.state, task))
            except (NotFoundError, CorruptError, TooNewError):
                return task, None

        return at_a_time(read, tasks)

    def ended(self, array_id: str) -> Iterator[tuple[TaskKeys, State]]:
        """Yield the tasks of an array with their last states, each as it ends."""
        record = self.find(array_id)
        if record is None:
            raise ClientError(f"there is no array {array_id} in project {self._project}")
        array = ArrayKeys(self._project, array_id)
        left = dict.fromkeys(elements(array, record.size))
        pause = self._calls.polls.first
        while left:
            marked = self._marked(array, record.spec.group)
            gone = [task for task in left if task not in marked][:_AT_ONCE]
            # A marker may be left behind: some of the others are looked at in turns.
            others = [task for task in left if task in marked][: max(1, _AT_ONCE // 10)]
            progress = False
            for task, state in self.states([*gone, *others]):
                del left[task]
                if state is not None and state.terminal:
                    progress = True
                    yield task, state
                else:
                    left[task] = None  # at the end
            pause = self._calls.polls.first if progress else pause
            if left and not progress:
                self._calls.clock.wait(pause)
                pause = min(self._calls.polls.state, pause * 1.5)

    def tidy(self, array_id: str) -> bool:
        """Remove an array none of whose tasks is left but as a tombstone; tell whether it was.

        While some of its tasks may still be written it is left alone.
        """
        array = ArrayKeys(self._project, array_id)
        record = self.find(array_id)
        if record is None:
            return False
        mine = {task.id for task in elements(array, record.size)}
        beneath = TaskKeys(array.project, f"{array.id}-").root.removesuffix("/")
        left = [key for key in self._calls.scan(beneath) if key.split("/")[3] in mine]
        tombstones = sum(key.endswith("/state.json") for key in left)
        age = self._calls.clock.wall() - record.submitted_at
        if tombstones < len(left) or (tombstones < record.size and age < TOMBSTONE_SECONDS):
            return False
        for key in [*self._calls.scan(array.root)][::-1]:
            if key != array.record:
                self._calls.retried(partial(self._ledger.store.delete, key))
        self._calls.retried(partial(self._ledger.store.delete, array.record))
        return True

    def tidy_all(self) -> None:
        """Remove all arrays that `tidy` does."""
        for key in list(self._calls.scan(keys.arrays_prefix(self._project))):
            if key.endswith("/" + keys.ARRAY_RECORD):
                self.tidy(key.split("/")[-2])

    def _begin(self, array: ArrayKeys, spec: Spec) -> tuple[ArrayRecord, bool]:
        """Write down the array; tell whether it was there before."""
        assert spec.array is not None
        self._refuse_removed(array, spec.array.size)
        record = ArrayRecord(
            size=spec.array.size,
            spec=spec,
            submitted_at=self._calls.clock.wall(),
            submitted_by=whoami(),
        )
        data = record.model_dump_json(indent=1, exclude_defaults=True).encode()
        try:
            self._calls.retried(partial(self._ledger.store.put, array.record, data, if_absent=True))
        except PreconditionError:
            found = self.find(array.id)
            if found is None:
                raise ClientError(f"array {array.id} was just removed: submit it anew") from None
            if sha256(spec_bytes(found.spec)) != sha256(spec_bytes(spec)):
                raise UsageError(
                    f"array {array.id} exists already, with another spec: use another --id"
                ) from None
            return found, True
        return record, False

    def _refuse_removed(self, array: ArrayKeys, size: int) -> None:
        """Refuse the id of an array of which tombstones are left: none of its tasks would run."""
        try:
            state = self._calls.retried(partial(self._ledger.state, element(array, 0, size)))
        except (NotFoundError, CorruptError, TooNewError):
            return
        if state.status is Status.DELETED and self.find(array.id) is None:
            raise UsageError(f"array {array.id} exists already, and was deleted: use another --id")

    def _upload(self, array: ArrayKeys, bodies: dict[int, Body]) -> None:
        """Store the shared inputs, once: tasks may be reading them when this is repeated."""
        store = self._ledger.store
        if not bodies:
            return
        with suppress(NotFoundError):
            self._calls.retried(partial(store.get, array.complete))
            return
        for number, body in bodies.items():
            self._calls.transfer(partial(store.upload, array.input(number), body))
        self._calls.retried(partial(store.put, array.complete, b"{}"))

    def _create(
        self, array: ArrayKeys, record: ArrayRecord, index: int, *, again: bool
    ) -> TaskKeys | None:
        """Write down one task; None where it needs no bell."""
        task, spec = element(array, index, record.size), element_spec(array, record, index)
        retried, ledger = self._calls.retried, self._ledger
        if again:
            with suppress(NotFoundError, CorruptError, TooNewError):
                if retried(partial(ledger.state, task)).terminal:
                    return None
        retried(partial(ledger.open_marker, spec.group, task))
        try:
            digest = retried(partial(ledger.create_spec, task, spec))
        except SupersededError as error:
            raise UsageError(f"{error}: use another --id") from None
        # Its inputs are there: it is complete with its first state.
        first = State(
            status=Status.QUEUED,
            submitted_by=record.submitted_by,
            submitted_at=record.submitted_at,
            spec_sha256=digest,
            bell_at=self._calls.clock.wall(),
        )
        state = retried(partial(ledger.create_state, task, first))
        entry = keys.index_entry(task.project, task.id, record.submitted_at)
        retried(partial(ledger.store.put, entry, b""))
        return task if state.status is Status.QUEUED else None

    def _ring(self, group: str, tasks: list[TaskKeys], heard: bool) -> bool:
        """Let agents hear of tasks; tell whether they did. That they did not is told once."""
        if not tasks:
            return heard
        try:
            self._open_queue(group).send_many([bell.encode(task) for task in tasks])
        except QueueError as error:
            if heard:
                self._calls.notice(
                    f"no agent was told of some tasks ({error}): one that sweeps finds them "
                    "within minutes"
                )
            return False
        return heard

    def _marked(self, array: ArrayKeys, group: str) -> set[TaskKeys]:
        """Tell which tasks of an array are not known to have ended."""
        found: set[TaskKeys] = set()
        with suppress(StoreRefusedError):
            for key in self._calls.scan(f"{keys.open_prefix(group)}{array.id}-"):
                with suppress(ValueError):
                    found.add(keys.marked(key.rpartition("/")[2]))
        return found
