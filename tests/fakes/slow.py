"""A store over a thin line, that remembers what was written to it, in which order, and when."""

import json
import re
import threading
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import BinaryIO

from simagent.ports.clock import Clock
from simagent.ports.store import Blob, Body, Entry, Store


@dataclass(frozen=True)
class Written:
    """Something that was written whole: ``what`` it is, and when that was over."""

    what: str
    at: float


class SlowStore:
    """Passes ``rate`` bytes a second to ``inner``, and takes ``delay`` seconds for each write."""

    def __init__(self, inner: Store, clock: Clock, *, rate: float, delay: float = 0.0) -> None:
        self._inner = inner
        self._clock = clock
        self._rate = rate
        self._delay = delay
        self._line = threading.Lock()
        self.written: list[Written] = []

    def since(self, moment: float) -> list[Written]:
        """Give what was written since a time of the clock; of the same again the first."""
        found: dict[str, Written] = {}
        for written in self.written:
            if written.at >= moment:
                found.setdefault(written.what, written)
        return list(found.values())

    def put(
        self, key: str, data: bytes, *, if_match: str | None = None, if_absent: bool = False
    ) -> str:
        self._send(len(data))
        etag = self._inner.put(key, data, if_match=if_match, if_absent=if_absent)
        self._note(key, data)
        return etag

    def upload(self, key: str, body: Body) -> Entry:
        def slowly() -> Iterable[bytes]:
            for chunk in body():
                self._send(len(chunk))
                yield chunk

        entry = self._inner.upload(key, slowly)
        self._note(key, b"")
        return entry

    def get(self, key: str) -> Blob:
        return self._inner.get(key)

    def delete(self, key: str) -> None:
        self._inner.delete(key)

    def scan(self, prefix: str, *, after: str = "", limit: int | None = None) -> Iterator[Entry]:
        return self._inner.scan(prefix, after=after, limit=limit)

    def head(self, key: str) -> Entry:
        return self._inner.head(key)

    def open(
        self, key: str, *, start: int = 0, length: int | None = None
    ) -> AbstractContextManager[BinaryIO]:
        return self._inner.open(key, start=start, length=length)

    def _send(self, count: int) -> None:
        with self._line:  # one after the other, as over one line
            self._clock.wait(self._delay + count / self._rate)

    def _note(self, key: str, data: bytes) -> None:
        self.written.append(Written(_what(key, data), self._clock.now()))


def _what(key: str, data: bytes) -> str:
    """Say what a key is: its last folder; of a state, what it says of its last attempt."""
    if key.endswith("state.json"):
        state = json.loads(data)
        last = state["attempts"][-1] if state["attempts"] else {}
        return f"state: {state['status']}, {last.get('reason')}"
    found = re.search(r"/a/\d+/(logs|metrics|checkpoints|partial)/", key)
    return found[1] if found else key.split("/", maxsplit=1)[0]
