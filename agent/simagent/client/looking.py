"""Waiting for a task's end, with something to show meanwhile."""

import math
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass

from simagent.client.attention import Attention
from simagent.client.calls import PATIENCE, Calls
from simagent.domain.keys import TaskKeys
from simagent.domain.state import HELD, State
from simagent.ports.store import StoreError
from simagent.telemetry.log_reader import tail

_LINE_EVERY = 1.0
_LINE_BYTES = 4096


@dataclass(frozen=True, slots=True)
class Look:
    """A task as it was seen, ``elapsed`` seconds after the wait began."""

    state: State
    elapsed: float
    line: str
    """What it printed last on its standard output, if that is looked for."""


def looks(calls: Calls, task: TaskKeys, *, within: float | None, line: bool) -> Iterator[Look]:
    """Yield what is seen of a task, up to its end or for ``within`` seconds."""
    clock, polls = calls.clock, calls.polls
    began = clock.now()
    last = _LastLine(calls, task)
    pause, seen = polls.first, ""
    left = math.inf if within is None else within
    while True:
        # A store that does not answer makes nobody wait for longer than was asked for.
        patience = min(PATIENCE, max(0.0, left))
        state = calls.found(task, lambda: calls.ledger.state(task), patience=patience)
        if state.write_id != seen:
            pause, seen = polls.first, state.write_id
        yield Look(state, clock.now() - began, last.read(state) if line else "")
        left = math.inf if within is None else began + within - clock.now()
        if state.terminal or left <= 0:
            return
        clock.wait(min(pause, left))
        pause = min(polls.state, pause * 1.5)


class _LastLine:
    """Looks for what a task printed last, not too often."""

    def __init__(self, calls: Calls, task: TaskKeys) -> None:
        self._calls = calls
        self._task = task
        self._next = 0.0
        self._attention = Attention(calls.ledger.store, calls.clock, task)
        self._line = ""

    def read(self, state: State) -> str:
        """Give the line, an older one where the store does not answer."""
        now = self._calls.clock.now()
        if state.epoch and now >= self._next:
            self._next = now + _LINE_EVERY
            if state.status in HELD:
                self._attention.keep()
            keys = self._task.attempt(state.epoch)
            with suppress(StoreError):  # it is there to be looked at, no more
                data = tail(self._calls.ledger.store, keys, "stdout", _LINE_BYTES)
                lines = data.decode(errors="replace").split("\n")
                self._line = next((text for text in reversed(lines) if text.strip()), self._line)
        return self._line
