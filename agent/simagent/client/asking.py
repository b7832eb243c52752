"""Asks the agent that holds a task about its files: a request in the store, an answer beside it."""

from contextlib import suppress

from simagent.client.attention import Attention
from simagent.client.calls import Calls
from simagent.client.errors import ClientError
from simagent.domain.ids import new_id
from simagent.domain.keys import TaskKeys
from simagent.domain.live import Answer, Request, parse_answer
from simagent.domain.state import HELD
from simagent.ports.store import NotFoundError, StoreError


class NoAnswerError(ClientError):
    """The agent that holds the task did not answer in time."""


class Asker:
    """Asks about one task; ``timeout`` is how long an answer may take, in seconds."""

    def __init__(self, calls: Calls, task: TaskKeys, *, timeout: float) -> None:
        self._ledger = calls.ledger
        self._clock = calls.clock
        self._retry = calls.retried
        self._task = task
        self._timeout = timeout
        self._polls = calls.polls
        self._attention = Attention(calls.ledger.store, calls.clock, task)

    def ask(self, request: Request) -> tuple[Answer, bytes] | None:
        """Ask, and wait for the answer; None where nobody holds the task any more.

        Raises `NoAnswerError`, and `ClientError` where the answer cannot be read.
        """
        store, name = self._ledger.store, new_id(self._clock.wall())
        asked, answer = self._task.request(name), self._task.answer(name)
        try:
            self._retry(lambda: store.put(asked, request.encode()))
            self._retry(self._attention.call)
            data = self._wait(answer, self._clock.now() + request.wait + self._timeout)
        finally:
            for key in (asked, answer):
                with suppress(StoreError):  # the agent removes what is left
                    store.delete(key)
        if data is None:
            return None
        try:
            return parse_answer(data)
        except ValueError as error:
            raise ClientError(f"the agent's answer cannot be read: {error}") from None

    def _wait(self, answer: str, deadline: float) -> bytes | None:
        pause, state_at = self._polls.first, self._clock.now() + self._polls.holder
        while True:
            with suppress(NotFoundError):
                return self._retry(lambda: self._ledger.store.get(answer)).data
            now = self._clock.now()
            if now >= state_at:
                state_at = now + self._polls.holder
                if self._retry(lambda: self._ledger.state(self._task)).status not in HELD:
                    return None
            if now >= deadline:
                raise NoAnswerError(
                    f"no agent answered within {self._timeout:g} s: the one that holds task "
                    f"{self._task.id} may be down or cut off (`simagent show` names it)"
                )
            self._clock.wait(min(pause, deadline - now))
            self._attention.keep()
            pause = min(self._polls.answer, pause * 1.5)
