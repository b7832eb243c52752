"""The zip format, as far as it is written here.

Source: PKWARE's APPNOTE.TXT 6.3.10 (sections 4.3 to 4.5: headers, flags, zip64); the extended
timestamp (extra field 0x5455) is Info-ZIP's, from its proginfo/extrafld.txt.
"""

import stat
import struct
import time
from functools import lru_cache
from typing import NamedTuple

STORED, DEFLATED = 0, 8
ENCRYPTED, DESCRIPTOR, UTF8 = 0x1, 0x8, 0x800
ZIP64_FROM = 0xF000_0000
"""Files of this size and above are written with zip64 fields: deflate may add a little."""

_MAX16, MAX32 = 0xFFFF, 0xFFFF_FFFF
UNIX = 3
LOCAL = struct.Struct("<IHHHHHIIIHH")
CENTRAL = struct.Struct("<IBBHHHHHIIIHHHHHII")
END = struct.Struct("<IHHHHIIH")
END64 = struct.Struct("<IQHHIIQQQQ")
LOCATOR = struct.Struct("<IIQI")
_OFFSET = struct.Struct("<I")
_OFFSET_AT = CENTRAL.size - _OFFSET.size
_STAMP = struct.Struct("<HHBi")
_LOCAL_SIG, _CENTRAL_SIG, _END_SIG = 0x04034B50, 0x02014B50, 0x06054B50
_END64_SIG, _LOCATOR_SIG, _DESCRIPTOR_SIG = 0x06064B50, 0x07064B50, 0x08074B50


class Entry(NamedTuple):
    """A member of an archive.

    ``mode`` is a whole st_mode (0: unknown), ``packed`` and ``size`` are in bytes before and
    after inflating, ``offset`` is where the local header begins. ``sha256`` is of the contents,
    where they were packed here, and ``cuts`` are as `simagent.transfer.manifest.File` has them.
    """

    path: str
    mode: int
    mtime_ns: int
    method: int
    flags: int
    crc: int
    packed: int
    size: int
    offset: int
    sha256: str = ""
    unix: bool = True
    cuts: tuple[int, ...] = ()

    @property
    def is_folder(self) -> bool:
        """Whether it is a folder."""
        return self.path.endswith("/") or stat.S_ISDIR(self.mode)

    @property
    def is_link(self) -> bool:
        """Whether it is a symbolic link."""
        return stat.S_ISLNK(self.mode)


def encode(path: str) -> bytes:
    """Give a path's bytes as the file system has them."""
    return path.encode("utf-8", "surrogateescape")


def name_flag(name: bytes) -> int:
    """Give the flag that tells whether a name is UTF-8."""
    try:
        name.decode("utf-8")
    except UnicodeDecodeError:
        return 0
    return UTF8


@lru_cache(maxsize=4096)
def _times(seconds: int) -> tuple[int, int, bytes]:
    """Give a time as MS-DOS has it, time and day, and as the extended timestamp."""
    stamp = _STAMP.pack(0x5455, 5, 1, seconds) if -(2**31) <= seconds < 2**31 else b""
    try:
        t = time.gmtime(seconds)
    except (OverflowError, OSError, ValueError):
        return 0, 0x21, stamp
    if t.tm_year < 1980:
        return 0, 0x21, stamp
    if t.tm_year > 2107:
        return 0xBF7D, 0xFF9F, stamp
    moment = t.tm_hour << 11 | t.tm_min << 5 | t.tm_sec // 2
    return moment, (t.tm_year - 1980) << 9 | t.tm_mon << 5 | t.tm_mday, stamp


def local_header(name: bytes, entry: Entry) -> bytes:
    """Build a local header; with `DESCRIPTOR` set, sizes and checksum follow the contents."""
    moment, day, extra = _times(entry.mtime_ns // 1_000_000_000)
    crc, packed, size, version = entry.crc, entry.packed, entry.size, 20
    if size >= ZIP64_FROM:
        extra = struct.pack("<HHQQ", 1, 16, 0, 0) + extra
        packed = size = MAX32
        version = 45
    if entry.flags & DESCRIPTOR:
        crc = 0
        if version == 20:
            packed = size = 0
    fixed = LOCAL.pack(
        _LOCAL_SIG, version, entry.flags, entry.method, moment, day,
        crc, packed, size, len(name), len(extra),
    )  # fmt: skip
    return fixed + name + extra


def descriptor(entry: Entry, *, zip64: bool) -> bytes:
    """Build what follows the contents of an entry with `DESCRIPTOR` set."""
    layout = "<IIQQ" if zip64 else "<IIII"
    return struct.pack(layout, _DESCRIPTOR_SIG, entry.crc, entry.packed, entry.size)


def central_header(name: bytes, entry: Entry) -> bytes:
    """Build an entry's line of the directory."""
    moment, day, extra = _times(entry.mtime_ns // 1_000_000_000)
    packed, size, offset, version = entry.packed, entry.size, entry.offset, 20
    if packed >= ZIP64_FROM or size >= ZIP64_FROM or offset >= ZIP64_FROM:
        extra = struct.pack("<HHQQQ", 1, 24, size, packed, offset) + extra
        packed = size = offset = MAX32
        version = 45
    attributes = (entry.mode & 0xFFFF) << 16 | (0x10 if name[-1:] == b"/" else 0)
    fixed = CENTRAL.pack(
        _CENTRAL_SIG, 45, UNIX, version, entry.flags, entry.method, moment, day, entry.crc,
        packed, size, len(name), len(extra), 0, 0, 0, attributes, offset,
    )  # fmt: skip
    return fixed + name + extra


def move_header(header: bytes, entry: Entry, start: int) -> bytes:
    """Give an entry's line of the directory when its offset counts from ``start``."""
    offset = start + entry.offset
    if offset >= ZIP64_FROM:
        return central_header(encode(entry.path), entry._replace(offset=offset))
    return header[:_OFFSET_AT] + _OFFSET.pack(offset) + header[CENTRAL.size :]


def end_records(count: int, size: int, offset: int) -> bytes:
    """Build what ends an archive: ``size`` and ``offset`` are the directory's, in bytes."""
    record = b""
    if count >= _MAX16 or max(size, offset) >= ZIP64_FROM:
        record = END64.pack(_END64_SIG, 44, 45, 45, 0, 0, count, count, size, offset)
        record += LOCATOR.pack(_LOCATOR_SIG, 0, offset + size, 1)
    count, size, offset = min(count, _MAX16), min(size, MAX32), min(offset, MAX32)
    if record:
        size, offset = MAX32, MAX32
    return record + END.pack(_END_SIG, 0, 0, count, count, size, offset, 0)
