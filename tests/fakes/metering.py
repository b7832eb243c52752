"""Counts what S3 and SQS would charge for, over any store and queue.

S3's store makes one request for each call on small objects; a listing one for each thousand keys.
"""

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import BinaryIO

from simagent.ports.clock import Waitable
from simagent.ports.queue import Message, Queue
from simagent.ports.store import Blob, Body, Entry, Store


class MeteredStore:
    """A store whose requests are counted as ``GET``, ``PUT``, ``LIST`` and ``DELETE``."""

    def __init__(self, inner: Store, meter: Counter[str]) -> None:
        self._inner = inner
        self._meter = meter

    def get(self, key: str) -> Blob:
        self._meter["GET"] += 1
        return self._inner.get(key)

    def put(
        self, key: str, data: bytes, *, if_match: str | None = None, if_absent: bool = False
    ) -> str:
        self._meter["PUT"] += 1
        return self._inner.put(key, data, if_match=if_match, if_absent=if_absent)

    def delete(self, key: str) -> None:
        self._meter["DELETE"] += 1
        self._inner.delete(key)

    def scan(self, prefix: str, *, after: str = "", limit: int | None = None) -> Iterator[Entry]:
        found = list(self._inner.scan(prefix, after=after, limit=limit))
        self._meter["LIST"] += max(1, math.ceil(len(found) / 1000))
        yield from found

    def head(self, key: str) -> Entry:
        self._meter["GET"] += 1
        return self._inner.head(key)

    @contextmanager
    def open(self, key: str, *, start: int = 0, length: int | None = None) -> Iterator[BinaryIO]:
        self._meter["GET"] += 1
        with self._inner.open(key, start=start, length=length) as stream:
            yield stream

    def upload(self, key: str, body: Body) -> Entry:
        self._meter["PUT"] += 1
        return self._inner.upload(key, body)


class MeteredQueue:
    """A queue whose requests are counted as ``SQS``; a wait asks anew every 20 s."""

    def __init__(self, inner: Queue, meter: Counter[str]) -> None:
        self._inner = inner
        self._meter = meter

    def send(self, body: str, *, delay: float = 0.0) -> None:
        self._meter["SQS"] += 1
        self._inner.send(body, delay=delay)

    def send_many(self, bodies: Sequence[str]) -> None:
        self._meter["SQS"] += math.ceil(len(bodies) / 10)
        self._inner.send_many(bodies)

    def receive(self, *, visibility: float, wait: float, wake: Waitable) -> Message | None:
        self._meter["SQS"] += max(1, math.ceil(wait / 20))
        return self._inner.receive(visibility=visibility, wait=wait, wake=wake)

    def hide(self, receipt: str, seconds: float) -> None:
        self._meter["SQS"] += 1
        self._inner.hide(receipt, seconds)

    def delete(self, receipt: str) -> None:
        self._meter["SQS"] += 1
        self._inner.delete(receipt)

    def reject(self, message: Message, reason: str) -> None:
        self._meter["SQS"] += 1
        self._inner.reject(message, reason)
