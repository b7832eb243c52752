"""Logs on their way to the store: the steps write files, the shipper follows them by offset."""

import os
import stat
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

from simagent.domain.keys import AttemptKeys, Stream
from simagent.ports.store import (
    NotFoundError,
    PreconditionError,
    Store,
    StoreUnavailableError,
)
from simagent.telemetry.chunks import MAX_CHUNK_BYTES, Chunk, Cover, cover, list_chunks
from simagent.telemetry.spool import count_line, cut_line

_NO_LIMIT = 2**63 - 1
_FAN = 8
_PASS_CHUNKS = 64
_VERIFY_TRIES = 3
_MEMORY = 64


class LogShipper:
    """Copies an attempt's log files, which others append to, to the store.

    Keeps nothing on disk: what is in the store is found by listing it, at first and after every
    failed call. ``chunk_bytes`` is the size of a full chunk. Only the first ``max_bytes`` of a
    file are shipped (None: all), then a line that says so; it must not change during an attempt.
    A stream of ``cut_at`` ends at that offset instead: as far as it had been shipped.

    Calls raise `StoreError` or OSError and can then simply be repeated. Not thread-safe.
    """

    def __init__(
        self,
        store: Store,
        keys: AttemptKeys,
        files: Mapping[Stream, Path],
        *,
        chunk_bytes: int = 2**20,
        max_bytes: int | None = None,
        cut_at: Mapping[str, int] = MappingProxyType({}),
    ) -> None:
        if not 0 < chunk_bytes <= MAX_CHUNK_BYTES:
            raise ValueError(f"chunk_bytes must be in 1..{MAX_CHUNK_BYTES}")
        self._logs = {
            stream: _Log(
                store,
                keys,
                stream,
                path=path,
                chunk_bytes=chunk_bytes,
                max_bytes=cut_at.get(stream, _NO_LIMIT if max_bytes is None else max_bytes),
            )
            for stream, path in files.items()
        }

    def resume(self) -> dict[Stream, int]:
        """Look up how many bytes of each log are in the store, and remove superseded chunks."""
        return {stream: log.resume() for stream, log in self._logs.items()}

    def missing(self) -> dict[Stream, int]:
        """Tell which logs are not wholly in the store, and how many bytes of them are."""
        return {stream: log.resume() for stream, log in self._logs.items() if not log.is_complete}

    def ship(self, *, flush: bool) -> int:
        """Upload what is new in one bounded pass and return its bytes.

        Full chunks only, or with ``flush`` the remainders too. To be called again at once while
        `behind` is true.
        """
        return sum(log.ship(flush=flush) for log in self._logs.values())

    @property
    def behind(self) -> bool:
        """Whether the last pass left full chunks for the next one."""
        return any(log.behind for log in self._logs.values())

    def finish(self) -> dict[Stream, int]:
        """Ship the rest, join small chunks and check that every byte is in the store.

        Returns the size of each log in the store, in bytes. To be called when nothing writes to
        the files any more; may be repeated.
        """
        return {stream: log.finish() for stream, log in self._logs.items()}


def merge_start(tail: tuple[Chunk, ...], new: int) -> int | None:
    """Tell from which chunk of ``tail`` on to join them with ``new`` bytes more; None: not yet.

    Chunks are joined once there are several, and only with at least as many bytes as they have:
    a byte is written again only into a chunk twice as long, so at most log2(chunk) times, and
    seldom flushed trickles do not leave thousands of objects behind.
    """
    first, total = len(tail), new
    while first > 0 and tail[first - 1].size <= total:
        first -= 1
        total += tail[first].size
    return first if len(tail) - first + 1 >= _FAN else None


class _Log:
    """One file and its chunks."""

    def __init__(
        self,
        store: Store,
        keys: AttemptKeys,
        stream: Stream,
        *,
        path: Path,
        chunk_bytes: int,
        max_bytes: int,
    ) -> None:
        self._store = store
        self._keys = keys
        self._stream: Stream = stream
        self._path = path
        self._chunk_bytes = chunk_bytes
        self._max_bytes = max_bytes
        self._known: Cover | None = None
        self._largest = 0
        self._shipped = 0, b""
        """Where what this shipper has written last ends in the file, and the bytes before."""
        self._cut_noted = False
        self.behind = False

    def resume(self) -> int:
        self._known = None
        return self._cover().end

    @property
    def is_complete(self) -> bool:
        return self.resume() >= min(self._file_size(), self._max_bytes)

    def ship(self, *, flush: bool) -> int:
        size = min(self._file_size(), self._max_bytes)
        begin = self._cover().end
        for _ in range(_PASS_CHUNKS):
            if not self._ship_some(size, flush=flush):
                self.behind = False
                break
        else:
            self.behind = True
        if self._cover().end == self._max_bytes:
            self._note_cut()
        return max(0, self._cover().end - begin)

    def finish(self) -> int:
        for _ in range(_VERIFY_TRIES):
            size = min(self._file_size(), self._max_bytes)
            while (self.ship(flush=True) or self.behind) and self._cover().end < size:
                continue
            tail = self._cover().small_tail(self._chunk_bytes)
            if len(tail) > 1 and tail[-1].end - tail[0].offset < self._chunk_bytes:
                self._write(tail[0].offset, tail[-1].end - tail[0].offset)
            shipped = self.resume()
            if shipped >= size:
                return shipped + self._write_cut()
        raise StoreUnavailableError(
            f"{self._keys.logs(self._stream)}: {shipped} of {size} bytes are in the store"
        )

    def _ship_some(self, size: int, *, flush: bool) -> bool:
        """Write one chunk if there is enough for it; tell whether to go on."""
        known = self._cover()
        tail = known.small_tail(self._chunk_bytes)
        start = tail[0].offset if tail else known.end
        if size - start >= self._chunk_bytes:
            return self._write(start, self._chunk_bytes)
        if flush and size > known.end:
            first = merge_start(tail, size - known.end)
            start = known.end if first is None else tail[first].offset
            self._write(start, size - start)
        return False

    def _write(self, start: int, length: int) -> bool:
        """Put a chunk and delete those it covers. False: the file no longer has these bytes."""
        data = self._read(start, length)
        if len(data) < length or self._restart_if_rewritten():
            return False
        known, self._known = self._cover(), None
        chunk = Chunk(start, length, self._put(known, start, data))
        self._known = self._without_redundant(cover((*known.chunks, chunk)))
        self._shipped = start + length, data[-_MEMORY:]
        return True

    def _put(self, known: Cover, start: int, data: bytes) -> str:
        """Put a chunk over the one that is known to be there, or none; give its etag.

        An earlier, shorter one that was given up on can then not take its place when it arrives.
        """
        key = self._keys.log_chunk(self._stream, start)
        there = next((chunk.etag for chunk in known.chunks if chunk.offset == start), None)
        try:
            return self._store.put(key, data, if_match=there, if_absent=there is None)
        except PreconditionError:
            pass  # such a one has arrived, or lies behind a gap
        try:
            return self._store.put(key, data, if_match=self._store.head(key).etag)
        except (PreconditionError, NotFoundError) as error:
            raise StoreUnavailableError(f"{key} changes meanwhile") from error

    def _cover(self) -> Cover:
        """Give what is in the store, by listing it unless no call has failed since the last."""
        if self._known is None:
            listed = list_chunks(self._store, self._keys, self._stream)
            self._known = self._without_redundant(
                cover(chunk for chunk in listed if chunk.offset < self._max_bytes)
            )
        return self._known

    def _without_redundant(self, known: Cover) -> Cover:
        kept = {chunk.offset for chunk in known.chunks}
        for chunk in known.redundant:
            if chunk.offset not in kept:
                self._store.delete(self._keys.log_chunk(self._stream, chunk.offset))
        return Cover(known.chunks)

    def _file_size(self) -> int:
        """Give the file's size; where it was begun anew under our eyes, begin the copy anew.

        A program that opens /dev/stdout for writing truncates it and so takes back what it had
        printed; it may have printed more than that by the next look. A file that is shorter than
        its copy from the start lost its end in a power cut: the copy is kept.
        """
        try:
            status = os.stat(self._path, follow_symlinks=False)
        except FileNotFoundError:
            return 0
        if not stat.S_ISREG(status.st_mode):
            return 0
        if status.st_size < self._largest:
            self._restart()
        else:
            self._restart_if_rewritten()
        self._largest = status.st_size
        return status.st_size

    def _restart_if_rewritten(self) -> bool:
        """Begin the copy anew if the file no longer has what was shipped last; tell whether."""
        end, last = self._shipped
        rewritten = self._read(end - len(last), len(last)) != last
        if rewritten:
            self._restart()
        return rewritten

    def _restart(self) -> None:
        self._known, self._cut_noted = None, False
        # From the end: a crash in between leaves a copy that begins at the first byte.
        for chunk in sorted(list_chunks(self._store, self._keys, self._stream), reverse=True):
            self._store.delete(self._keys.log_chunk(self._stream, chunk.offset))
        self._shipped = 0, b""

    def _read(self, start: int, length: int) -> bytes:
        """Read from the file as it is now; fewer bytes where it ends sooner.

        The task may write to the folder: a link or a device in the file's place is not read.
        """
        flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
        descriptor = os.open(self._path, flags)
        try:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                return b""
            parts = []
            while length > 0 and (part := os.pread(descriptor, length, start)):
                parts.append(part)
                start += len(part)
                length -= len(part)
            return parts[0] if len(parts) == 1 else b"".join(parts)
        finally:
            os.close(descriptor)

    def _note_cut(self) -> bytes:
        """Say in the store's copy where it ends, if the file goes on."""
        if self._largest <= self._max_bytes:
            return b""
        line = cut_line(self._max_bytes)
        if not self._cut_noted:
            self._store.put(self._keys.log_chunk(self._stream, self._max_bytes), line)
            self._cut_noted = True
        return line

    def _write_cut(self) -> int:
        """Say in the store's copy how many bytes it leaves out; return the bytes of the lines."""
        line = self._note_cut()
        if not line:
            return 0
        count = count_line(self._largest - self._max_bytes)
        self._store.put(self._keys.log_chunk(self._stream, self._max_bytes + len(line)), count)
        return len(line) + len(count)
