"""The files of a task: of a running one as its agent sees them, of an ended one as published."""

from collections.abc import Callable, Iterator

from simagent.client.asking import Asker, NoAnswerError
from simagent.client.calls import Calls
from simagent.client.errors import ClientError, UsageError
from simagent.client.published import Published
from simagent.domain.keys import TaskKeys
from simagent.domain.live import MAX_DATA, Answer, Item, Place, Request, task_path
from simagent.domain.state import HELD, State

_PUT_OFF = 10.0
"""Seconds that an agent may wait for something new before it answers that there is nothing."""
_PAUSE = 0.5


class TaskFiles:
    """Looks into one task's folder. ``note`` is told what a person should know meanwhile.

    Methods raise `ClientError`, and `simagent.ports.store.StoreError`s.
    """

    def __init__(
        self, calls: Calls, task: TaskKeys, *, timeout: float, note: Callable[[str], None]
    ) -> None:
        self._ledger = calls.ledger
        self._clock = calls.clock
        self._retry = calls.retried
        self._transfer = calls.transfer
        self._task = task
        self._asker = Asker(calls, task, timeout=timeout)
        self._tell = note
        self._told = ""

    def list(self, path: str) -> tuple[list[Item], int]:
        """List a folder, or one file; also tell how many names are left out."""
        path = _checked(path)
        while True:
            state = self._state()
            if state.terminal:
                return self._published(state).list(path), 0
            self._check_held(state)
            answered = self._asker.ask(Request(op="list", path=path))
            if answered is not None:
                answer, _ = answered
                _check(answer)
                return list(answer.items), answer.more

    def tail(self, path: str, *, lines: int, follow: bool) -> Iterator[bytes]:
        """Yield the last lines of a file, with ``follow`` also what is added until the task ends.

        Then a file that is not there yet is waited for, and one that was replaced or truncated is
        shown from its start.
        """
        path = _checked(path)
        following = _Following(path, lines)
        while not (state := self._state()).terminal:
            if state.status not in HELD and follow:
                self._note(f"task {self._task.id} is {state.status}: waiting for an agent")
                self._clock.wait(_PAUSE)
                continue
            self._check_held(state)
            try:
                answered = self._asker.ask(following.request())
            except NoAnswerError as error:
                if not following.answered:
                    raise
                self._note(f"{error}; still asking")
                continue
            if answered is None:
                continue
            answer, data = answered
            following.answered = True
            if answer.error == "missing" and follow:
                self._note(f"waiting for {path}")
                continue
            _check(answer)
            self._note(following.heard(answer))
            if data:
                yield data
            if not follow:
                return
        yield from self._rest(state, following)

    def _rest(self, state: State, following: "_Following") -> Iterator[bytes]:
        """Yield what was published of a file beyond what was seen of it."""
        path, since = following.path, following.since
        try:
            published = self._published(state)
            size = published.size(path)
        except ClientError as error:
            if since is None:
                raise
            self._note(f"{error}: what was written to {path} last was not seen")
            return
        if since is None:
            data, cut = published.tail(path, following.lines)
            self._note(_cut(following.lines) if cut else "")
            yield data
        elif size < since.offset:
            self._note(f"{path} was truncated: shown from its start")
            yield from published.read(path)
        else:
            yield from published.read(path, since.offset)

    def _published(self, state: State) -> Published:
        if state.output is None:
            raise ClientError(f"task {self._task.id} is {state.status} and published no files")
        return Published(self._ledger.store, state.output, self._transfer, self._task)

    def _check_held(self, state: State) -> None:
        if state.status not in HELD:
            raise ClientError(
                f"task {self._task.id} is {state.status}: it has files once an agent runs it"
            )

    def _state(self) -> State:
        return self._retry(lambda: self._ledger.state(self._task))

    def _note(self, text: str) -> None:
        if text and text != self._told:
            self._tell(text)
        self._told = text


class _Following:
    """How far a file has been seen."""

    def __init__(self, path: str, lines: int) -> None:
        self.path = path
        self.lines = lines
        self.since: Place | None = None
        self.answered = False
        self._epoch: int | None = None

    def request(self) -> Request:
        """Ask for what comes next."""
        wait = _PUT_OFF if self.answered else 0.0
        return Request(op="read", path=self.path, lines=self.lines, since=self.since, wait=wait)

    def heard(self, answer: Answer) -> str:
        """Go on behind an answer; give what a person should know of it."""
        earlier, self._epoch, self.since = self._epoch, answer.epoch, answer.place
        if answer.cut:
            return _cut(self.lines)
        if earlier not in (None, answer.epoch):
            return f"attempt {answer.epoch} begins: {self.path} is shown from its start"
        return f"{self.path} was {answer.anew}: shown from its start" if answer.anew else ""


def _checked(path: str) -> str:
    try:
        return task_path(path)
    except ValueError as error:
        raise UsageError(str(error)) from None


def _check(answer: Answer) -> None:
    if answer.error is not None:
        raise ClientError(answer.message)


def _cut(lines: int) -> str:
    return f"the last {lines} lines are longer than {MAX_DATA // 1_000_000} MB: shown in part"
