"""Fetching outputs by glob, straight out of the archive in the store: only what is wanted."""

import hashlib
import io
import os
import secrets
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, NamedTuple, TypeVar, cast

from simagent.domain.state import Output
from simagent.ports.retry import Retry
from simagent.ports.store import Store, StoreUnavailableError
from simagent.transfer.errors import OutputChangedError
from simagent.transfer.globs import Globs
from simagent.transfer.manifest import File, Manifest, ManifestError
from simagent.transfer.tree import Tree
from simagent.transfer.unpack import ends, inflate, plain_path, plain_target, write_all
from simagent.transfer.zipformat import Entry
from simagent.transfer.zipread import Directory, ZipError, read_directory

if TYPE_CHECKING:
    from typing_extensions import Buffer

_FIRST_READ = 64 << 10
_MAX_READ = 8 << 20
_MAX_MEMBERS = 100_000_000
_MAX_DIRECTORY = 16 << 30

T = TypeVar("T")


def once(call: Callable[[], T], /) -> T:
    """Call without trying again: the `Retry` of those who retry themselves."""
    return call()


class Place(NamedTuple):
    """Where files go: ``folder`` beneath ``root``, which nothing written leaves."""

    root: Path
    folder: str = ""

    def beneath(self, path: str) -> str:
        """Give a path relative to the root."""
        parts = [part for part in self.folder.split("/") if part not in ("", ".")]
        return "/".join([*parts, path])


class RangeReader(io.RawIOBase):
    """A seekable file over an object, read by ranges that grow while reading goes on in order."""

    def __init__(self, store: Store, key: str, retry: Retry = once) -> None:
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
        self._ahead = min(2 * self._ahead, _MAX_READ) if going_on else _FIRST_READ
        length = min(max(wanted, self._ahead), self._size - self._at)

        def read() -> bytes:
            with self._store.open(self._key, start=self._at, length=length) as stream:
                data = stream.read(length)
            if not data:
                raise StoreUnavailableError(f"{self._key} ended early")
            return data

        self._buffer, self._start = self._retry(read), self._at


def download(
    store: Store,
    output: Output,
    patterns: Iterable[str],
    place: Place,
    *,
    retry: Retry = once,
    on_progress: Callable[[int], None] | None = None,
    on_skip: Callable[[str, str], None] | None = None,
) -> list[Path]:
    """Lay the outputs that match into a folder and give their paths.

    Each file appears whole, verified against the manifest, or not at all. Nothing is written
    outside ``place.root``; links that lead out of it are left out, and ``on_skip`` is told their
    path and why. ``on_progress`` is told the bytes of each piece written. Raises
    `OutputChangedError` where the store holds something else than was published,
    `simagent.ports.store.StoreError`s, and OSError.
    """
    manifest = read_manifest(store, output, retry)
    globs = Globs(patterns)
    with io.BufferedReader(RangeReader(store, output.archive, retry)) as reader:
        archive = cast(BinaryIO, reader)
        place.root.mkdir(parents=True, exist_ok=True)
        try:
            directory = _directory(archive)
            with Tree(place.root) as tree:
                extraction = _Extraction(archive, tree, place, manifest)
                extraction.on_progress = on_progress or extraction.on_progress
                extraction.on_skip = on_skip or extraction.on_skip
                return list(extraction.run(directory, globs))
        except ZipError as error:
            raise OutputChangedError(f"{output.archive}: {error}") from error


def read_manifest(store: Store, output: Output, retry: Retry = once) -> Manifest:
    """Read what was published. Raises `OutputChangedError` and StoreErrors."""
    data = retry(lambda: store.get(output.manifest)).data
    if hashlib.sha256(data).hexdigest() != output.manifest_sha256:
        raise OutputChangedError(f"{output.manifest} is not what the task published")
    try:
        return Manifest.load(data)
    except ManifestError as error:
        raise OutputChangedError(f"{output.manifest}: {error}") from error


def read_output(
    store: Store, output: Output, manifest: Manifest, path: str, retry: Retry = once
) -> Iterator[bytes]:
    """Yield the contents of one output, read in pieces as they are wanted.

    ``manifest`` is the output's own. Raises FileNotFoundError where it was not published,
    StoreErrors, and `OutputChangedError`, at the end only where just the checksum tells.
    """
    known = next((file for file in manifest.files if file.path == path), None)
    if known is None:
        raise FileNotFoundError(path)
    checksum = hashlib.sha256()
    with io.BufferedReader(RangeReader(store, output.archive, retry)) as reader:
        archive = cast(BinaryIO, reader)
        try:
            directory = _directory(archive)
            entry = next((entry for entry in directory.entries if entry.path == path), None)
            if entry is None:
                raise OutputChangedError(f"{output.archive}: {path!r} is not in it")
            for piece in inflate(archive, entry, ends(directory)[entry.offset]):
                checksum.update(piece)
                yield piece
        except ZipError as error:
            raise OutputChangedError(f"{output.archive}: {error}") from error
    if checksum.hexdigest() != known.sha256:
        raise OutputChangedError(f"{path!r} is not what the task published")


def _directory(archive: BinaryIO) -> Directory:
    # What is in it was published by an agent, and is held against the manifest.
    return read_directory(archive, max_files=_MAX_MEMBERS, max_bytes=_MAX_DIRECTORY)


class _Extraction:
    def __init__(self, archive: BinaryIO, tree: Tree, place: Place, manifest: Manifest) -> None:
        self._archive = archive
        self._tree = tree
        self._place = place
        self._known = {file.path: file for file in manifest.files}
        self.on_progress: Callable[[int], None] = lambda _count: None
        self.on_skip: Callable[[str, str], None] = lambda _path, _why: None

    def run(self, directory: Directory, globs: Globs) -> Iterator[Path]:
        limits = ends(directory)
        wanted = [entry for entry in directory.entries if globs.match(plain_path(entry))]
        for entry in sorted(wanted, key=lambda entry: (entry.is_link, entry.offset)):
            path = self._place.beneath(plain_path(entry))
            try:
                if entry.is_folder:
                    self._tree.folder(path, make=True)
                elif entry.is_link:
                    self._link(entry, path, limits[entry.offset])
                else:
                    self._file(entry, path, limits[entry.offset])
            except _UnsafeLinkError as error:
                self.on_skip(plain_path(entry), str(error))
                continue
            yield self._place.root / path

    def _link(self, entry: Entry, path: str, end: int) -> None:
        target = os.fsdecode(b"".join(inflate(self._archive, entry, end)))
        try:
            plain_target(plain_path(entry), target)
        except ZipError as error:
            raise _UnsafeLinkError(str(error)) from error
        self._tree.link(path, target)

    def _file(self, entry: Entry, path: str, end: int) -> None:
        known = self._known.get(entry.path)
        if known is None:
            raise OutputChangedError(f"{entry.path!r} is not in the manifest")
        parent = path.rpartition("/")[0]
        temporary = f".simagent-{secrets.token_hex(8)}.part"
        temporary_path = f"{parent}/{temporary}" if parent else temporary
        file = self._tree.create(temporary_path, 0o600)
        try:
            try:
                self._contents(entry, known, file, end)
            finally:
                os.close(file)
            folder, name = self._tree.at(path)
            os.rename(temporary, name, src_dir_fd=folder, dst_dir_fd=folder)
        except BaseException:
            folder, _ = self._tree.at(temporary_path)
            with suppress(FileNotFoundError):
                os.unlink(temporary, dir_fd=folder)
            raise

    def _contents(self, entry: Entry, known: File, file: int, end: int) -> None:
        checksum = hashlib.sha256()
        for piece in inflate(self._archive, entry, end):
            checksum.update(piece)
            write_all(file, piece)
            self.on_progress(len(piece))
        if checksum.hexdigest() != known.sha256:
            raise OutputChangedError(f"{entry.path!r} is not what the task published")
        os.fchmod(file, known.mode & 0o777 | 0o600)
        os.utime(file, ns=(known.mtime, known.mtime))


class _UnsafeLinkError(Exception):
    pass
