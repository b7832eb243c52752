"""Large objects read by byte ranges: those that are wanted, several at a time, in order."""

import io
import os
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import closing
from typing import TYPE_CHECKING

from simagent.ports.retry import Retry
from simagent.ports.store import Store, StoreUnavailableError
from simagent.transfer.ahead import Job, in_order
from simagent.transfer.errors import OutputChangedError

if TYPE_CHECKING:
    from typing_extensions import Buffer

THREADS = 12
"""Requests under way at a time: one alone gets a fraction of what a store can send."""

_RANGE = 8 << 20
_FIRST_READ = 64 << 10
_GAP = 64 << 10
"""So many bytes that nobody wants cost less than another request."""
_READ = 1 << 20


class Range:
    """A byte range of an object. Called again after an error, it goes on behind what came."""

    def __init__(self, store: Store, key: str, start: int, length: int) -> None:
        self._store, self._key = store, key
        self._start, self.length = start, length
        self._data = bytearray()

    def __call__(self) -> bytearray:
        """Read it. Raises StoreErrors, `OutputChangedError` where the object is too short."""
        have, left = len(self._data), self.length - len(self._data)
        if left:
            with self._store.open(self._key, start=self._start + have, length=left) as stream:
                while left and (data := stream.read(min(left, _READ))):
                    self._data += data
                    left -= len(data)
        if left:
            end, size = self._start + self.length, self._store.head(self._key).size
            if size < end:
                raise OutputChangedError(f"{self._key} has {size} bytes, and should have {end}")
            raise StoreUnavailableError(f"{self._key} ended early")
        return self._data


def read_range(
    store: Store, key: str, start: int, end: int, retry: Retry
) -> Generator[bytearray, None, None]:
    """Yield a byte range of an object in pieces, several of which are fetched at a time.

    Raises `simagent.ports.store.StoreError`s.
    """
    ranges = (Range(store, key, *each) for each in _cut([(start, end)]))
    yield from in_order((Job(one, one.length) for one in ranges), threads=THREADS, retry=retry)


def _cut(extents: Iterable[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    """Cut extents into ranges: where each starts, and its length."""
    for start, end in extents:
        for at in range(start, end, _RANGE):
            yield at, min(_RANGE, end - at)


def _joined(extents: Sequence[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    """Join those that (nearly) touch."""
    first, last = 0, 0
    for start, end in extents:
        if start > last + _GAP:
            yield first, last
            first = start
        last = max(last, end)
    yield first, last


class ExtentReader(io.RawIOBase):
    """A file over an object of which only some extents are read, in order, fetched ahead.

    ``extents`` are (start, end), sorted.
    """

    def __init__(
        self, store: Store, key: str, extents: Sequence[tuple[int, int]], retry: Retry
    ) -> None:
        super().__init__()
        cuts = list(_cut(_joined(extents)))
        self._starts = iter([start for start, _ in cuts])
        # Made when their turn comes: each holds what it has read.
        jobs = (Job(Range(store, key, *cut), cut[1]) for cut in cuts)
        self._fetched = in_order(jobs, threads=THREADS, retry=retry)
        self._data = bytearray()
        self._start = 0
        self._at = 0

    def readable(self) -> bool:
        """Tell that it can be read."""
        return True

    def seekable(self) -> bool:
        """Tell that it can be positioned."""
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        """Set the position, never to before what was read last."""
        if whence != os.SEEK_SET:
            raise io.UnsupportedOperation("its end is not known")
        self._at = offset
        return offset

    def tell(self) -> int:
        """Give the position."""
        return self._at

    def readinto(self, buffer: "Buffer", /) -> int:
        """Read some bytes; none outside of the extents. Raises StoreErrors."""
        view = memoryview(buffer).cast("B")
        while self._at >= self._start + len(self._data):
            start = next(self._starts, None)
            if start is None:
                return 0
            self._start, self._data = start, next(self._fetched)
        skip = self._at - self._start
        if skip < 0:
            raise io.UnsupportedOperation(f"byte {self._at} is in none of the extents")
        piece = memoryview(self._data)[skip : skip + len(view)]
        view[: len(piece)] = piece
        self._at += len(piece)
        return len(piece)

    def close(self) -> None:
        """Stop fetching."""
        if not self.closed:
            with closing(self._fetched):
                super().close()


class RangeReader(io.RawIOBase):
    """A seekable file over an object, read by ranges that grow while reading goes on in order."""

    def __init__(self, store: Store, key: str, retry: Retry) -> None:
        super().__init__()
        self._store = store
        self._key = key
        self._retry = retry
        self._size = retry(lambda: store.head(key)).size
        self._at = 0
        self._buffer = b""
        self._start = 0
        self._ahead = _FIRST_READ

    def readable(self) -> bool:
        """Tell that it can be read."""
        return True

    def seekable(self) -> bool:
        """Tell that it can be positioned."""
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        """Set the position."""
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._size}[whence]
        self._at = max(0, base + offset)
        return self._at

    def tell(self) -> int:
        """Give the position."""
        return self._at

    def readinto(self, buffer: "Buffer", /) -> int:
        """Read some bytes. Raises `simagent.ports.store.StoreError`s."""
        view = memoryview(buffer).cast("B")
        skip = self._at - self._start
        if not 0 <= skip < len(self._buffer):
            wanted = min(len(view), self._size - self._at)
            if wanted <= 0:
                return 0
            self._fill(wanted)
            skip = 0
        piece = self._buffer[skip : skip + len(view)]
        view[: len(piece)] = piece
        self._at += len(piece)
        return len(piece)

    def _fill(self, wanted: int) -> None:
        going_on = self._at == self._start + len(self._buffer)
        self._ahead = min(2 * self._ahead, _RANGE) if going_on else _FIRST_READ
        length = min(max(wanted, self._ahead), self._size - self._at)

        def read() -> bytes:
            with self._store.open(self._key, start=self._at, length=length) as stream:
                data = stream.read(length)
            if not data:
                raise StoreUnavailableError(f"{self._key} ended early")
            return data

        self._buffer, self._start = self._retry(read), self._at
