"""The client: all that is asked of tasks, as the command line and other programs ask it."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

from pydantic import ValidationError

from simagent.client.errors import ClientError, UsageError
from simagent.client.files import TaskFiles
from simagent.client.following import Follower, LogPiece
from simagent.client.submission import Submission
from simagent.domain import keys, mutations
from simagent.domain.fleet import Heartbeat, Refused
from simagent.domain.ids import check_id, new_id
from simagent.domain.keys import STREAMS, Stream, TaskKeys
from simagent.domain.mutations import SupersededError
from simagent.domain.spec import Spec
from simagent.domain.state import OUTCOMES, State, Status
from simagent.domain.support import unsupported
from simagent.ledger import CorruptError, Ledger, TooNewError
from simagent.ports.clock import Clock
from simagent.ports.queue import Queue
from simagent.ports.retry import retrying
from simagent.ports.store import Body, NotFoundError
from simagent.transfer.download import Place, download
from simagent.transfer.errors import OutputChangedError
from simagent.transfer.inputs import InputChangedError, plan_inputs

_PATIENCE = 60.0
_TOMBSTONE_SECONDS = 30 * 86_400.0
_COPY_BYTES = 2**20
_PAGE = 1000
_T = TypeVar("_T")
_Record = TypeVar("_Record", Heartbeat, Refused)


@dataclass(frozen=True, slots=True)
class Listed:
    """A row of the task list. ``spec`` is None where it cannot be read."""

    task: TaskKeys
    state: State
    spec: Spec | None


class Client:
    """Works on the tasks of one project. ``open_queue`` gives the queue of a group.

    Methods raise `ClientError`, and `simagent.ports.store.StoreError` where the store did not
    answer for a minute.
    """

    def __init__(
        self, ledger: Ledger, open_queue: Callable[[str], Queue], clock: Clock, *, project: str
    ) -> None:
        self._ledger = ledger
        self._clock = clock
        self._project = project
        self._submission = Submission(ledger, open_queue, clock, self._retried)

    def task(self, task_id: str) -> TaskKeys:
        """Name a task of the client's project. Raises `UsageError`."""
        try:
            return TaskKeys(self._project, check_id(task_id))
        except ValueError as error:
            raise UsageError(str(error)) from None

    def submit(
        self, spec: Spec, *, base: Path, task_id: str | None = None, ring: bool = True
    ) -> TaskKeys:
        """Submit a task; inputs without a URL are taken from beneath ``base``.

        With the ``task_id`` of an interrupted submission of the same spec it goes on with that.
        Without ``ring`` no agent is told: for those who run the task themselves. Raises
        `UsageError`: nothing was written then.
        """
        stored, bodies = self.check(spec, base=base, task_id=task_id)
        task = TaskKeys(spec.project, self._id(task_id))
        try:
            self._submission.submit(task, stored, bodies, ring=ring)
        except (InputChangedError, OSError) as error:
            raise ClientError(f"task {task.id} is not complete: {error}") from None
        return task

    def check(
        self, spec: Spec, *, base: Path, task_id: str | None = None
    ) -> tuple[Spec, dict[int, Body]]:
        """Give what `submit` would store: the spec, and what is uploaded for its inputs.

        Writes nothing. Raises `UsageError`.
        """
        if task_id is not None:
            self.task(task_id)
        refusals = list(unsupported(spec))
        if refusals:
            raise UsageError("\n".join(refusals))
        try:
            return plan_inputs(spec, base)
        except ValueError as error:
            raise UsageError(str(error)) from None

    def retry(self, task: TaskKeys) -> TaskKeys:
        """Submit an ended task once more: a new task with the same spec and inputs."""
        status = self.state(task).status
        if status is Status.DELETED:
            raise ClientError(f"task {task.id} was deleted, with its inputs: submit it anew")
        if status not in OUTCOMES:
            raise ClientError(f"task {task.id} has not ended: wait for it, or kill it first")
        spec = self.spec(task)
        uploaded = [int(i.source.rpartition("/")[2]) for i in spec.inputs if i.scheme == "upload"]
        bodies: dict[int, Body] = {n: partial(self._read, task.input(n)) for n in uploaded}
        again = TaskKeys(task.project, self._id(None))
        self._submission.submit(again, spec, bodies, retry_of=task.id)
        return again

    def state(self, task: TaskKeys) -> State:
        """Read a task's state."""
        return self._found(task, lambda: self._ledger.state(task))

    def spec(self, task: TaskKeys) -> Spec:
        """Read a task's spec."""
        return self._found(task, lambda: self._ledger.spec(task))

    def refusals(self, task: TaskKeys) -> Sequence[Refused]:
        """Tell which agents cannot run a task, and why: those that are as they were then."""
        found = (self._record(Refused, key) for key in list(self._scan(task.refusals)))
        return tuple(refused for refused in found if refused is not None and self._stands(refused))

    def _stands(self, refused: Refused) -> bool:
        heartbeat = self._record(Heartbeat, keys.agent(refused.agent))
        return heartbeat is not None and heartbeat.incarnation == refused.incarnation

    def _record(self, model: type[_Record], key: str) -> _Record | None:
        """Read what an agent tells; None where it is gone, or cannot be read."""
        try:
            return model.model_validate_json(
                self._retried(partial(self._ledger.store.get, key)).data
            )
        except (NotFoundError, ValidationError):
            return None

    def wait(self, task: TaskKeys) -> State:
        """Wait for a task's end and give its last state."""
        *_, last = self.states(task)
        return last

    def states(self, task: TaskKeys) -> Iterator[State]:
        """Yield a task's state now and whenever it has changed, up to the terminal one."""
        self.state(task)
        return Follower(self._ledger, self._clock, self._retried, task).states()

    def logs(
        self, task: TaskKeys, streams: Sequence[Stream] = STREAMS, *, follow: bool = False
    ) -> Iterator[LogPiece]:
        """Yield a task's logs, with ``follow`` up to its end."""
        self.state(task)
        return Follower(self._ledger, self._clock, self._retried, task).logs(streams, follow=follow)

    def kill(self, task: TaskKeys, *, by: str, grace: float | None = None) -> State:
        """Ask for a task's end; give the state as it is then, which is terminal if it had ended.

        ``grace`` is the seconds between SIGTERM and SIGKILL; None takes the spec's.
        """
        at = self._clock.wall()
        wish = partial(mutations.kill, by=by, at=at, grace=grace)
        state = self._found(task, lambda: self._ledger.change(task, wish))
        if state.terminal:
            self._remove_marker(task)
        return state

    def list(self) -> Iterator[Listed]:
        """Walk the project's tasks, newest first."""
        for key in self._scan(keys.index_prefix(self._project)):
            with suppress(NotFoundError):
                row = self._row(key)
                if row is not None:
                    yield row

    def _row(self, key: str) -> Listed | None:
        """Read what an index entry leads to; None where it cannot be. Raises `NotFoundError`."""
        task = TaskKeys(self._project, keys.index_task(key))
        try:
            state = self._retried(partial(self._ledger.state, task))
        except (CorruptError, TooNewError):
            return None
        try:
            spec = self._retried(partial(self._ledger.spec, task))
        except (CorruptError, TooNewError):
            spec = None
        return Listed(task, state, spec)

    def download(
        self,
        task: TaskKeys,
        patterns: Sequence[str],
        target: Path,
        *,
        on_progress: Callable[[int], None] | None = None,
        on_skip: Callable[[str, str], None] | None = None,
    ) -> Sequence[Path]:
        """Fetch the outputs that match a pattern (all without one) into a folder.

        ``on_progress`` is told the bytes of each piece written, ``on_skip`` the path of what is
        left out because it would lead out of the folder, and why. Raises OSError, too.
        """
        state = self.state(task)
        if state.output is None:
            hint = "they come with its end" if not state.terminal else "it published none"
            raise ClientError(f"task {task.id} is {state.status} and has no outputs: {hint}")
        try:
            paths = download(
                self._ledger.store,
                state.output,
                patterns or ["**"],
                Place(target),
                retry=self._retried,
                on_progress=on_progress,
                on_skip=on_skip,
            )
        except OutputChangedError as error:
            raise ClientError(f"task {task.id}: {error}") from None
        if not paths and patterns:
            raise ClientError(f"task {task.id} has no output that matches {' or '.join(patterns)}")
        return paths

    def files(
        self,
        task: TaskKeys,
        *,
        timeout: float = 10.0,
        on_note: Callable[[str], None] = lambda _text: None,
    ) -> TaskFiles:
        """Look into a task's folder, also while it runs.

        ``timeout`` is how long its agent may take to answer, in seconds; ``on_note`` is told what
        a person should know meanwhile.
        """
        self.state(task)
        return TaskFiles(
            self._ledger, self._clock, self._retried, task, timeout=timeout, note=on_note
        )

    def delete(self, task: TaskKeys) -> None:
        """Remove an ended task and all that belongs to it; a tombstone is kept for 30 days."""
        at = self._clock.wall()
        try:
            self._found(task, lambda: self._ledger.change(task, partial(mutations.delete, at=at)))
        except SupersededError as error:
            raise ClientError(f"task {task.id}: {error}: kill it first") from None
        self._remove_marker(task)
        self._remove_rest(task)

    def prune(self, *, older_than: float) -> Iterator[TaskKeys]:
        """Delete the tasks that ended more than ``older_than`` seconds ago; yield each.

        Finishes deletes that were interrupted, and removes tombstones after 30 days.
        """
        now = self._clock.wall()
        for key in list(self._scan(keys.index_prefix(self._project))):
            try:
                row = self._row(key)
            except NotFoundError:  # its tombstone was removed, and then we were interrupted
                self._retried(partial(self._ledger.store.delete, key))
                continue
            if row is None or not row.state.terminal:
                continue
            age = now - (row.state.ended_at or now)
            if row.state.status is Status.DELETED:
                self._remove_rest(row.task)
                if age > _TOMBSTONE_SECONDS:
                    self._retried(partial(self._ledger.store.delete, row.task.state))
                    self._retried(partial(self._ledger.store.delete, key))
            elif age > older_than:
                self.delete(row.task)
                yield row.task

    def _remove_rest(self, task: TaskKeys) -> None:
        """Remove all of a deleted task but its tombstone."""
        for key in list(self._scan(task.root)):
            if key != task.state:
                self._retried(partial(self._ledger.store.delete, key))

    def _scan(self, prefix: str) -> Iterator[str]:
        """Yield the keys with a prefix, in their order."""
        after = ""
        while True:
            page = self._retried(partial(self._page, prefix, after))
            yield from page
            if len(page) < _PAGE:
                return
            after = page[-1]

    def _page(self, prefix: str, after: str) -> Sequence[str]:
        walk = self._ledger.store.scan(prefix, after=after, limit=_PAGE)
        return tuple(entry.key for entry in walk)

    def _remove_marker(self, task: TaskKeys) -> None:
        try:
            group = self._ledger.spec(task).group
        except (CorruptError, TooNewError, NotFoundError):
            return  # the sweep removes it
        self._retried(lambda: self._ledger.remove_marker(group, task))

    def _id(self, task_id: str | None) -> str:
        return self.task(task_id).id if task_id else new_id(self._clock.wall())

    def _read(self, key: str) -> Iterator[bytes]:
        with self._ledger.store.open(key) as body:
            while data := body.read(_COPY_BYTES):
                yield data

    def _found(self, task: TaskKeys, call: Callable[[], _T]) -> _T:
        try:
            return self._retried(call)
        except NotFoundError:
            raise ClientError(
                f"no task {task.id} in project {task.project}: `simagent list` shows them"
            ) from None
        except (CorruptError, TooNewError) as error:
            raise ClientError(str(error)) from None

    def _retried(self, call: Callable[[], _T]) -> _T:
        return retrying(call, clock=self._clock, deadline=self._clock.now() + _PATIENCE)
