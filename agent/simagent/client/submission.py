"""SUBMIT: write a task down, so that every step may be repeated after a crash."""

from collections.abc import Callable
from functools import partial

from simagent.client.caller import whoami
from simagent.client.calls import Calls
from simagent.client.errors import UsageError
from simagent.domain import bell, keys, mutations
from simagent.domain.keys import TaskKeys
from simagent.domain.mutations import SupersededError
from simagent.domain.spec import Spec
from simagent.domain.state import State, Status
from simagent.ledger import CorruptError, TooNewError
from simagent.ports.queue import Queue, QueueError
from simagent.ports.store import Body, NotFoundError


class Submission:
    """Submits tasks. ``open_queue`` gives the queue of a group."""

    def __init__(self, calls: Calls, open_queue: Callable[[str], Queue]) -> None:
        self._calls = calls
        self._ledger = calls.ledger
        self._clock = calls.clock
        self._retry = calls.retried
        self._open_queue = open_queue

    def submit(
        self,
        task: TaskKeys,
        spec: Spec,
        bodies: dict[int, Body],
        *,
        ring: bool = True,
        retry_of: str | None = None,
    ) -> State:
        """Submit, or go on with an interrupted submission of the same spec.

        Raises `UsageError` where the id is taken, by another spec or a deleted task; and
        StoreError.
        """
        self._refuse_deleted(task)
        self._retry(lambda: self._ledger.open_marker(spec.group, task))
        try:
            digest = self._retry(lambda: self._ledger.create_spec(task, spec))
        except SupersededError as error:
            raise UsageError(f"{error}: use another --id") from None
        first = State(
            status=Status.SUBMITTED,
            submitted_by=whoami(),
            submitted_at=self._clock.wall(),
            retry_of=retry_of,
            spec_sha256=digest,
        )
        state = self._retry(lambda: self._ledger.create_state(task, first))
        entry = keys.index_entry(task.project, task.id, state.submitted_at)
        self._retry(lambda: self._ledger.store.put(entry, b""))
        if state.status is Status.SUBMITTED:
            state = self._complete(task, bodies)
        if (
            ring and state.status is Status.QUEUED
        ):  # also where it was, but perhaps not yet rung for
            self._ring(spec.group, task)
        return state

    def _refuse_deleted(self, task: TaskKeys) -> None:
        try:
            state = self._retry(partial(self._ledger.state, task))
        except (NotFoundError, CorruptError, TooNewError):
            return
        if state.status is Status.DELETED:
            raise UsageError(f"task {task.id} exists already, and was deleted: use another --id")

    def _complete(self, task: TaskKeys, bodies: dict[int, Body]) -> State:
        for number, body in bodies.items():
            self._calls.transfer(partial(self._ledger.store.upload, task.input(number), body))
        bell_at = self._clock.wall()
        return self._retry(
            lambda: self._ledger.change(task, partial(mutations.mark_queued, bell_at=bell_at))
        )

    def _ring(self, group: str, task: TaskKeys) -> None:
        try:
            self._open_queue(group).send(bell.encode(task))
        except QueueError as error:
            self._calls.notice(
                f"task {task.id} is submitted, but no agent was told of it ({error}): "
                "one that sweeps finds it within minutes"
            )
