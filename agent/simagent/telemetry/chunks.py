"""How a log lies in the store: chunks named by byte offset, which together cover the file.

A chunk at offset ``o`` holds the bytes of the file from ``o`` on, so chunks may overlap: a longer
chunk replaces those it covers, which are deleted after it is written.
"""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from simagent.domain.keys import AttemptKeys, Stream
from simagent.ports.store import Store

MAX_CHUNK_BYTES = 8 * 2**20
"""No chunk is longer: a reader finds the chunk that covers a byte without listing them all."""

_NAME = re.compile(r"[0-9]{20}")


@dataclass(frozen=True, slots=True, order=True)
class Chunk:
    """A part of a log. ``offset`` and ``size`` are in bytes, ``etag`` is that of its object."""

    offset: int
    size: int
    etag: str = field(default="", compare=False)

    @property
    def end(self) -> int:
        """The offset of the first byte after it."""
        return self.offset + self.size


@dataclass(frozen=True, slots=True)
class Cover:
    """The chunks that cover a log from its first byte on, and those that add nothing to it."""

    chunks: tuple[Chunk, ...] = ()
    redundant: tuple[Chunk, ...] = ()

    @property
    def end(self) -> int:
        """The number of bytes covered, from the first on."""
        return self.chunks[-1].end if self.chunks else 0

    def small_tail(self, size: int) -> tuple[Chunk, ...]:
        """Give the last chunks that are shorter than ``size`` bytes."""
        first = len(self.chunks)
        while first > 0 and self.chunks[first - 1].size < size:
            first -= 1
        return self.chunks[first:]


def cover(chunks: Iterable[Chunk]) -> Cover:
    """Sort chunks into those that cover the log and the rest; what follows a gap is neither."""
    used: list[Chunk] = []
    redundant: list[Chunk] = []
    end = 0
    for chunk in sorted(chunks):
        if chunk.offset > end:
            break
        if chunk.end <= end:
            redundant.append(chunk)
            continue
        if used and used[-1].offset == chunk.offset:
            redundant.append(used.pop())
        used.append(chunk)
        end = chunk.end
    return Cover(tuple(used), tuple(redundant))


def list_chunks(
    store: Store, keys: AttemptKeys, stream: Stream, *, around: int = 0
) -> Iterator[Chunk]:
    """Yield a log's chunks in the order of their offsets, from one that may cover ``around``.

    Raises `StoreError`.
    """
    passed = around - MAX_CHUNK_BYTES
    after = keys.log_chunk(stream, passed) if passed >= 0 else ""
    prefix = keys.logs(stream)
    for entry in store.scan(prefix, after=after):
        name = entry.key[len(prefix) :]
        if _NAME.fullmatch(name):
            yield Chunk(int(name), entry.size, entry.etag)
