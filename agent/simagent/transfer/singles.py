"""Outputs published as single objects, each at its path beneath the attempt's prefix.

A path that can be no key (it is too long, or no valid text) has an object beneath `ODD`, named by
its checksum; the manifest tells.
"""

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, suppress
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from simagent.domain.keys import AttemptKeys
from simagent.ports.retry import Retry
from simagent.ports.store import Entry, NotFoundError, Store, StoreUnavailableError
from simagent.transfer.ahead import Job, in_order
from simagent.transfer.batch import CHANGED, Member, is_changed, open_file, why_unread
from simagent.transfer.errors import OutputChangedError
from simagent.transfer.manifest import File, Link, Skipped
from simagent.transfer.ranges import THREADS, read_range
from simagent.transfer.tree import Tree
from simagent.transfer.zipformat import encode

ODD = "output-odd/"
_LONGEST = 700
"""Bytes of a path: S3 allows 1024 for the whole key, with the store's own prefix."""
_SMALL = 8 << 20
_READ = 8 << 20
"""Bytes of a chunk of a large file: such as become parts of an upload as they are."""
_TRIES = 3


class Singles(NamedTuple):
    """What was published: ``notes`` tell what is not as it was when selected."""

    files: tuple[File, ...]
    links: tuple[Link, ...]
    folders: tuple[str, ...]
    notes: tuple[Skipped, ...]


class Sent(NamedTuple):
    """A file that is in the store, the version it has there, and what it was on the disk."""

    file: File
    etag: str
    inode: tuple[int, int]
    changed: bool = False


class Record:
    """What was sent by earlier tries, kept in a file so that it is not sent again."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._known: dict[str, Sent] = {}
        if path is not None:
            with suppress(OSError):
                for line in path.read_text(encoding="ascii").splitlines():
                    with suppress(ValueError, TypeError):  # cut off by a crash
                        file, etag, inode = json.loads(line)
                        self._known[file[0]] = Sent(File(*file), etag, (inode[0], inode[1]))

    def find(self, member: Member, status: os.stat_result) -> Sent | None:
        """Give what was sent of a file, if it has not been written to since."""
        sent = self._known.get(member.path)
        if sent is None or member.tail or sent.inode != _inode(status):
            return None
        file = sent.file
        same = (file.size, file.mtime) == (status.st_size, status.st_mtime_ns)
        return sent if same and file.size == member.size else None

    def add(self, sent: Sequence[Sent]) -> None:
        """Note what was sent. Only saves work: where it cannot be written, it is left."""
        self._known.update((one.file.path, one) for one in sent)
        if self._path is not None:
            lines = [json.dumps((list(_values(s.file)), s.etag, s.inode)) + "\n" for s in sent]
            with suppress(OSError), self._path.open("a", encoding="ascii") as file:
                file.writelines(lines)


def publish_files(
    store: Store,
    keys: AttemptKeys,
    members: Sequence[Member],
    record: Record,
    *,
    retry: Retry,
    on_progress: Callable[[int], None] | None = None,
) -> Singles:
    """Put outputs into the store, verified; what is there already, by ``record``, is not sent.

    Raises what ``retry`` lets through, and StoreErrors.
    """
    publishing = _Publishing(store, keys, record, retry, on_progress or (lambda _count: None))
    files = [member for member in members if member.kind == "file"]
    others = [member for member in members if member.kind != "file"]
    sent = publishing.send(files)
    links, folders = publishing.name(others)
    return Singles(
        tuple(one.file for one in sent), tuple(links), tuple(folders), tuple(publishing.notes)
    )


def listed(store: Store, keys: AttemptKeys) -> dict[str, Entry]:
    """Tell which single files are in the store, by key relative to the attempt's."""
    found = {}
    for entry in store.scan(keys.output_folder.removesuffix("/")):
        name = entry.key.removeprefix(keys.root)
        if name.startswith(("output/", ODD)):
            found[name] = entry
    return found


def not_there(files: Sequence[File], found: dict[str, Entry]) -> list[File]:
    """Give those files whose object is missing or has another size."""
    return [f for f in files if (e := found.get(name_of(f.path))) is None or e.size != f.size]


def name_of(path: str) -> str:
    """Give the key of a path's object, relative to the attempt's."""
    try:
        if len(path.encode()) <= _LONGEST:
            return "output/" + path
    except UnicodeEncodeError:
        pass
    return ODD + hashlib.sha256(encode(path)).hexdigest()


class _Publishing:
    def __init__(
        self,
        store: Store,
        keys: AttemptKeys,
        record: Record,
        retry: Retry,
        on_progress: Callable[[int], None],
    ) -> None:
        self._store = store
        self._keys = keys
        self._record = record
        self._retry = retry
        self._progress = on_progress
        self.notes: list[Skipped] = []

    def send(self, members: Sequence[Member]) -> list[Sent]:
        """Send all files that are not there, and remove what is there of others."""
        for _ in range(_TRIES):
            self.notes.clear()
            there = self._retry(partial(listed, self._store, self._keys))
            sent = list(self._send_all(members, there))
            found = self._retry(partial(listed, self._store, self._keys))
            bad = not_there([one.file for one in sent], found)
            if not bad:
                for name in found.keys() - {name_of(one.file.path) for one in sent}:
                    self._retry(partial(self._store.delete, self._keys.root + name))
                return sent
        raise StoreUnavailableError(
            f"{self._keys.root}{name_of(bad[0].path)} is not in the store as it was sent"
        )

    def _send_all(self, members: Sequence[Member], there: dict[str, Entry]) -> Iterator[Sent]:
        small = [member for member in members if member.size <= _SMALL]
        large = [member for member in members if member.size > _SMALL]
        jobs = (Job(partial(self._try, member, there), member.size) for member in small)
        with closing(in_order(jobs, threads=THREADS, retry=self._retry)) as results:
            for member, result in zip(small, results, strict=True):
                yield from self._taken(member, result)
        for member in large:
            yield from self._taken(member, self._retry(partial(self._try, member, there)))

    def _taken(self, member: Member, result: Sent | str) -> Iterator[Sent]:
        if isinstance(result, str):
            self.notes.append(Skipped(member.path, result))
            return
        if result.changed:
            self.notes.append(Skipped(member.path, CHANGED))
        elif not member.tail:
            self._record.add([result])
        self._progress(result.file.size)
        yield result

    def _try(self, member: Member, there: dict[str, Entry]) -> Sent | str:
        """Send a file; tell why it could not be read where that is so. Any thread may do so."""
        try:
            with Tree(member.root) as tree:
                file, status = open_file(tree, member.source)
        except OSError as error:
            return why_unread(error)
        try:
            name = name_of(member.path)
            known, entry = self._record.find(member, status), there.get(name)
            if known and entry and (entry.size, entry.etag) == (known.file.size, known.etag):
                return known
            return self._upload(member, file, status, self._keys.root + name)
        finally:
            os.close(file)

    def _upload(self, member: Member, file: int, status: os.stat_result, key: str) -> Sent:
        checksum = hashlib.sha256()
        read = 0

        def body() -> Iterator[bytes]:
            nonlocal checksum, read
            checksum, read = hashlib.sha256(), 0
            for piece in _pieces(member, file):
                checksum.update(piece)
                read += len(piece)
                yield piece

        stored = self._store.upload(key, body)
        if stored.size != read or not (stored.checked or self._is(key, read, checksum.hexdigest())):
            raise StoreUnavailableError(f"{key} is not in the store as it was sent")
        after = os.fstat(file)
        written = after.st_mtime_ns != status.st_mtime_ns and not member.tail
        name = name_of(member.path)
        return Sent(
            File(
                member.path, read, status.st_mode & 0o7777, status.st_mtime_ns,
                checksum.hexdigest(), name if name.startswith(ODD) else "",
            ),
            stored.etag,
            _inode(status),
            written or is_changed(after, read, member),
        )  # fmt: skip

    def _is(self, key: str, size: int, sha256: str) -> bool:
        checksum = hashlib.sha256()
        try:
            for piece in read_range(self._store, key, 0, size, _once):
                checksum.update(piece)
        except (NotFoundError, OutputChangedError):
            return False
        return checksum.hexdigest() == sha256

    def name(self, members: Sequence[Member]) -> tuple[list[Link], list[str]]:
        """Give what has no contents of its own."""
        links, folders = [], []
        for member in members:
            if member.kind == "folder":
                folders.append(member.path)
                continue
            try:
                with Tree(member.root) as tree:
                    folder, name = tree.at(member.source)
                    links.append(Link(member.path, os.readlink(name, dir_fd=folder)))
            except OSError as error:
                self.notes.append(Skipped(member.path, why_unread(error)))
        return links, folders


def _pieces(member: Member, file: int) -> Iterator[bytes]:
    at = 0
    while data := os.pread(file, min(_READ, member.size - at), at):
        at += len(data)
        yield data
    if member.tail:
        yield member.tail


def _inode(status: os.stat_result) -> tuple[int, int]:
    return status.st_ino, status.st_ctime_ns


def _values(file: File) -> tuple[Any, ...]:
    return file.path, file.size, file.mode, file.mtime, file.sha256, file.key


def _once(call: Callable[[], Any], /) -> Any:
    return call()
