"""A task queue in memory."""

import itertools
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from simagent.ports.clock import Clock, Waitable, Wake
from simagent.ports.queue import Message


@dataclass
class _Stored:
    number: int
    body: str
    visible_at: float
    receipt: str = ""
    receives: int = 0


class MemoryQueue:
    """What the contract asks for, and no more."""

    def __init__(self, clock: Clock) -> None:
        self.dead: list[tuple[str, str]] = []
        """Bodies and reasons of the rejected messages."""
        self._clock = clock
        self._messages: list[_Stored] = []
        self._numbers = itertools.count(1)
        self._mutex = threading.Lock()
        self._waiting: list[Wake] = []

    def send(self, body: str, *, delay: float = 0.0) -> None:
        with self._mutex:
            at = self._clock.now() + delay
            self._messages.append(_Stored(next(self._numbers), body, at))
        self._ring()

    def send_many(self, bodies: Sequence[str]) -> None:
        for body in bodies:
            self.send(body)

    def receive(self, *, visibility: float, wait: float, wake: Waitable) -> Message | None:
        deadline = self._clock.now() + wait
        with self._listening() as bell:
            while not self._clock.wait(0, wake):
                bell.clear()
                message = self._take(visibility)
                left = deadline - self._clock.now()
                if message is not None or left <= 0:
                    return message
                self._clock.wait(min(left, self._until_next()), wake, bell)
        return None

    def hide(self, receipt: str, seconds: float) -> None:
        with self._mutex:
            for message in self._named(receipt):
                message.visible_at = self._clock.now() + seconds
        self._ring()

    def delete(self, receipt: str) -> None:
        with self._mutex:
            for message in self._named(receipt):
                self._messages.remove(message)

    def reject(self, message: Message, reason: str) -> None:
        with self._mutex:
            for stored in self._named(message.receipt):
                self._messages.remove(stored)
                if (stored.body, reason) not in self.dead:
                    self.dead.append((stored.body, reason))

    def lose_all(self) -> None:
        """Forget every message, as no queue should."""
        self._messages.clear()

    def bodies(self) -> list[str]:
        """Tell the messages that are in the queue, hidden or not."""
        return [message.body for message in self._messages]

    def dead_letters(self) -> list[tuple[str, str]]:
        return list(self.dead)

    def _named(self, receipt: str) -> list[_Stored]:
        return [message for message in self._messages if receipt and message.receipt == receipt]

    def _take(self, visibility: float) -> Message | None:
        with self._mutex:
            now = self._clock.now()
            visible = [message for message in self._messages if message.visible_at <= now]
            if not visible:
                return None
            message = min(visible, key=lambda each: (each.visible_at, each.number))
            message.visible_at = now + visibility
            message.receives += 1
            message.receipt = f"{message.number}.{message.receives}"
            return Message(message.body, message.receipt, message.receives)

    def _until_next(self) -> float:
        with self._mutex:
            now = self._clock.now()
            return min((each.visible_at - now for each in self._messages), default=float("inf"))

    @contextmanager
    def _listening(self) -> Iterator[Wake]:
        bell = Wake()
        self._waiting.append(bell)
        try:
            yield bell
        finally:
            self._waiting.remove(bell)

    def _ring(self) -> None:
        for bell in list(self._waiting):
            bell.set()
