"""Fetches what a running task has made so far: its agent puts it into the store when asked."""

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from simagent.client.asking import Asker
from simagent.client.calls import Calls
from simagent.client.errors import ClientError
from simagent.domain.ids import new_id
from simagent.domain.keys import TaskKeys
from simagent.domain.live import Request, Synced
from simagent.domain.state import HELD, Output, Status
from simagent.ports.store import NotFoundError, StoreError
from simagent.transfer.download import Place, download
from simagent.transfer.errors import OutputChangedError

_TOLD_EVERY = 1.0


@dataclass(frozen=True, slots=True)
class Fetched:
    """What was fetched; ``changed`` files were being written, and are as they were read then."""

    paths: Sequence[Path]
    changed: int


class Sync:
    """One sync of one task. ``timeout`` is how long its agent may take to answer, in seconds.

    Methods raise `ClientError`, and StoreErrors.
    """

    def __init__(self, calls: Calls, task: TaskKeys, *, timeout: float) -> None:
        self._calls = calls
        self._task = task
        self._asker = Asker(calls, task, timeout=timeout)
        self._name = new_id(calls.clock.wall())

    def fetch(
        self,
        patterns: Sequence[str],
        target: Path,
        *,
        on_sent: Callable[[int], None] = lambda _bytes: None,
        on_progress: Callable[[int], None] | None = None,
        on_skip: Callable[[str, str], None] | None = None,
    ) -> Fetched:
        """Fetch the files that match, or all, into a folder.

        ``on_sent`` is told how many bytes the agent has sent so far, the others as by `download`.
        Raises OSError, too.
        """
        begun = False
        try:
            while True:
                synced = self._ask(tuple(patterns))
                begun = True
                on_sent(synced.sent)
                if synced.output is not None:
                    break
            paths = self._download(synced.output, target, on_progress, on_skip)
        finally:
            if begun:
                with suppress(ClientError, StoreError):
                    self._asker.ask(Request(op="sync", sync=self._name, over=True))
        if not paths and patterns:
            wanted = " or ".join(patterns)
            raise ClientError(f"task {self._task.id} has made nothing yet that matches {wanted}")
        return Fetched(paths, synced.changed)

    def _ask(self, patterns: tuple[str, ...]) -> Synced:
        self._check_held()
        request = Request(op="sync", sync=self._name, patterns=patterns, wait=_TOLD_EVERY)
        answered = self._asker.ask(request)
        if answered is None:
            self._check_held()
            raise ClientError(f"task {self._task.id} went to another agent: sync again")
        answer, _ = answered
        if answer.error is not None or answer.sync is None:
            raise ClientError(answer.message or "the agent is older than you: it syncs nothing")
        return answer.sync

    def _check_held(self) -> None:
        status = self._calls.found(self._task, lambda: self._calls.ledger.state(self._task)).status
        name = self._task.id
        if status in (Status.SUBMITTED, Status.QUEUED):
            raise ClientError(f"task {name} is {status}: it has files once an agent runs it")
        if status not in HELD:
            raise ClientError(
                f"task {name} has ended, as {status}: `simagent download {name}` fetches what it "
                "published"
            )

    def _download(
        self,
        output: Output,
        target: Path,
        on_progress: Callable[[int], None] | None,
        on_skip: Callable[[str, str], None] | None,
    ) -> Sequence[Path]:
        try:
            return download(
                self._calls.ledger.store,
                output,
                ["**"],
                Place(target),
                retry=self._calls.transfer,
                on_progress=on_progress,
                on_skip=on_skip,
            )
        except NotFoundError:
            self._check_held()
            raise ClientError(f"task {self._task.id}: what was synced is gone: again") from None
        except OutputChangedError as error:
            raise ClientError(f"task {self._task.id}: {error}") from None
