"""Unpacking archives that are not trusted, beneath a folder.

All that the directory tells is judged before anything is written; what it does not tell truly is
found while inflating, before a byte too many is written. Nothing is ever written through a
symbolic link, so neither the archive's own links nor earlier ones lead out of the folder.
"""

import errno
import os
import stat
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import takewhile
from pathlib import Path
from typing import BinaryIO, NamedTuple

from isal import isal_zlib

from simagent.transfer.errors import InputRejectedError
from simagent.transfer.tree import Tree
from simagent.transfer.zipformat import DEFLATED, ENCRYPTED, LOCAL, STORED, Entry, encode
from simagent.transfer.zipread import Directory, ZipError, data_start, read_directory

_DAMAGED: type[Exception] = isal_zlib.error  # type: ignore[assignment]  # wrong in its stub
_CHUNK = 256 << 10
_PIECE = 1 << 20
_MAX_TARGET = 4096
_MAX_NAME = 255
_MAX_DEPTH = 1000


class Limits(NamedTuple):
    """How much an archive may unpack to: bytes, files and folders, and bytes per packed byte.

    The ratio counts only for archives that unpack to more than ``ratio_from`` bytes.
    """

    max_bytes: int = 1 << 40
    max_files: int = 1_000_000
    max_ratio: int = 1000
    ratio_from: int = 256 << 20


class Stats(NamedTuple):
    """What was unpacked: number of members but folders, and bytes."""

    files: int
    bytes: int


def unpack(
    archive: Path | BinaryIO,
    root: Path,
    *,
    destination: str = "",
    limits: Limits = Limits(),  # noqa: B008 - immutable
    on_progress: Callable[[int], None] | None = None,
) -> Stats:
    """Unpack into the folder ``destination`` beneath ``root``, over what is there.

    ``on_progress`` is told the bytes of each piece written. Raises `InputRejectedError` and, where
    reading or writing itself fails, OSError.
    """
    if isinstance(archive, Path):
        with archive.open("rb") as file:
            return unpack(
                file, root, destination=destination, limits=limits, on_progress=on_progress
            )
    try:
        directory = read_directory(archive, max_files=limits.max_files)
        check(directory, limits)
        with Tree(root) as tree:
            return _Unpacking(archive, tree, destination, on_progress).run(directory)
    except ZipError as error:
        raise InputRejectedError(str(error)) from error


def plain_path(entry: Entry) -> str:
    """Give the path an entry goes to. Raises `ZipError` where that is no plain relative one."""
    return plain(entry.path.removesuffix("/"))


def plain(path: str) -> str:
    """Give a path as it is. Raises `ZipError` where it is no plain relative one."""
    if "\0" in path or any(part in ("", ".", "..") for part in path.split("/")):
        raise ZipError(f"the path {path!r} is absolute or leads out of its folder")
    return path


def check_portable(path: str, *, unix: bool = True) -> None:
    """Refuse what is no path, or another one, for some of those who read archives.

    Raises `ZipError`.
    """
    parts = path.split("/")
    if "\\" in path:
        bad = {"", ".", ".."} & set(path.replace("\\", "/").split("/"))
        if bad or path[1:2] == ":" or not unix:
            raise ZipError(f"the path {path!r} has backslashes: pack it with '/'")
    if len(parts) > _MAX_DEPTH or any(len(encode(part)) > _MAX_NAME for part in parts):
        raise ZipError(f"the path {path[:80]!r}… is too long")


def plain_target(path: str, target: str) -> str:
    """Give the target of a link at a path if it stays beneath the root. Raises `ZipError`.

    ``..`` may stand only at its start: links are made in real folders, so those are exact, while
    a later one could be taken from wherever another link leads.
    """
    parts = target.split("/")
    ups = 0
    while ups < len(parts) and parts[ups] == "..":
        ups += 1
    outward = target.startswith("/") or ups > path.count("/") or ".." in parts[ups:]
    if not target or outward or "\0" in target or len(target) > _MAX_TARGET:
        raise ZipError(f"the link {path!r} leads out of its folder, to {target[:80]!r}")
    return target


def check(directory: Directory, limits: Limits) -> None:
    """Judge what an archive says it contains. Raises `ZipError`."""
    files: set[str] = set()
    folders: set[str] = set()
    total = packed = 0
    for entry in directory.entries:
        path = plain_path(entry)
        check_portable(path, unix=entry.unix)
        if entry.is_folder:
            folders.add(path)
        elif path in files:
            raise ZipError(f"{path!r} is in it twice")
        else:
            files.add(path)
        _check_kind(entry)
        total += entry.size
        packed += entry.packed
    _check_folders(files, folders, limits.max_files)
    if total > limits.max_bytes:
        raise ZipError(f"it unpacks to {total} bytes, more than the {limits.max_bytes} allowed")
    if total > limits.ratio_from and total > limits.max_ratio * max(packed, 1):
        raise ZipError(f"it unpacks to {total // max(packed, 1)} times its size")
    _check_overlap(directory)


def _check_folders(files: set[str], folders: set[str], most: int) -> None:
    """Count the folders, also those that are only gone through: a small archive can name many.

    Raises `ZipError` where they and the files are more than ``most``, and where something is both
    a folder and something else. In this order, all that is in a folder comes right after it.
    """
    if fight := files & folders:
        raise ZipError(f"{min(fight)!r} is in it both as a folder and as something else")
    count, last, above = len(files), "", list[str]()
    for path in sorted(files | folders, key=lambda path: path.replace("/", "\0")):
        if last in files and path.startswith(last + "/"):
            raise ZipError(f"{last!r} is in it both as a folder and as something else")
        through = path.split("/") if path in folders else path.split("/")[:-1]
        pairs = zip(through, above, strict=False)
        count += len(through) - sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
        if count > most:
            raise ZipError(f"it unpacks to more than the {most} files and folders allowed")
        last, above = path, through


def _check_overlap(directory: Directory) -> None:
    end = 0
    for entry in sorted(directory.entries, key=lambda entry: entry.offset):
        if entry.offset < end:
            raise ZipError(f"{entry.path!r} overlaps another member")
        end = entry.offset + LOCAL.size + entry.packed
    if end > directory.start:
        raise ZipError("its last member does not end before its directory: it is corrupt")


def _check_kind(entry: Entry) -> None:
    kind = stat.S_IFMT(entry.mode)
    if kind not in (0, stat.S_IFREG, stat.S_IFDIR, stat.S_IFLNK):
        raise ZipError(f"{entry.path!r} is a device, FIFO or socket")
    if entry.flags & ENCRYPTED:
        raise ZipError(f"{entry.path!r} is encrypted: pack it without a password")
    if entry.method not in (STORED, DEFLATED):
        raise ZipError(
            f"{entry.path!r} is compressed by method {entry.method}: pack it with deflate"
        )
    if entry.method == STORED and entry.packed != entry.size:
        raise ZipError(f"{entry.path!r} is stored, and has two sizes that differ")
    if entry.is_link and entry.size > _MAX_TARGET:
        raise ZipError(f"{entry.path!r} is a link whose target is too long")


def inflate(archive: BinaryIO, entry: Entry, end: int) -> Iterator[bytes]:
    """Yield an entry's contents; they lie before ``end``. Raises `ZipError`, OSError."""
    start = data_start(archive, entry)
    if start + entry.packed > end:
        raise ZipError(f"{entry.path!r} overlaps another member")
    archive.seek(start)
    size = crc = 0
    for piece in _inflated(archive, entry):
        size += len(piece)
        if size > entry.size:
            raise ZipError(f"{entry.path!r} unpacks to more than the {entry.size} bytes it tells")
        crc = isal_zlib.crc32(piece, crc)
        yield piece
    if size != entry.size or crc != entry.crc:
        raise ZipError(f"{entry.path!r} is damaged: its size or checksum is not what it tells")


def _inflated(archive: BinaryIO, entry: Entry) -> Iterator[bytes]:
    left = entry.packed
    inflater = isal_zlib.decompressobj(-15) if entry.method == DEFLATED else None
    while left and not (inflater and inflater.eof):
        data = archive.read(min(_CHUNK, left))
        if not data:
            raise ZipError(f"{entry.path!r} is cut off")
        left -= len(data)
        if inflater is None:
            yield data
            continue
        try:
            piece = inflater.decompress(data, _PIECE)
            # A full piece may have left more behind, also where all data were taken in.
            while len(piece) == _PIECE or inflater.unconsumed_tail:
                yield piece
                piece = inflater.decompress(inflater.unconsumed_tail, _PIECE)
            yield piece
        except _DAMAGED as error:
            raise ZipError(f"{entry.path!r} is damaged: {error}") from error
    if inflater and not inflater.eof:
        raise ZipError(f"{entry.path!r} is cut off")


def ends(directory: Directory) -> dict[int, int]:
    """Tell where each entry's contents must have ended, by the entry's offset."""
    offsets = sorted(entry.offset for entry in directory.entries)
    return dict(zip(offsets, [*offsets, directory.start][1:], strict=True))


class _Unpacking:
    def __init__(
        self,
        archive: BinaryIO,
        tree: Tree,
        destination: str,
        on_progress: Callable[[int], None] | None,
    ) -> None:
        self._archive = archive
        self._tree = tree
        self._prefix = "".join(
            part + "/" for part in destination.split("/") if part not in ("", ".")
        )
        self._progress = on_progress or (lambda _count: None)

    def run(self, directory: Directory) -> Stats:
        limits = ends(directory)
        files = [entry for entry in directory.entries if not entry.is_folder]
        folders = [entry for entry in directory.entries if entry.is_folder]
        links = [entry for entry in files if entry.is_link]
        targets = [self._target(entry, limits[entry.offset]) for entry in links]
        total = 0
        for entry in sorted(files, key=lambda entry: entry.offset):
            if not entry.is_link:
                with self._placing(entry):
                    self._file(entry, limits[entry.offset])
                total += entry.size
        for entry, target in zip(links, targets, strict=True):
            with self._placing(entry):
                self._tree.link(self._prefix + plain_path(entry), target)
        self._folders(folders)
        return Stats(len(files), total)

    @contextmanager
    def _placing(self, entry: Entry) -> Iterator[None]:
        try:
            yield
        except (NotADirectoryError, IsADirectoryError) as error:
            raise ZipError(f"{entry.path!r} is in the way of what is there already") from error
        except OSError as error:
            if error.errno not in (errno.ELOOP, errno.ENAMETOOLONG, errno.EINVAL):
                raise
            raise ZipError(f"{entry.path!r} cannot be made: {error.strerror}") from error

    def _target(self, entry: Entry, end: int) -> str:
        target = b"".join(inflate(self._archive, entry, end))
        return plain_target(plain_path(entry), os.fsdecode(target))

    def _file(self, entry: Entry, end: int) -> None:
        file = self._tree.create(self._prefix + plain_path(entry), 0o600)
        try:
            for piece in inflate(self._archive, entry, end):
                write_all(file, piece)
                self._progress(len(piece))
            # Never set-uid: it would be the agent's.
            os.fchmod(file, (entry.mode & 0o777 or 0o644) | 0o600)
            os.utime(file, ns=(entry.mtime_ns, entry.mtime_ns))
        finally:
            os.close(file)

    def _folders(self, folders: Sequence[Entry]) -> None:
        for entry in folders:
            with self._placing(entry):
                folder = self._tree.folder(self._prefix + plain_path(entry), make=True)
                os.fchmod(folder, (entry.mode & 0o777 or 0o755) | 0o700)


def write_all(file: int, data: bytes | bytearray) -> None:
    """Write all of some bytes. Raises OSError."""
    view = memoryview(data)
    while view:
        view = view[os.write(file, view) :]
