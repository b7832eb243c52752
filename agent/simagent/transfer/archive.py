"""Zip archives, written as a stream on several cores, without a temporary copy.

Small files are packed in batches, by helper processes where there are many; large ones are cut
into blocks that threads deflate independently (each ends with a full flush, so that together they
are one deflate stream: RFC 1951). A block that does not get smaller is stored inside that stream.
Memory: a few blocks a thread, whatever the size of the files.
"""

import hashlib
import os
import struct
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from itertools import chain
from typing import NamedTuple, TypeVar

from isal import isal_zlib

from simagent.transfer.batch import (
    CHANGED,
    LEVEL,
    Batch,
    Member,
    is_changed,
    open_file,
    pack_batch,
    why_unread,
)
from simagent.transfer.helpers import Helpers
from simagent.transfer.manifest import PIECE
from simagent.transfer.manners import Manners
from simagent.transfer.tree import Tree
from simagent.transfer.zipformat import (
    DEFLATED,
    DESCRIPTOR,
    ZIP64_FROM,
    Entry,
    central_header,
    descriptor,
    encode,
    end_records,
    local_header,
    move_header,
    name_flag,
)

BLOCK = 1 << 20
SMALL = 128 << 10
"""Files up to this size, in bytes, are packed in batches."""

_BATCH_FILES = 256
_HELPER_FROM = 1000
"""Number of small members that is worth starting a helper process for."""
_MAX_HELPERS = 8
_SAMPLE = 8 << 10
_STORED_MAX = 0xFFFF
_STREAM_END = b"\x03\x00"  # an empty last block


class _Block(NamedTuple):
    raw: bytes
    packed: bytes


class _Open:
    """A large file that is being packed."""

    def __init__(self, member: Member, file: int, status: os.stat_result) -> None:
        self.member = member
        self.file = file
        self.expected = min(member.size, status.st_size)
        name = encode(member.path)
        self.entry = Entry(
            path=member.path,
            mode=status.st_mode,
            mtime_ns=status.st_mtime_ns,
            method=DEFLATED,
            flags=name_flag(name) | DESCRIPTOR,
            crc=0,
            packed=0,
            # Until the end is known: whether the header needs zip64 hangs on it.
            size=self.expected + len(member.tail),
            offset=0,
        )
        self.header = local_header(name, self.entry)
        self.hash = hashlib.sha256()
        self.crc = 0
        self.packed = 0
        self.read = 0
        self.cuts: list[int] = []

    def block(self, offset: int) -> _Block:
        """Read and deflate the block at an offset. Any thread may do so."""
        raw = os.pread(self.file, min(BLOCK, self.expected - offset), offset)
        if offset + BLOCK >= self.expected:
            raw += self.member.tail
        return _Block(raw, _deflate(raw))


_T = TypeVar("_T")
_Job = Callable[[], Batch] | tuple[_Open, int]


class Archive:
    """One archive: iterate over it once for its bytes, then look at what was packed.

    ``entries`` are in the order of ``members``; ``notes`` tell what could not be packed as it was
    selected, as (path, why); ``size`` and ``sha256`` are of the archive. Whatever happens to the
    files meanwhile, the archive is valid, and its entries say what is in it.
    """

    def __init__(
        self,
        members: Sequence[Member],
        *,
        threads: int,
        yields: Callable[[], bool] = lambda: False,
    ) -> None:
        """While ``yields``, one of the threads is used at a time, and rests (`Manners`)."""
        self.entries: list[Entry] = []
        self.notes: list[tuple[str, str]] = []
        self.size = 0
        self._members = members
        self._headers: list[bytes] = []
        self._threads = max(1, threads)
        self._manners = Manners(yields)
        self._hash = hashlib.sha256()
        self._files: set[_Open] = set()

    @property
    def sha256(self) -> str:
        """The checksum of what was given out so far, in hexadecimal."""
        return self._hash.hexdigest()

    def __iter__(self) -> Iterator[bytes]:
        for chunk in chain(self._contents(), self._directory()):
            self.size += len(chunk)
            self._hash.update(chunk)
            yield chunk

    def _contents(self) -> Iterator[bytes]:
        helpers = Helpers(self._helper_count())
        pool = ThreadPoolExecutor(self._threads, "pack")
        pending: deque[tuple[_Job, Future[Batch] | Future[_Block]]] = deque()
        try:
            for job in self._jobs(helpers):
                pending.append((job, self._submit(pool, job)))
                # What was submitted is read ahead of what is asked for.
                while len(pending) > (0 if self._manners.yields() else 2 * self._threads + 1):
                    yield from self._emit(*pending.popleft())
                    self._manners.rest()
            while pending:
                yield from self._emit(*pending.popleft())
                self._manners.rest()
        finally:
            pool.shutdown(cancel_futures=True)
            helpers.close()
            for opened in self._files:
                os.close(opened.file)
            self._files.clear()

    def _submit(self, pool: ThreadPoolExecutor, job: _Job) -> Future[Batch] | Future[_Block]:
        if isinstance(job, tuple):
            return pool.submit(self._work, partial(job[0].block, job[1]))
        return pool.submit(self._work, job)

    def _work(self, job: Callable[[], _T]) -> _T:
        done = job()
        self._manners.rest()
        return done

    def _helper_count(self) -> int:
        if self._threads == 1:
            return 0
        small = sum(member.size <= SMALL for member in self._members)
        return min(self._threads - 1, _MAX_HELPERS, small // _HELPER_FROM)

    def _jobs(self, helpers: Helpers) -> Iterator[_Job]:
        batch: list[Member] = []
        size = 0
        for member in self._members:
            if member.size <= SMALL:
                batch.append(member)
                size += member.size
                if len(batch) < _BATCH_FILES and size < BLOCK:
                    continue
            if batch:
                yield self._batch(helpers, batch)
                batch, size = [], 0
            if member.size > SMALL and (opened := self._open(member)) is not None:
                for offset in range(0, max(opened.expected, 1), BLOCK):
                    yield opened, offset
        if batch:
            yield self._batch(helpers, batch)

    def _batch(self, helpers: Helpers, batch: list[Member]) -> Callable[[], Batch]:
        # A helper process does not rest.
        return partial(pack_batch if self._manners.yields() else helpers.pack, batch)

    def _open(self, member: Member) -> _Open | None:
        try:
            with Tree(member.root) as tree:
                file, status = open_file(tree, member.source)
        except OSError as error:
            self.notes.append((member.path, why_unread(error)))
            return None
        opened = _Open(member, file, status)
        self._files.add(opened)
        return opened

    def _emit(self, job: _Job, future: Future[Batch] | Future[_Block]) -> Iterator[bytes]:
        result = future.result()
        if isinstance(result, Batch):
            at = self.size
            self._headers += [
                move_header(header, entry, at)
                for header, entry in zip(result.headers, result.entries, strict=True)
            ]
            self.entries += result.entries
            self.notes += result.notes
            yield result.data
            return
        assert isinstance(job, tuple)
        yield from self._emit_block(*job, result)

    def _emit_block(self, opened: _Open, offset: int, block: _Block) -> Iterator[bytes]:
        if offset == 0:
            opened.entry = opened.entry._replace(offset=self.size)
            yield opened.header
        if opened.read == offset:  # else it shrank: what follows a gap is not part of it
            opened.hash.update(block.raw)
            opened.crc = isal_zlib.crc32(block.raw, opened.crc)
            opened.read += len(block.raw)
            opened.packed += len(block.packed)
            if offset % PIECE == 0:
                opened.cuts.append(self.size)
            yield block.packed
        if offset + BLOCK >= opened.expected:
            yield self._end_file(opened)

    def _end_file(self, opened: _Open) -> bytes:
        status = os.fstat(opened.file)
        written = status.st_mtime_ns != opened.entry.mtime_ns and not opened.member.tail
        if written or is_changed(status, opened.read, opened.member):
            self.notes.append((opened.member.path, CHANGED))
        os.close(opened.file)
        self._files.discard(opened)
        zip64 = opened.entry.size >= ZIP64_FROM
        entry = opened.entry._replace(
            crc=opened.crc,
            packed=opened.packed + len(_STREAM_END),
            size=opened.read,
            sha256=opened.hash.hexdigest(),
            cuts=(*opened.cuts, self.size) if len(opened.cuts) > 1 else (),
        )
        self.entries.append(entry)
        self._headers.append(central_header(encode(entry.path), entry))
        return _STREAM_END + descriptor(entry, zip64=zip64)

    def _directory(self) -> Iterator[bytes]:
        start = self.size
        yield b"".join(self._headers)
        yield end_records(len(self._headers), self.size - start, start)


def _deflate(raw: bytes) -> bytes:
    """Deflate a block so that more may follow; stored where that makes it no smaller."""
    if not _shrinks(raw):
        return _store(raw)
    compressor = isal_zlib.compressobj(LEVEL, isal_zlib.DEFLATED, -15)
    packed: bytes = compressor.compress(raw) + compressor.flush(isal_zlib.Z_FULL_FLUSH)
    return packed if len(packed) < len(raw) else _store(raw)


def _shrinks(raw: bytes) -> bool:
    """Guess from three samples whether deflating is worth the time."""
    if len(raw) < 8 * _SAMPLE:
        return True
    middle = len(raw) // 2
    sample = raw[:_SAMPLE] + raw[middle : middle + _SAMPLE] + raw[-_SAMPLE:]
    return len(isal_zlib.compress(sample, LEVEL, -15)) < 0.97 * len(sample)


def _store(raw: bytes) -> bytes:
    pieces: list[bytes] = []
    for start in range(0, len(raw), _STORED_MAX):
        piece = raw[start : start + _STORED_MAX]
        pieces += (struct.pack("<BHH", 0, len(piece), len(piece) ^ 0xFFFF), piece)
    return b"".join(pieces)
