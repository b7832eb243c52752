"""All that is asked of the tasks of a project, on a ledger; `simagent.Client` is made of it."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

from simagent.client.agents import Agents
from simagent.client.arrays import Arrays
from simagent.client.attention import call_quietly
from simagent.client.calls import Calls, Notice, log_notice
from simagent.client.errors import ClientError, UsageError
from simagent.client.files import TaskFiles
from simagent.client.following import Follower, LogPiece
from simagent.client.listing import EVERY, Listed, Listing, Wanted
from simagent.client.looking import Look, looks
from simagent.client.pace import LOCAL_POLLS, Polls
from simagent.client.published import output_of
from simagent.client.removal import Removal
from simagent.client.submission import Submission
from simagent.client.syncing import Fetched, Sync
from simagent.domain import keys, mutations
from simagent.domain.arrays import check_array_id
from simagent.domain.fleet import Heartbeat, Refused
from simagent.domain.ids import check_id, new_id
from simagent.domain.keys import STREAMS, ArrayKeys, Stream, TaskKeys
from simagent.domain.spec import Spec
from simagent.domain.state import OUTCOMES, State, Status
from simagent.domain.support import unsupported
from simagent.ledger import Ledger
from simagent.ports.clock import Clock
from simagent.ports.queue import Queue
from simagent.ports.store import Body
from simagent.transfer.download import Place, download
from simagent.transfer.errors import OutputChangedError
from simagent.transfer.inputs import InputChangedError, plan_inputs

_COPY_BYTES = 2**20


class Tasks:
    """Works on the tasks of one project. ``open_queue`` gives the queue of a group.

    Safe between threads. ``notice`` is told what a person should know meanwhile, as that the
    store does not answer. Methods raise `ClientError`, and `simagent.ports.store.StoreError`
    where the store did not answer for a minute.
    """

    def __init__(
        self,
        ledger: Ledger,
        open_queue: Callable[[str], Queue],
        clock: Clock,
        *,
        project: str,
        notice: Notice = log_notice,
        polls: Polls = LOCAL_POLLS,
    ) -> None:
        self._calls = Calls(ledger, clock, notice, polls)
        self._ledger = ledger
        self._clock = clock
        self._project = project
        self._submission = Submission(self._calls, open_queue)
        self._listing = Listing(self._calls, project)
        self._removal = Removal(self._calls, self._listing)
        self.agents = Agents(self._calls)
        self.arrays = Arrays(self._calls, open_queue, project)

    def task(self, task_id: str) -> TaskKeys:
        """Name a task of the project. Raises `UsageError`."""
        try:
            return TaskKeys(self._project, check_id(task_id))
        except ValueError as error:
            raise UsageError(str(error)) from None

    def submit(
        self,
        spec: Spec,
        *,
        base: Path,
        task_id: str | None = None,
        ring: bool = True,
        on_progress: Callable[[int], None] | None = None,
    ) -> TaskKeys:
        """Submit a task; inputs without a URL are taken from beneath ``base``.

        With the ``task_id`` of an interrupted submission of the same spec it goes on with that.
        Without ``ring`` no agent is told: for those who run the task themselves. ``on_progress``
        is told the bytes of each piece sent; less than none where one is sent again. Raises
        `UsageError`: nothing was written then.
        """
        if spec.array is not None:
            raise UsageError("array: these are many tasks: submit them as an array")
        stored, bodies = self.check(spec, base=base, task_id=task_id)
        task = TaskKeys(spec.project, self._id(task_id))
        if task_id is not None and self._calls.is_array(task):
            raise UsageError(f"{task.id} is the id of an array: use another --id")
        if on_progress is not None:
            bodies = {n: _counted(body, on_progress) for n, body in bodies.items()}
        try:
            self._submission.submit(task, stored, bodies, ring=ring)
        except (InputChangedError, OSError) as error:
            raise ClientError(f"task {task.id} is not complete: {error}") from None
        return task

    def submit_array(
        self,
        spec: Spec,
        *,
        base: Path,
        array_id: str | None = None,
        on_progress: Callable[[int], None] = lambda _done: None,
    ) -> ArrayKeys:
        """Submit the tasks of an array, or go on with an interrupted submission, as `submit` does.

        ``on_progress`` is told how many are submitted. Raises `UsageError`.
        """
        if spec.array is None:
            raise UsageError("array: it has no size: how many tasks shall there be?")
        stored, bodies = self.check(spec, base=base, task_id=array_id)
        array_id = self._id(array_id)
        try:
            array = ArrayKeys(spec.project, check_array_id(array_id, spec.array.size))
        except ValueError as error:
            raise UsageError(str(error)) from None
        if self._calls.is_there(TaskKeys(array.project, array.id).state):
            raise UsageError(f"{array.id} is the id of a task: use another --id")
        try:
            self.arrays.submit(array, stored, bodies, on_progress=on_progress)
        except (InputChangedError, OSError) as error:
            raise ClientError(f"array {array.id} is not complete: {error}") from None
        return array

    def check(
        self, spec: Spec, *, base: Path, task_id: str | None = None
    ) -> tuple[Spec, dict[int, Body]]:
        """Give what `submit` would store: the spec, and what is uploaded for its inputs.

        Writes nothing. Raises `UsageError`.
        """
        if task_id is not None:
            self.task(task_id)
        refusals = list(unsupported(spec))
        if spec.array is not None and (spec.array.id, spec.array.index) != (None, None):
            refusals.append("array: id and index are set when it is submitted: give its size alone")
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
        place: TaskKeys | ArrayKeys = task
        if spec.array is not None and spec.array.id is not None:  # by itself from now on
            place = ArrayKeys(task.project, spec.array.id)
            alone = spec.array.model_copy(update={"id": None})
            spec = spec.model_copy(update={"array": alone})
        bodies: dict[int, Body] = {n: partial(self._read, place.input(n)) for n in uploaded}
        again = TaskKeys(task.project, self._id(None))
        self._submission.submit(again, spec, bodies, retry_of=task.id)
        return again

    def state(self, task: TaskKeys) -> State:
        """Read a task's state."""
        return self._calls.found(task, lambda: self._ledger.state(task))

    def spec(self, task: TaskKeys) -> Spec:
        """Read a task's spec."""
        return self._calls.found(task, lambda: self._ledger.spec(task))

    def refusals(self, task: TaskKeys) -> Sequence[Refused]:
        """Tell which agents cannot run a task, and why: those that are as they were then."""
        known = list(self._calls.scan(task.refusals))
        found = (self._calls.record(Refused, key) for key in known)
        return tuple(refused for refused in found if refused is not None and self._stands(refused))

    def _stands(self, refused: Refused) -> bool:
        heartbeat = self._calls.record(Heartbeat, keys.agent(refused.agent))
        return heartbeat is not None and heartbeat.incarnation == refused.incarnation

    def wait(self, task: TaskKeys) -> State:
        """Wait for a task's end and give its last state."""
        *_, last = self.states(task)
        return last

    def looks(
        self, task: TaskKeys, *, within: float | None = None, line: bool = False
    ) -> Iterator[Look]:
        """Yield what is seen of a task, up to its end or for ``within`` seconds.

        With ``line`` also what it printed last is looked for.
        """
        return looks(self._calls, task, within=within, line=line)

    def states(self, task: TaskKeys) -> Iterator[State]:
        """Yield a task's state now and whenever it has changed, up to the terminal one."""
        self.state(task)
        return Follower(self._calls, task).states()

    def logs(
        self, task: TaskKeys, streams: Sequence[Stream] = STREAMS, *, follow: bool = False
    ) -> Iterator[LogPiece]:
        """Yield a task's logs, with ``follow`` up to its end."""
        self.state(task)
        return Follower(self._calls, task).logs(streams, follow=follow)

    def kill(self, task: TaskKeys, *, by: str, grace: float | None = None) -> State:
        """Ask for a task's end; give the state as it is then, which is terminal if it had ended.

        ``grace`` is the seconds between SIGTERM and SIGKILL; None takes the spec's.
        """
        at = self._clock.wall()
        wish = partial(mutations.kill, by=by, at=at, grace=grace)
        state = self._calls.found(task, lambda: self._ledger.change(task, wish))
        if state.terminal:
            self._calls.remove_marker(task)
        else:
            call_quietly(self._ledger.store, self._clock, task)
        return state

    def list(
        self, wanted: Wanted = EVERY, limit: int | None = None, *, array: str | None = None
    ) -> Iterator[Listed]:
        """Walk the project's tasks that are wanted, newest first, up to ``limit``.

        Those of an ``array`` by their indexes.
        """
        among = None if array is None else self.arrays.tasks(array)
        return self._listing.rows(wanted, limit, among)

    def download(
        self,
        task: TaskKeys,
        patterns: Sequence[str],
        target: Path,
        *,
        attempt: int | None = None,
        on_progress: Callable[[int], None] | None = None,
        on_skip: Callable[[str, str], None] | None = None,
    ) -> Sequence[Path]:
        """Fetch the outputs that match a pattern (all without one) into a folder.

        With ``attempt`` those that there were when this one was given back.
        ``on_progress`` is told the bytes of each piece written, ``on_skip`` the path of what is
        left out because it would lead out of the folder, and why. Raises OSError, too.
        """
        output = output_of(task, self.state(task), attempt)
        try:
            paths = download(
                self._ledger.store,
                output,
                patterns or ["**"],
                Place(target),
                retry=self._calls.transfer,
                on_progress=on_progress,
                on_skip=on_skip,
            )
        except OutputChangedError as error:
            raise ClientError(f"task {task.id}: {error}") from None
        if not paths and patterns:
            raise ClientError(f"task {task.id} has no output that matches {' or '.join(patterns)}")
        return paths

    def sync(
        self,
        task: TaskKeys,
        patterns: Sequence[str],
        target: Path,
        *,
        timeout: float = 10.0,
        on_sent: Callable[[int], None] = lambda _bytes: None,
        on_progress: Callable[[int], None] | None = None,
        on_skip: Callable[[str, str], None] | None = None,
    ) -> Fetched:
        """Fetch what a running task has made so far, where it matches, into a folder.

        ``timeout`` is how long its agent may take to answer, in seconds; ``on_sent`` is told the
        bytes that it has put into the store so far. Else as `download`.
        """
        self.state(task)
        return Sync(self._calls, task, timeout=timeout).fetch(
            patterns, target, on_sent=on_sent, on_progress=on_progress, on_skip=on_skip
        )

    def files(
        self, task: TaskKeys, *, timeout: float = 10.0, on_note: Notice = lambda _text: None
    ) -> TaskFiles:
        """Look into a task's folder, also while it runs.

        ``timeout`` is how long its agent may take to answer, in seconds; ``on_note`` is told what
        a person should know meanwhile.
        """
        self.state(task)
        return TaskFiles(self._calls, task, timeout=timeout, note=on_note)

    def delete(self, task: TaskKeys) -> None:
        """Remove an ended task and all that belongs to it; a tombstone is kept for 30 days."""
        self._removal.delete(task)

    def prune(self, *, older_than: float) -> Iterator[TaskKeys]:
        """Delete the tasks that ended more than ``older_than`` seconds ago; yield each.

        Finishes deletes that were interrupted, removes tombstones after 30 days, and what the tasks
        of an array shared once the last of them is gone.
        """
        yield from self._removal.prune(older_than=older_than)
        self.arrays.tidy_all()

    def _id(self, task_id: str | None) -> str:
        return self.task(task_id).id if task_id else new_id(self._clock.wall())

    def _read(self, key: str) -> Iterator[bytes]:
        with self._ledger.store.open(key) as body:
            while data := body.read(_COPY_BYTES):
                yield data


def _counted(body: Body, tell: Callable[[int], None]) -> Body:
    """Tell of each piece of a body; where it is sent once more, take back what was told."""
    told = 0

    def pieces() -> Iterator[bytes]:
        nonlocal told
        tell(-told)
        told = 0
        for piece in body():
            yield piece
            told += len(piece)
            tell(len(piece))

    return pieces
