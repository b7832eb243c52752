"""Ways to make any store and any queue fail, one call at a time.

    def plan(call: str, key: str) -> Fault | None:
        return LOST_ANSWER if call == "put" and key.endswith("state.json") else None

    store = FaultyStore(MemoryStore(), Faults(clock, plan=plan))

The key of a scan is its prefix, that of a queue call the body (`send`, `reject`), all bodies with
commas (`send_many`), the receipt (`hide`, `delete`) or nothing (`receive`).
"""

import io
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from enum import Enum, auto
from functools import partial
from itertools import islice
from typing import BinaryIO

from typing_extensions import Buffer

from simagent.ports.clock import Clock, Waitable
from simagent.ports.queue import Message, Queue, QueueUnavailableError
from simagent.ports.store import (
    Blob,
    Body,
    Entry,
    PreconditionError,
    Store,
    StoreError,
    StoreUnavailableError,
)


class Kind(Enum):
    """What goes wrong."""

    DROP = auto()
    """The request is lost: not applied, and a timeout passes before that shows."""
    LOST_ANSWER = auto()
    """The request is applied and the answer lost, which looks the same."""
    UNAVAILABLE = auto()
    """Refused at once for now (HTTP 503): not applied."""
    DELAY = auto()
    """Applied, but late."""
    PRECONDITION = auto()
    """A conditional write is refused (HTTP 409) though its condition holds."""
    CUT = auto()
    """The connection breaks in the middle of the data of `open`, `scan` or `upload`."""
    DUPLICATE = auto()
    """A message is sent twice, or received while it stays visible to others."""
    LATE = auto()
    """A `put` is given up on and applied later, if its condition holds then; else as DROP."""


@dataclass(frozen=True)
class Fault:
    """A fault of one call; ``seconds`` is how long a delay or a timeout takes."""

    kind: Kind
    seconds: float = 0.0


DROP = Fault(Kind.DROP, 5.0)
LOST_ANSWER = Fault(Kind.LOST_ANSWER, 5.0)
UNAVAILABLE = Fault(Kind.UNAVAILABLE)
PRECONDITION = Fault(Kind.PRECONDITION)
CUT = Fault(Kind.CUT)
DUPLICATE = Fault(Kind.DUPLICATE)


def delay(seconds: float) -> Fault:
    """Make a fault that only delays."""
    return Fault(Kind.DELAY, seconds)


def late(seconds: float) -> Fault:
    """Make a fault that lets a `put` happen after its caller was told that it failed.

    It happens before the first call that is made ``seconds`` later or after that.
    """
    return Fault(Kind.LATE, seconds)


Plan = Callable[[str, str], Fault | None]
Hook = Callable[[str, str], object]


def _nothing(call: str, key: str) -> None:
    return None


@dataclass
class Faults:
    """What happens to calls: ``before`` each one, another actor may act; then ``plan`` decides.

    ``calls`` records all of them.
    """

    clock: Clock
    plan: Plan = _nothing
    before: Hook = _nothing
    calls: list[tuple[str, str]] = field(default_factory=list)
    under_way: list[tuple[float, Callable[[], object]]] = field(default_factory=list)
    """What was given up on and will be applied, and when."""

    def next(self, call: str, key: str) -> Fault | None:
        """Record a call and tell its fault."""
        self.arrive()
        self.calls.append((call, key))
        self.before(call, key)
        return self.plan(call, key)

    def arrive(self) -> None:
        """Apply what was given up on and is due by now; nobody hears of its errors."""
        now = self.clock.now()
        due = [apply for when, apply in self.under_way if when <= now]
        self.under_way[:] = [each for each in self.under_way if each[0] > now]
        for apply in due:
            with suppress(StoreError):
                apply()

    @contextmanager
    def around(
        self,
        call: str,
        key: str,
        error: type[StoreError] | type[QueueUnavailableError],
        later: Callable[[], object] | None = None,
    ) -> Iterator[Kind | None]:
        """Do the block as the call's fault lets it; gives the kinds the block itself must mind.

        ``later`` is what the fault LATE does in the block's place.
        """
        fault = self.next(call, key) or delay(0)
        if fault.kind is Kind.LATE and later is not None:
            self.under_way.append((self.clock.now() + fault.seconds, later))
        if fault.kind in (Kind.DROP, Kind.DELAY):
            self.clock.wait(fault.seconds)
        if fault.kind in (Kind.DROP, Kind.UNAVAILABLE, Kind.LATE):
            raise error(f"injected {fault.kind.name} of {call} {key}")
        yield fault.kind
        if fault.kind is Kind.LOST_ANSWER:
            self.clock.wait(fault.seconds)
            raise error(f"injected {fault.kind.name} of {call} {key}")


class FaultyStore:
    """Any store, with faults."""

    def __init__(self, inner: Store, faults: Faults) -> None:
        self.inner = inner
        self.faults = faults

    def get(self, key: str) -> Blob:
        with self.faults.around("get", key, StoreUnavailableError):
            return self.inner.get(key)

    def put(
        self, key: str, data: bytes, *, if_match: str | None = None, if_absent: bool = False
    ) -> str:
        put = partial(self.inner.put, key, data, if_match=if_match, if_absent=if_absent)
        with self.faults.around("put", key, StoreUnavailableError, put) as kind:
            if kind is Kind.PRECONDITION and (if_absent or if_match is not None):
                raise PreconditionError(f"injected PRECONDITION of put {key}")
            return put()

    def delete(self, key: str) -> None:
        with self.faults.around("delete", key, StoreUnavailableError):
            self.inner.delete(key)

    def scan(self, prefix: str, *, after: str = "", limit: int | None = None) -> Iterator[Entry]:
        with self.faults.around("scan", prefix, StoreUnavailableError) as kind:
            entries = self.inner.scan(prefix, after=after, limit=limit)
            if kind is Kind.CUT:
                yield from islice(entries, 1)
                raise StoreUnavailableError(f"injected CUT of scan {prefix}")
            yield from entries

    def head(self, key: str) -> Entry:
        with self.faults.around("head", key, StoreUnavailableError):
            return self.inner.head(key)

    @contextmanager
    def open(self, key: str, *, start: int = 0, length: int | None = None) -> Iterator[BinaryIO]:
        with self.faults.around("open", key, StoreUnavailableError) as kind:
            entered = self.inner.open(key, start=start, length=length)
        with entered as stream:
            yield _Cut(stream.read()) if kind is Kind.CUT else stream

    def upload(self, key: str, body: Body) -> Entry:
        with self.faults.around("upload", key, StoreUnavailableError) as kind:
            if kind is Kind.CUT:
                for _ in islice(body(), 1):
                    pass
                raise StoreUnavailableError(f"injected CUT of upload {key}")
            return self.inner.upload(key, body)


class _Cut(io.BytesIO):
    """The first half of some data, then an error."""

    def __init__(self, data: bytes) -> None:
        super().__init__(data[: len(data) // 2])

    def read(self, size: int | None = -1, /) -> bytes:
        data = super().read(size)
        if not data or size is None or size < 0:
            raise StoreUnavailableError("injected CUT of a stream")
        return data

    def readinto(self, buffer: Buffer, /) -> int:
        count = super().readinto(buffer)
        if not count:
            raise StoreUnavailableError("injected CUT of a stream")
        return count


class FaultyQueue:
    """Any queue, with faults."""

    def __init__(self, inner: Queue, faults: Faults) -> None:
        self.inner = inner
        self.faults = faults

    def send(self, body: str, *, delay: float = 0.0) -> None:
        with self.faults.around("send", body, QueueUnavailableError) as kind:
            self.inner.send(body, delay=delay)
            if kind is Kind.DUPLICATE:
                self.inner.send(body, delay=delay)

    def send_many(self, bodies: Sequence[str]) -> None:
        with self.faults.around("send_many", ",".join(bodies), QueueUnavailableError) as kind:
            self.inner.send_many(bodies)
            if kind is Kind.DUPLICATE:
                self.inner.send_many(bodies)

    def receive(self, *, visibility: float, wait: float, wake: Waitable) -> Message | None:
        with self.faults.around("receive", "", QueueUnavailableError) as kind:
            message = self.inner.receive(visibility=visibility, wait=wait, wake=wake)
            if kind is Kind.DUPLICATE and message is not None:
                self.inner.hide(message.receipt, 0)
        return message

    def hide(self, receipt: str, seconds: float) -> None:
        with self.faults.around("hide", receipt, QueueUnavailableError):
            self.inner.hide(receipt, seconds)

    def delete(self, receipt: str) -> None:
        with self.faults.around("delete", receipt, QueueUnavailableError):
            self.inner.delete(receipt)

    def reject(self, message: Message, reason: str) -> None:
        with self.faults.around("reject", message.body, QueueUnavailableError):
            self.inner.reject(message, reason)
