"""The timeline of an attempt: how long each operation took, and how many bytes it moved."""

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Self

from simagent.domain.state import Timing
from simagent.ports.clock import Clock


@dataclass(slots=True)
class Operation:
    """An operation under way. ``bytes`` is what it has moved so far, to be counted up."""

    bytes: int = 0


class Timeline:
    """The operations of an attempt, in the order in which they began.

    Operations of the same name add up: an upload that was interrupted goes on in the next
    incarnation of the agent. Thread-safe.
    """

    def __init__(self, clock: Clock, timings: Mapping[str, Timing] | None = None) -> None:
        self._clock = clock
        self._timings = dict(timings or {})
        self._lock = threading.Lock()

    @classmethod
    def from_dict(cls, clock: Clock, timings: Mapping[str, Timing]) -> Self:
        """Go on with a timeline that was written down."""
        return cls(clock, timings)

    @contextmanager
    def measure(self, name: str) -> Iterator[Operation]:
        """Time what is done inside, also where it fails."""
        operation = Operation()
        started, begin = self._clock.wall(), self._clock.now()
        try:
            yield operation
        finally:
            self.add(name, self._clock.now() - begin, operation.bytes or None, started=started)

    def add(
        self, name: str, seconds: float, bytes_: int | None = None, *, started: float | None = None
    ) -> None:
        """Note an operation that took ``seconds``, began at Unix time ``started``."""
        with self._lock:
            earlier = self._timings.get(name)
            if earlier is not None:
                seconds += earlier.seconds
                started = started if earlier.started is None else earlier.started
                if earlier.bytes is not None:
                    bytes_ = earlier.bytes + (bytes_ or 0)
            self._timings[name] = Timing(seconds=seconds, bytes=bytes_, started=started)

    def as_dict(self) -> dict[str, Timing]:
        """Give what goes into the attempt's ``timings``."""
        with self._lock:
            return dict(self._timings)
