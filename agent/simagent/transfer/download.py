"""Fetching outputs by glob, straight out of what is in the store: only what is wanted."""

import hashlib
import io
import os
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, NamedTuple, TypeVar, cast

from simagent.domain.state import Output
from simagent.ports.retry import Retry
from simagent.ports.store import Store
from simagent.transfer.ahead import Job, in_order
from simagent.transfer.errors import OutputChangedError
from simagent.transfer.globs import Globs
from simagent.transfer.laying import Laying, Told
from simagent.transfer.manifest import PIECE, File, Manifest, ManifestError
from simagent.transfer.pieces import packed, single
from simagent.transfer.ranges import THREADS, ExtentReader, Range, RangeReader, read_range
from simagent.transfer.tree import Tree
from simagent.transfer.unpack import ends, inflate, plain, plain_path, plain_target
from simagent.transfer.zipformat import Entry
from simagent.transfer.zipread import Directory, ZipError, read_directory

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


def download(
    store: Store,
    output: Output,
    patterns: Iterable[str],
    place: Place,
    *,
    retry: Retry = once,
    on_progress: Callable[[int], None] | None = None,
    on_kept: Callable[[int], None] | None = None,
    on_skip: Callable[[str, str], None] | None = None,
) -> list[Path]:
    """Lay the outputs that match into a folder and give their paths.

    Each file appears whole, verified against the manifest, or not at all; what is there already,
    by an earlier try, is not fetched again, and large files are gone on with. Nothing is written
    outside ``place.root``; links that lead out of it are left out, and ``on_skip`` is told their
    path and why. ``on_progress`` is told the bytes of each piece that comes, and of what was there
    where no ``on_kept`` is told those. Raises `OutputChangedError` where the store holds something
    else than was published, `simagent.ports.store.StoreError`s, and OSError.
    """
    told = Told(on_progress or _nobody, on_kept or on_progress or _nobody)
    globs = Globs(patterns)

    def lay() -> list[Path]:
        manifest = read_manifest(store, output, retry)
        with Tree(place.root) as tree:
            getting = _Getting(
                store=store, output=output, manifest=manifest, place=place, tree=tree,
                laying=Laying(tree, output.manifest_sha256, told), retry=retry,
                on_skip=on_skip or _nobody,
            )  # fmt: skip
            try:
                way = getting.files if output.layout == "files" else getting.archive
                return list(way(globs))
            except ZipError as error:
                raise OutputChangedError(f"{output.archive or output.manifest}: {error}") from error

    place.root.mkdir(parents=True, exist_ok=True)
    try:
        return lay()
    except OutputChangedError:
        # Nobody checks the bytes of a range on their way: what was damaged there, comes right now.
        return lay()


def _nobody(*_what: object) -> None:
    pass


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
    store: Store,
    output: Output,
    manifest: Manifest,
    path: str,
    retry: Retry = once,
    *,
    start: int = 0,
) -> Iterator[bytes]:
    """Yield the contents of one output from an offset on, read in pieces as they are wanted.

    ``manifest`` is the output's own. What is before ``start`` is not read of single files: then
    there is no checksum to hold them against. Raises FileNotFoundError where it was not published,
    StoreErrors, and `OutputChangedError`, at the end only where just the checksum tells.
    """
    known = next((file for file in manifest.files if file.path == path), None)
    if known is None:
        raise FileNotFoundError(path)
    if output.layout == "files" and start:
        key = object_key(output, known)
        yield from map(bytes, read_range(store, key, min(start, known.size), known.size, retry))
        return
    checksum = hashlib.sha256()
    at = 0
    for piece in _pieces(store, output, known, retry):
        checksum.update(piece)
        at += len(piece)
        if at > start:
            yield piece[max(0, len(piece) - (at - start)) :]
    if checksum.hexdigest() != known.sha256:
        raise OutputChangedError(f"{path!r} is not what the task published")


def _pieces(store: Store, output: Output, known: File, retry: Retry) -> Iterator[bytes]:
    if output.layout == "files":
        yield from map(bytes, read_range(store, object_key(output, known), 0, known.size, retry))
        return
    with io.BufferedReader(RangeReader(store, output.archive, retry)) as reader:
        archive = cast(BinaryIO, reader)
        try:
            directory = _directory(archive)
            entry = next((entry for entry in directory.entries if entry.path == known.path), None)
            if entry is None:
                raise OutputChangedError(f"{output.archive}: {known.path!r} is not in it")
            yield from inflate(archive, entry, ends(directory)[entry.offset])
        except ZipError as error:
            raise OutputChangedError(f"{output.archive}: {error}") from error


def _directory(archive: BinaryIO) -> Directory:
    # What is in it was published by an agent, and is held against the manifest.
    return read_directory(archive, max_files=_MAX_MEMBERS, max_bytes=_MAX_DIRECTORY)


@dataclass(kw_only=True, slots=True)
class _Getting:
    store: Store
    output: Output
    manifest: Manifest
    place: Place
    tree: Tree
    laying: Laying
    retry: Retry
    on_skip: Callable[[str, str], None]
    links: list[tuple[str, str]] = field(default_factory=list)

    def archive(self, globs: Globs) -> Iterator[Path]:
        """Lay what an archive has."""
        store, key = self.store, self.output.archive
        with io.BufferedReader(RangeReader(store, key, self.retry)) as whole:
            directory = _directory(cast(BinaryIO, whole))
        limits = ends(directory)
        known = {file.path: file for file in self.manifest.files}
        wanted = [entry for entry in directory.entries if globs.match(plain_path(entry))]
        wanted.sort(key=lambda entry: entry.offset)
        there = {entry.offset for entry in wanted if self._is_there(entry, known)}
        extents = [
            (entry.offset, limits[entry.offset])
            for entry in wanted
            if not (entry.offset in there or entry.is_folder or _in_pieces(entry, known))
        ]
        with io.BufferedReader(ExtentReader(store, key, extents, self.retry)) as reader:
            archive = cast(BinaryIO, reader)
            for entry in wanted:
                path, end = plain_path(entry), limits[entry.offset]
                if entry.is_folder:
                    self.tree.folder(self.place.beneath(path), make=True)
                elif entry.is_link:
                    target = os.fsdecode(b"".join(inflate(archive, entry, end)))
                    self.links.append((path, target))
                    continue
                elif entry.offset not in there:
                    self._member(archive, entry, known.get(entry.path), end)
                yield self.place.root / self.place.beneath(path)
        yield from self._made_links()

    def _is_there(self, entry: Entry, known: dict[str, File]) -> bool:
        file = None if entry.is_folder or entry.is_link else known.get(entry.path)
        return file is not None and self.laying.is_there(self.place.beneath(file.path), file)

    def _member(self, archive: BinaryIO, entry: Entry, known: File | None, end: int) -> None:
        if known is None:
            raise OutputChangedError(f"{entry.path!r} is not in the manifest")
        path = self.place.beneath(plain_path(entry))
        if known.in_pieces:
            pieces = packed(self.store, self.output.archive, known)
            self.laying.fetch(path, known, pieces, self.retry)
        else:
            self.laying.write(path, known, inflate(archive, entry, end))

    def files(self, globs: Globs) -> Iterator[Path]:
        """Lay what are single objects."""
        beneath = self.place.beneath
        folders = [path for path in self.manifest.folders if globs.match(plain(path))]
        for path in folders:
            self.tree.folder(beneath(path), make=True)
        wanted = [file for file in self.manifest.files if globs.match(plain(file.path))]
        missing = [file for file in wanted if not self.laying.is_there(beneath(file.path), file)]
        small = [file for file in missing if file.size <= PIECE]
        with closing(self._contents(small)) as contents:
            for file, data in zip(small, contents, strict=True):
                self.laying.write(beneath(file.path), file, [data])
        for file in missing:
            if file.size > PIECE:
                pieces = single(self.store, object_key(self.output, file), file)
                self.laying.fetch(beneath(file.path), file, pieces, self.retry)
        links = [link for link in self.manifest.links if globs.match(plain(link.path))]
        self.links = [(link.path, link.target) for link in links]
        for path in (*folders, *(file.path for file in wanted)):
            yield self.place.root / beneath(path)
        yield from self._made_links()

    def _contents(self, files: Iterable[File]) -> Generator[bytearray, None, None]:
        whole = (Range(self.store, object_key(self.output, f), 0, f.size) for f in files)
        jobs = (Job(one, one.length) for one in whole)
        return in_order(jobs, threads=THREADS, retry=self.retry)

    def _made_links(self) -> Iterator[Path]:
        """Make the links, after all else, so that nothing is laid through one."""
        for path, target in self.links:
            try:
                plain_target(path, target)
            except ZipError as error:
                self.on_skip(path, str(error))
                continue
            self.tree.link(self.place.beneath(path), target)
            yield self.place.root / self.place.beneath(path)


def object_key(output: Output, file: File) -> str:
    """Tell where the object of a single file is."""
    return output.folder.removesuffix("output/") + (file.key or f"output/{file.path}")


def _in_pieces(entry: Entry, known: Mapping[str, File]) -> bool:
    file = None if entry.is_link else known.get(entry.path)
    return file is not None and file.in_pieces
