"""The task queue: a bell, never the truth.

A message only says that some task may want an agent. The contract is that of an SQS standard
queue: messages may come twice, late, or out of order. ``tests/contract/test_queue.py`` holds
every engine to it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from simagent.ports.clock import Waitable


class QueueError(Exception):
    """A queue call did not do what it was asked to."""


class QueueUnavailableError(QueueError):
    """No usable answer: the outcome is unknown; try again."""


class QueueRefusedError(QueueError):
    """The queue will not do this however often it is asked (permission, no such queue)."""


@dataclass(frozen=True, slots=True)
class Message:
    """A received message. ``receipt`` names this reception, ``receives`` counts all of them."""

    body: str
    receipt: str
    receives: int


class Queue(Protocol):
    """The queue of one group.

    A receipt goes stale when its message is received again or deleted; calls with a stale receipt
    change nothing and raise nothing.
    """

    def send(self, body: str, *, delay: float = 0.0) -> None:
        """Add a message, visible after ``delay`` seconds."""

    def send_many(self, bodies: Sequence[str]) -> None:
        """Add messages, in as few calls as may be. Where it raises, some may have been added."""

    def receive(self, *, visibility: float, wait: float, wake: Waitable) -> Message | None:
        """Take one visible message and hide it from others for ``visibility`` seconds.

        Waits up to ``wait`` seconds for one, and returns None early when ``wake`` is ready.
        """

    def hide(self, receipt: str, seconds: float) -> None:
        """Let the message become visible ``seconds`` from now; 0 is at once."""

    def delete(self, receipt: str) -> None:
        """Remove the message."""

    def reject(self, message: Message, reason: str) -> None:
        """Move the message to the dead letters, with the reason; one of several alike is kept."""
