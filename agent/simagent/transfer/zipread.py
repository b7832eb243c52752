"""Reading a zip archive's directory; nothing it says is believed before it is checked.

Source: as of `simagent.transfer.zipformat`.
"""

import struct
import time
from collections.abc import Iterator
from typing import BinaryIO, NamedTuple

from simagent.transfer.zipformat import (
    CENTRAL,
    ENCRYPTED,
    END,
    END64,
    LOCAL,
    LOCATOR,
    MAX32,
    UNIX,
    UTF8,
    Entry,
)

_STRONG_ENCRYPTION = 0x40
_MAX_COMMENT = 0xFFFF
_MAX_DIRECTORY = 256 << 20


class ZipError(ValueError):
    """An archive cannot be read; the message says why."""


class Directory(NamedTuple):
    """What an archive says it contains; ``start`` is where the directory itself begins."""

    entries: list[Entry]
    start: int


def read_directory(file: BinaryIO, *, max_files: int, max_bytes: int = _MAX_DIRECTORY) -> Directory:
    """Read an archive's directory, of at most ``max_files`` members in ``max_bytes``.

    Raises `ZipError`, and OSError where reading fails.
    """
    count, size, offset, end = _find_end(file)
    if size > max_bytes:
        raise ZipError(f"its directory has {size} bytes, more than the {max_bytes} allowed")
    if count > max_files:
        raise ZipError(f"it has {count} members, more than the {max_files} allowed")
    start = end - size
    shift = start - offset  # bytes before the archive, as in self-extracting ones
    if start < 0 or shift < 0:
        raise ZipError("its directory does not lie within it: it is cut off or corrupt")
    file.seek(start)
    entries = list(_read_entries(file, count, size, shift))
    return Directory(entries, start)


def _find_end(file: BinaryIO) -> tuple[int, int, int, int]:
    total = file.seek(0, 2)
    tail_start = max(0, total - END.size - _MAX_COMMENT)
    file.seek(tail_start)
    tail = file.read(total - tail_start)
    at = tail.rfind(b"PK\x05\x06")
    if at < 0 or len(tail) - at < END.size:
        raise ZipError("it is no zip archive, or cut off: the end record is missing")
    _, disk, first, here, count, size, offset, _ = END.unpack_from(tail, at)
    end = tail_start + at
    if end >= LOCATOR.size:
        file.seek(end - LOCATOR.size)
        locator = file.read(LOCATOR.size)
        if locator[:4] == b"PK\x06\x07":
            return _find_end64(file, end - LOCATOR.size)
    if disk or first or here != count:
        raise ZipError("it is one part of several: join them first")
    return count, size, offset, end


def _find_end64(file: BinaryIO, locator: int) -> tuple[int, int, int, int]:
    # The record is looked for before its locator, not where that points, so that bytes before
    # the archive do no harm. Its extensible part is never used.
    end = locator - END64.size
    file.seek(max(0, end))
    record = file.read(END64.size)
    if end < 0 or record[:4] != b"PK\x06\x06":
        raise ZipError("its zip64 end record is missing: it is cut off or corrupt")
    _, _, _, _, disk, first, here, count, size, offset = END64.unpack(record)
    if disk or first or here != count:
        raise ZipError("it is one part of several: join them first")
    return count, size, offset, end


def _read_entries(file: BinaryIO, count: int, size: int, shift: int) -> Iterator[Entry]:
    left = size
    for _ in range(count):
        header = file.read(CENTRAL.size)
        left -= CENTRAL.size
        if len(header) < CENTRAL.size or left < 0 or header[:4] != b"PK\x01\x02":
            raise ZipError("its directory is corrupt")
        fields = CENTRAL.unpack(header)
        lengths = fields[11:14]
        left -= sum(lengths)
        rest = file.read(sum(lengths))
        if left < 0 or len(rest) < sum(lengths):
            raise ZipError("its directory is corrupt")
        extra = rest[lengths[0] : lengths[0] + lengths[1]]
        yield _entry(fields, rest[: lengths[0]], extra, shift)


def _entry(fields: tuple[int, ...], name: bytes, extra: bytes, shift: int) -> Entry:
    _, _, system, _, flags, method, moment, day, crc, packed, size, _, _, _, _, _, attrs, at = (
        fields
    )
    mtime = None
    for kind, value in _extras(extra):
        if kind == 1:
            size, packed, at = _zip64(value, size, packed, at)
        elif kind == 0x5455 and len(value) >= 5 and value[0] & 1:
            mtime = struct.unpack_from("<i", value, 1)[0]
    if mtime is None:
        mtime = _from_dos(moment, day)
    unix = system == UNIX
    if flags & (ENCRYPTED | _STRONG_ENCRYPTION):
        flags |= ENCRYPTED
    return Entry(
        path=_decode(name, utf8=bool(flags & UTF8), unix=unix),
        mode=attrs >> 16 if unix else 0,
        mtime_ns=mtime * 1_000_000_000,
        method=method,
        flags=flags,
        crc=crc,
        packed=packed,
        size=size,
        offset=at + shift,
        unix=unix,
    )


def _decode(name: bytes, *, utf8: bool, unix: bool) -> str:
    if utf8 or unix:
        return name.decode("utf-8", "surrogateescape")
    return name.decode("cp437")


def _extras(extra: bytes) -> Iterator[tuple[int, bytes]]:
    at = 0
    while at + 4 <= len(extra):
        kind, length = struct.unpack_from("<HH", extra, at)
        yield kind, extra[at + 4 : at + 4 + length]
        at += 4 + length


def _zip64(value: bytes, size: int, packed: int, offset: int) -> tuple[int, int, int]:
    numbers = iter(struct.unpack(f"<{len(value) // 8}Q", value[: len(value) // 8 * 8]))
    try:
        return (
            next(numbers) if size == MAX32 else size,
            next(numbers) if packed == MAX32 else packed,
            next(numbers) if offset == MAX32 else offset,
        )
    except StopIteration:
        raise ZipError("a zip64 field of its directory is too short") from None


def _from_dos(moment: int, day: int) -> int:
    try:
        return int(
            time.mktime(
                (
                    1980 + (day >> 9), max(1, day >> 5 & 15), max(1, day & 31),
                    moment >> 11, moment >> 5 & 63, (moment & 31) * 2, 0, 0, -1,
                )
            )
        )  # fmt: skip
    except (OverflowError, ValueError):
        return 0


def data_start(file: BinaryIO, entry: Entry) -> int:
    """Find where an entry's contents begin. Raises `ZipError` where its local header differs."""
    file.seek(entry.offset)
    header = file.read(LOCAL.size)
    if len(header) < LOCAL.size or header[:4] != b"PK\x03\x04":
        raise ZipError(f"{entry.path!r} has no header: it is cut off or corrupt")
    fields: tuple[int, ...] = LOCAL.unpack(header)
    flags, method, name_length, extra_length = fields[2], fields[3], fields[9], fields[10]
    name = file.read(name_length)
    same = _decode(name, utf8=bool(flags & UTF8), unix=entry.unix) == entry.path
    if not same or method != entry.method or flags & ENCRYPTED:
        raise ZipError(f"{entry.path!r} is described in two ways that differ")
    return entry.offset + LOCAL.size + name_length + extra_length
