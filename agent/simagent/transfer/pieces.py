"""Large files in pieces, each of which can be had without the others, from wherever they are."""

from collections.abc import Callable

from isal import isal_zlib

from simagent.ports.store import Store
from simagent.transfer.ahead import Job
from simagent.transfer.manifest import PIECE, File
from simagent.transfer.ranges import Range
from simagent.transfer.zipread import ZipError

_DAMAGED: type[Exception] = isal_zlib.error  # type: ignore[assignment]  # wrong in its stub

Pieces = Callable[[int], Job[bytes | bytearray]]
"""Gives what fetches the piece of this number, counted from 0."""


def single(store: Store, key: str, known: File) -> Pieces:
    """Give the pieces of a file that is an object of its own."""

    def piece(number: int) -> Job[bytes | bytearray]:
        size = _size(known, number)
        return Job(Range(store, key, number * PIECE, size), size)

    return piece


def packed(store: Store, key: str, known: File) -> Pieces:
    """Give the pieces of a file that is ``in_pieces`` in an archive."""

    def piece(number: int) -> Job[bytes | bytearray]:
        start, end = known.cuts[number : number + 2]
        size = _size(known, number)
        return Job(_Packed(Range(store, key, start, end - start), known, size), size)

    return piece


def _size(known: File, number: int) -> int:
    return min(PIECE, known.size - number * PIECE)


class _Packed:
    """A piece that is deflated. Called again after an error, it goes on behind what came."""

    def __init__(self, packed: Range, known: File, size: int) -> None:
        self._packed = packed
        self._path = known.path
        self._size = size

    def __call__(self) -> bytes:
        """Read and inflate it. Raises StoreErrors, `ZipError`."""
        inflater = isal_zlib.decompressobj(-15)
        try:
            data: bytes = inflater.decompress(self._packed(), self._size + 1)
        except _DAMAGED as error:
            raise ZipError(f"{self._path!r} is damaged: {error}") from error
        if len(data) != self._size:
            raise ZipError(f"{self._path!r} is damaged: its size is not what it tells")
        return data
