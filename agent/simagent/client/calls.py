"""Calls to the store as a client makes them: tried again for a minute, and not in silence."""

import logging
import math
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

from pydantic import BaseModel, ValidationError

from simagent.client.errors import ClientError
from simagent.client.pace import LOCAL_POLLS, Polls
from simagent.domain.keys import ArrayKeys, TaskKeys
from simagent.ledger import CorruptError, Ledger, TooNewError
from simagent.ports.clock import Clock
from simagent.ports.retry import retrying
from simagent.ports.store import NotFoundError, StoreLockedOutError

PATIENCE = 60.0
"""Seconds that a call to the store is tried again."""
_SILENCE = 3.0
"""Seconds without an answer after which somebody is told what is waited for."""
_REMIND = 20.0
_LOOK_EVERY = 0.5
_PAGE, _LONGEST_PAGE = 1000, 16_000
_T = TypeVar("_T")
_Record = TypeVar("_Record", bound=BaseModel)

Notice = Callable[[str], None]
"""Is told, from any thread, what a person should know meanwhile: a line each."""


def log_notice(text: str) -> None:
    """Tell it where a program's warnings go."""
    logging.getLogger("simagent").warning("%s", text)


class Calls:
    """Calls about the tasks that a ledger has. Safe between threads."""

    def __init__(
        self,
        ledger: Ledger,
        clock: Clock,
        notice: Notice = log_notice,
        polls: Polls = LOCAL_POLLS,
    ) -> None:
        self.ledger = ledger
        self.polls = polls
        self.clock = clock
        self.notice = notice
        self._watch = _Watch(notice)

    def retried(self, call: Callable[[], _T], *, patience: float = PATIENCE) -> _T:
        """Call the store, again for ``patience`` seconds while it does not answer.

        Somebody is told after some seconds, also while there is no answer at all.
        """
        return self._retried(call, _Awaited(time.monotonic(), patience, short=True))

    def transfer(self, call: Callable[[], _T]) -> _T:
        """Do the same with a call that may take its time: then only failures are told of."""
        return self._retried(call, _Awaited(time.monotonic(), PATIENCE, short=False))

    def found(self, task: TaskKeys, call: Callable[[], _T], *, patience: float = PATIENCE) -> _T:
        """Call for something of a task. Raises `ClientError` where it is not there."""
        try:
            return self.retried(call, patience=patience)
        except NotFoundError:
            if self.is_array(task):
                raise ClientError(
                    f"{task.id} is an array: name one of its tasks, which "
                    f"`simagent list --array {task.id}` shows"
                ) from None
            raise ClientError(
                f"no task {task.id} in project {task.project}: `simagent list` shows them"
            ) from None
        except (CorruptError, TooNewError) as error:
            raise ClientError(str(error)) from None

    def is_array(self, task: TaskKeys) -> bool:
        """Tell whether the id is that of an array."""
        return self.is_there(ArrayKeys(task.project, task.id).record)

    def is_there(self, key: str) -> bool:
        """Tell whether there is such an object."""
        try:
            self.retried(partial(self.ledger.store.get, key))
        except NotFoundError:
            return False
        return True

    def record(self, model: type[_Record], key: str) -> _Record | None:
        """Read what an agent tells; None where it is gone, or cannot be read."""
        try:
            return model.model_validate_json(self.retried(partial(self.ledger.store.get, key)).data)
        except (NotFoundError, ValidationError):
            return None

    def scan(self, prefix: str) -> Iterator[str]:
        """Yield the keys with a prefix, in their order."""
        after, size = "", _PAGE
        while True:
            page = self.retried(partial(self._page, prefix, after, size))
            yield from page
            if len(page) < size:
                return
            # A folder is listed anew for each page.
            after, size = page[-1], min(_LONGEST_PAGE, 4 * size)

    def remove_marker(self, task: TaskKeys) -> None:
        """Tell sweeps that they need not look after a task any more."""
        try:
            group = self.ledger.spec(task).group
        except (CorruptError, TooNewError, NotFoundError):
            return  # the sweep removes it
        self.retried(lambda: self.ledger.remove_marker(group, task))

    def _page(self, prefix: str, after: str, size: int) -> Sequence[str]:
        walk = self.ledger.store.scan(prefix, after=after, limit=size)
        return tuple(entry.key for entry in walk)

    def _retried(self, call: Callable[[], _T], awaited: "_Awaited") -> _T:
        def failed(error: BaseException, _pause: float) -> None:
            awaited.why = str(error)

        with self._watch.over(awaited):
            deadline = self.clock.now() + awaited.patience
            # What somebody has to mend first is told at once.
            but = (StoreLockedOutError,)
            return retrying(call, clock=self.clock, deadline=deadline, but=but, log=failed)


@dataclass(slots=True, eq=False)
class _Awaited:
    """A call that has not ended; ``begun`` on the monotonic clock, ``patience`` in seconds."""

    begun: float
    patience: float
    short: bool
    why: str = ""


class _Watch:
    """Tells when a call has no answer for a while, also where it is blocked meanwhile.

    One thread looks at all calls: it begins with the first one and ends where none was made.
    """

    def __init__(self, notice: Notice) -> None:
        self._notice = notice
        self._calls: list[_Awaited] = []
        self._mutex = threading.Lock()
        self._looking = False
        self._told_at = -math.inf

    @contextmanager
    def over(self, call: _Awaited) -> Iterator[None]:
        """Watch a call while it is made inside."""
        with self._mutex:
            self._calls.append(call)
            if not self._looking:
                self._looking = True
                threading.Thread(target=self._look, name="simagent-watch", daemon=True).start()
        try:
            yield
        finally:
            with self._mutex:
                self._calls.remove(call)

    def _look(self) -> None:
        while True:
            time.sleep(_LOOK_EVERY)
            now = time.monotonic()
            with self._mutex:
                if not self._calls:
                    self._looking = False
                    return
                late = [c for c in self._calls if (c.why or c.short) and now - c.begun >= _SILENCE]
            if late and now - self._told_at >= _REMIND:
                self._told_at = now
                why = late[0].why or "the store does not answer"
                left = max(0.0, late[0].begun + late[0].patience - now)
                self._notice(f"{why}: trying for {left:.0f} s more")
