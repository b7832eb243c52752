"""Change 64-bit programs linked against glibc 2.38 so that they run on 2.36: FILE ...

Since 2.38 the headers map strtol and its kin to variants that know C23's binary literals, and
nothing else of 2.38 is asked for. The imports are pointed at the plain functions: their names begin
after the prefix of the variants' names, so the table of strings stays as it is.
"""

import struct
import sys
from pathlib import Path
from typing import NamedTuple

PREFIX = b"__isoc23_"
NEWEST = 36
"""The minor version of glibc that the result may ask for."""

PLAIN = b"GLIBC_2.2.5"
"""The version of the plain functions on x86-64."""

DYNSYM, VERNEED, VERSYM = 11, 0x6FFFFFFE, 0x6FFFFFFF


class Section(NamedTuple):
    """A section header."""

    name: int
    kind: int
    flags: int
    address: int
    offset: int
    size: int
    link: int
    info: int
    align: int
    entry: int


class Version(NamedTuple):
    """A version of the C library that is asked for: where, its number, where its name stands."""

    at: int
    number: int
    name: int


class Program:
    """The bytes of an ELF file, and the tables of its imports."""

    def __init__(self, data: bytearray) -> None:
        if data[:6] != b"\x7fELF\x02\x01":
            raise ValueError("not a little-endian 64-bit ELF file")
        self.data = data
        (table,) = struct.unpack_from("<Q", data, 0x28)
        size, count = struct.unpack_from("<HH", data, 0x3A)
        self._sections = [
            Section(*struct.unpack_from("<IIQQQQIIQQ", data, table + number * size))
            for number in range(count)
        ]
        self._symbols = self._section(DYNSYM)
        self._strings = self._sections[self._symbols.link]

    def _section(self, kind: int) -> Section:
        return next(section for section in self._sections if section.kind == kind)

    def _string(self, offset: int) -> bytes:
        start = self._strings.offset + offset
        return bytes(self.data[start : self.data.index(0, start)])

    def versions(self) -> dict[bytes, Version]:
        """Give the versions asked of the C library, by name."""
        found = {}
        at = self._section(VERNEED).offset
        while True:
            _, count, library, first, onward = struct.unpack_from("<HHIII", self.data, at)
            entry = at + first
            for _ in range(count if self._string(library) == b"libc.so.6" else 0):
                _, _, index, name, following = struct.unpack_from("<IHHII", self.data, entry)
                found[self._string(name)] = Version(entry, index, name)
                entry += following
            if not onward:
                return found
            at += onward

    def ask_for_less(self) -> list[str]:
        """Change the imports; give their names."""
        versions = self.versions()
        new = [version for name, version in versions.items() if _minor(name) > NEWEST]
        plain = versions[PLAIN]
        changed = []
        for number in range(self._symbols.size // 24):
            symbol = self._symbols.offset + 24 * number
            index_at = self._section(VERSYM).offset + 2 * number
            (index,) = struct.unpack_from("<H", self.data, index_at)
            if index not in {version.number for version in new}:
                continue
            (name_at,) = struct.unpack_from("<I", self.data, symbol)
            name = self._string(name_at)
            if not name.startswith(PREFIX):
                raise ValueError(f"{name.decode()} is not in an older glibc")
            struct.pack_into("<I", self.data, symbol, name_at + len(PREFIX))
            struct.pack_into("<H", self.data, index_at, plain.number)
            changed.append(name.decode())
        for version in new:
            struct.pack_into("<I", self.data, version.at, _hash(PLAIN))
            struct.pack_into("<I", self.data, version.at + 8, plain.name)
        return changed


def _minor(version: bytes) -> int:
    major, _, rest = version.removeprefix(b"GLIBC_").partition(b".")
    return int(rest.split(b".")[0]) if major == b"2" else 0


def _hash(name: bytes) -> int:
    """Hash a name as the System V ABI does."""
    value = 0
    for character in name:
        value = ((value << 4) + character) & 0xFFFFFFFF
        high = value & 0xF0000000
        value = (value ^ (high >> 24)) & ~high & 0xFFFFFFFF
    return value


def main(paths: list[str]) -> None:
    for path in map(Path, paths):
        program = Program(bytearray(path.read_bytes()))
        if program.ask_for_less():
            path.write_bytes(program.data)


if __name__ == "__main__":
    main(sys.argv[1:])
