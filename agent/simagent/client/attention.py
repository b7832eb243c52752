"""Tells the agent that holds a task that somebody attends to it."""

import secrets
from contextlib import suppress

from simagent.domain.keys import TaskKeys
from simagent.domain.live import ATTENDED
from simagent.domain.live import Attention as Sign
from simagent.ports.clock import Clock
from simagent.ports.store import Store, StoreError

_RENEW_EVERY = ATTENDED / 3


class Attention:
    """The attention of one client to one task.

    Others may write over it, and it over others': every change is seen by the agent as the same.
    """

    def __init__(self, store: Store, clock: Clock, task: TaskKeys) -> None:
        self._store = store
        self._clock = clock
        self._task = task
        self._renew_at = clock.now()

    def call(self) -> None:
        """Let the agent look now. Raises StoreError."""
        self._store.put(self._task.control, Sign(nonce=secrets.token_hex(8)).encode())
        self._renew_at = self._clock.now() + _RENEW_EVERY

    def keep(self) -> None:
        """Let the agent look every so often; who may not write there sees things later."""
        if self._clock.now() < self._renew_at:
            return
        self._renew_at = self._clock.now() + _RENEW_EVERY
        with suppress(StoreError):
            self.call()


def call_quietly(store: Store, clock: Clock, task: TaskKeys) -> None:
    """Let the agent look at a task soon; it would anyway, later."""
    with suppress(StoreError):
        Attention(store, clock, task).call()
