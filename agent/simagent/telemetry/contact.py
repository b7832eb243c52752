"""Whether queue and store answer: each call is noted, and what it brought."""

import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any, BinaryIO, cast

from simagent.ports.clock import Clock, Waitable
from simagent.ports.queue import Message, Queue, QueueError
from simagent.ports.store import (
    Blob,
    Body,
    Entry,
    NotFoundError,
    PreconditionError,
    Store,
    StoreError,
)
from simagent.telemetry.tally import Count, Tally


@dataclass(frozen=True, slots=True, kw_only=True)
class Met:
    """How it stands with an engine. Seconds.

    ``answered`` is how long ago it last answered, ``failing`` for how long it has not; None: never,
    or it does. ``error`` is what the last call failed with.
    """

    answered: float | None = None
    failing: float | None = None
    error: str = ""


class Contact:
    """The calls to one engine. Any thread may call any method."""

    def __init__(
        self, name: str, url: str, clock: Clock, tally: Tally, *, calls: Count, failures: Count
    ) -> None:
        self.name = name
        self.url = url
        self._clock = clock
        self._tally = tally
        self._calls = calls
        self._failures = failures
        self._lock = threading.Lock()
        self._answered: float | None = None
        self._failing: float | None = None
        self._error = ""

    def count(self, count: Count, amount: int) -> None:
        """Count what a call brought."""
        self._tally.add(count, amount=amount)

    @contextmanager
    def call(
        self, kind: type[Exception], answers: tuple[type[Exception], ...] = ()
    ) -> Iterator[None]:
        """Note one call: it fails with an exception of a kind, but for those that are answers."""
        self._tally.add(self._calls)
        try:
            yield
        except answers:
            self._note("")
            raise
        except kind as error:
            self._tally.add(self._failures)
            self._note(str(error) or type(error).__name__)
            raise
        self._note("")

    def failed(self, error: str) -> None:
        """Note a call that was made before calls were noted, and failed."""
        self._tally.add(self._calls)
        self._tally.add(self._failures)
        self._note(error)

    def met(self) -> Met:
        """Tell how it stands."""
        now = self._clock.now()
        with self._lock:
            return Met(
                answered=None if self._answered is None else now - self._answered,
                failing=None if self._failing is None else now - self._failing,
                error=self._error,
            )

    def _note(self, error: str) -> None:
        now = self._clock.now()
        with self._lock:
            self._error = error
            if not error:
                self._answered, self._failing = now, None
            elif self._failing is None:
                self._failing = now


class WatchedStore:
    """A store whose calls are noted."""

    def __init__(self, store: Store, contact: Contact) -> None:
        self._store = store
        self._contact = contact

    def get(self, key: str) -> Blob:
        """Read a small object whole."""
        with self._call():
            blob = self._store.get(key)
        self._contact.count(Count.STORE_RECEIVED_BYTES, len(blob.data))
        return blob

    def put(
        self, key: str, data: bytes, *, if_match: str | None = None, if_absent: bool = False
    ) -> str:
        """Write an object whole and return its etag."""
        with self._call():
            etag = self._store.put(key, data, if_match=if_match, if_absent=if_absent)
        self._contact.count(Count.STORE_SENT_BYTES, len(data))
        return etag

    def delete(self, key: str) -> None:
        """Remove an object."""
        with self._call():
            self._store.delete(key)

    def scan(self, prefix: str, *, after: str = "", limit: int | None = None) -> Iterator[Entry]:
        """Yield the objects whose key starts with ``prefix`` and is greater than ``after``."""
        with self._call():
            yield from self._store.scan(prefix, after=after, limit=limit)

    def head(self, key: str) -> Entry:
        """Tell an object's size and etag."""
        with self._call():
            return self._store.head(key)

    def open(
        self, key: str, *, start: int = 0, length: int | None = None
    ) -> AbstractContextManager[BinaryIO]:
        """Read a large object, or the byte range from ``start``, as a stream."""
        return self._opened(key, start, length)

    @contextmanager
    def _opened(self, key: str, start: int, length: int | None) -> Iterator[BinaryIO]:
        with self._call(), self._store.open(key, start=start, length=length) as body:
            yield cast(BinaryIO, _CountedBody(body, self._contact))

    def upload(self, key: str, body: Body) -> Entry:
        """Write a large object from a stream of unknown length."""

        def counted() -> Iterable[bytes]:
            for piece in body():
                yield piece
                self._contact.count(Count.STORE_SENT_BYTES, len(piece))

        with self._call():
            return self._store.upload(key, counted)

    def _call(self) -> AbstractContextManager[None]:
        return self._contact.call(StoreError, (NotFoundError, PreconditionError))


class _CountedBody:
    """A stream of the store whose bytes are counted as they are read."""

    def __init__(self, body: BinaryIO, contact: Contact) -> None:
        self._body = body
        self._contact = contact

    def read(self, size: int = -1) -> bytes:
        """Read some bytes."""
        data = self._body.read(size)
        self._contact.count(Count.STORE_RECEIVED_BYTES, len(data))
        return data

    def __getattr__(self, name: str) -> Any:
        return getattr(self._body, name)


class WatchedQueue:
    """A queue whose calls are noted."""

    def __init__(self, queue: Queue, contact: Contact) -> None:
        self._queue = queue
        self._contact = contact

    def send(self, body: str, *, delay: float = 0.0) -> None:
        """Add a message, visible after ``delay`` seconds."""
        with self._call():
            self._queue.send(body, delay=delay)

    def send_many(self, bodies: Sequence[str]) -> None:
        """Add messages, in as few calls as may be."""
        with self._call():
            self._queue.send_many(bodies)

    def receive(self, *, visibility: float, wait: float, wake: Waitable) -> Message | None:
        """Take one visible message and hide it from others for ``visibility`` seconds."""
        with self._call():
            return self._queue.receive(visibility=visibility, wait=wait, wake=wake)

    def hide(self, receipt: str, seconds: float) -> None:
        """Let the message become visible ``seconds`` from now; 0 is at once."""
        with self._call():
            self._queue.hide(receipt, seconds)

    def delete(self, receipt: str) -> None:
        """Remove the message."""
        with self._call():
            self._queue.delete(receipt)

    def reject(self, message: Message, reason: str) -> None:
        """Move the message to the dead letters, with the reason."""
        with self._call():
            self._queue.reject(message, reason)

    def _call(self) -> AbstractContextManager[None]:
        return self._contact.call(QueueError)
