"""What a run produced: found by comparing the folder with what it was, and published."""

import hashlib
import json
import os
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple, Self

from simagent.domain.keys import AttemptKeys
from simagent.domain.spec import Outputs
from simagent.domain.state import Output
from simagent.ports.clock import Clock
from simagent.ports.retry import Retry
from simagent.ports.store import NotFoundError, Store, StoreUnavailableError
from simagent.transfer.archive import Archive
from simagent.transfer.batch import UNREADABLE, Member
from simagent.transfer.errors import TooManyOutputsError
from simagent.transfer.globs import Globs
from simagent.transfer.manifest import (
    ArchiveRef,
    File,
    Link,
    Manifest,
    ManifestError,
    Skipped,
)
from simagent.transfer.tree import UNLISTED, scan

MAX_OUTPUTS = 1_000_000
"""Each takes about a kilobyte of memory while it is published."""

_FORMAT = 1
_PACKED = frozenset({"file", "folder", "link"})
_COARSE_CLOCK = 5  # CLOCK_REALTIME_COARSE of linux/time.h: what the kernel stamps files with
_MAX_TICKS = 50
_READ = 1 << 20

Mark = tuple[int, int, int, int]
"""Size, mtime in ns, ctime in ns, inode: an unchanged file has the same."""


def mark_of(status: os.stat_result) -> Mark:
    """Give what an unchanged file keeps."""
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino


class Snapshot(NamedTuple):
    """What a folder contained, by path."""

    marks: Mapping[str, Mark]

    def save(self, path: Path) -> None:
        """Write it to a file, whole or not at all. Raises OSError."""
        fields = {"format": _FORMAT, "marks": self.marks}
        temporary = path.with_name(path.name + ".new")
        with temporary.open("w", encoding="ascii") as file:
            file.write(json.dumps(fields, separators=(",", ":")))
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)

    def without(self, paths: Collection[str]) -> "Snapshot":
        """Leave some paths out: what lies there counts as made by the task."""
        return Snapshot({path: mark for path, mark in self.marks.items() if path not in paths})

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read it from a file. Raises OSError, ValueError."""
        fields = json.loads(path.read_text(encoding="ascii"))
        try:
            return cls({path: _as_mark(*mark) for path, mark in fields["marks"].items()})
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{path} is no snapshot: {error}") from error


def _as_mark(size: int, mtime: int, ctime: int, inode: int) -> Mark:
    return size, mtime, ctime, inode


EMPTY = Snapshot({})


def snapshot(root: Path, beneath: str = "") -> Snapshot:
    """Note what a folder contains, before the first step.

    It lies ``beneath`` the root: no link on the way from there is followed. Returns once the clock
    that stamps files has moved on, so that even a change made at once is seen. Raises OSError.
    """
    marks = {
        found.path: mark_of(found.status)
        for found in scan(root, beneath)
        if found.kind != "folder" or found.empty
    }
    newest = max((mark[2] for mark in marks.values()), default=0)
    for _ in range(_MAX_TICKS):
        if time.clock_gettime_ns(_COARSE_CLOCK) > newest:
            break
        time.sleep(0.001)
    return Snapshot(marks)


class Selection(NamedTuple):
    """What to publish, and what is left out: it can be no member of an archive, or be read."""

    members: list[Member]
    skipped: list[Skipped]

    @property
    def bytes(self) -> int:
        """The size of all files, in bytes."""
        return sum(member.size for member in self.members)


def select(
    root: Path,
    before: Snapshot,
    outputs: Outputs,
    *,
    beneath: str = "",
    most: int = MAX_OUTPUTS,
) -> Selection:
    """Find what the run made or changed in a folder, as far as the spec asks for it.

    The folder lies ``beneath`` the root: no link on the way from there is followed. Links in it
    are taken as links, folders only where they are empty; what this user owns and may not read is
    made readable. Raises OSError, `TooManyOutputsError` where there are more than ``most``.
    """
    include, exclude = Globs(outputs.include), Globs(outputs.exclude)
    marks = EMPTY.marks if outputs.unchanged_inputs else before.marks
    members: list[Member] = []
    skipped: list[Skipped] = []
    folder = str(root)
    prefix = beneath + "/" if beneath else ""
    for path, kind, status, empty in scan(root, beneath, mend=True):
        if kind == "folder" and not empty:
            continue
        if path in marks and marks[path] == mark_of(status):
            continue
        wanted = include.match_beneath if kind == UNLISTED else include.match
        if not wanted(path) or exclude.match(path):
            continue
        if len(members) + len(skipped) == most:
            raise TooManyOutputsError(
                f"there are more than {most} outputs: pack them, as with tar, by the last command, "
                "or leave some out by outputs.exclude"
            )
        if kind in _PACKED:
            size = status.st_size if kind == "file" else 0
            members.append(Member(path, folder, prefix + path, kind, size))
        else:
            skipped.append(Skipped(path, kind))
    return Selection(members, skipped)


class Extra(NamedTuple):
    """A file put beside the run's own outputs.

    Only its first ``most`` bytes where it is longer, and then what ``tail`` says of its size.
    """

    path: Path
    most: int | None = None
    tail: Callable[[int], bytes] = lambda _size: b""


@dataclass(frozen=True, slots=True, kw_only=True)
class Uploaded:
    """Published outputs.

    ``changed`` tells what could not be packed as it was when selected, ``unread`` which files and
    folders are not in it because they could not be read. Times are in seconds; both are 0 where
    an earlier try had published everything already.
    """

    output: Output
    changed: tuple[Skipped, ...]
    unread: tuple[Skipped, ...]
    upload_seconds: float = 0.0
    verify_seconds: float = 0.0


def upload_outputs(
    store: Store,
    keys: AttemptKeys,
    selection: Selection,
    extras: Mapping[str, Path | Extra],
    *,
    epoch: int,
    threads: int,
    retry: Retry,
    clock: Clock,
    yields: Callable[[], bool] = lambda: False,
    on_progress: Callable[[int], None] | None = None,
) -> Uploaded:
    """Publish the outputs of an attempt: the archive, verified, then its manifest.

    ``extras`` are files put beside the run's own; where it made one of the same name, the extra
    gets a number (``stdout.1.txt``). ``retry`` repeats single store calls. ``on_progress`` is told
    the bytes of each piece of the archive. While ``yields``, one thread is used. May be repeated
    after a crash anywhere: what was published entirely is not packed again. Raises what ``retry``
    lets through, and `simagent.ports.store.StoreRefusedError`.
    """
    published = retry(lambda: _published(store, keys, epoch))
    if published is not None:
        return published
    members = [*selection.members, *_extras(selection, extras)]
    pack = partial(Archive, members, threads=threads, yields=yields)
    started = clock.now()
    archive, upload_seconds = retry(
        lambda: _upload(store, keys, pack, clock=clock, on_progress=on_progress)
    )
    manifest = _manifest(archive, selection.skipped, epoch)
    data = manifest.dump()
    retry(lambda: store.put(keys.manifest, data))
    return Uploaded(
        output=_output(manifest, data, keys),
        changed=manifest.changed,
        unread=_unread(manifest),
        upload_seconds=upload_seconds,
        verify_seconds=max(0.0, clock.now() - started - upload_seconds),
    )


def _published(store: Store, keys: AttemptKeys, epoch: int) -> Uploaded | None:
    try:
        data = store.get(keys.manifest).data
        manifest = Manifest.load(data)
        archive = store.head(keys.output_zip)
    except (NotFoundError, ManifestError):
        return None
    if manifest.epoch != epoch or archive.size != manifest.archive.size:
        return None
    return Uploaded(
        output=_output(manifest, data, keys), changed=manifest.changed, unread=_unread(manifest)
    )


def _unread(manifest: Manifest) -> tuple[Skipped, ...]:
    folders = [item for item in manifest.skipped if item.why == UNLISTED]
    files = [item for item in manifest.changed if item.why.startswith(UNREADABLE)]
    return (*folders, *files)


def _extras(selection: Selection, extras: Mapping[str, Path | Extra]) -> Iterator[Member]:
    taken = {member.path.split("/", 1)[0] for member in selection.members}
    for wanted, extra in extras.items():
        path, most, tail = extra if isinstance(extra, Extra) else Extra(extra)
        try:
            size = path.stat().st_size
        except FileNotFoundError:
            continue
        name, number = wanted, 0
        while name in taken:
            number += 1
            stem, dot, suffix = wanted.rpartition(".")
            name = f"{stem}.{number}{dot}{suffix}" if dot else f"{wanted}.{number}"
        taken.add(name)
        cut = most is not None and size > most
        kept, more = (most or 0, tail(size)) if cut else (size, b"")
        yield Member(name, str(path.parent), path.name, "file", kept, more)


def _upload(
    store: Store,
    keys: AttemptKeys,
    pack: Callable[[], Archive],
    *,
    clock: Clock,
    on_progress: Callable[[int], None] | None,
) -> tuple[Archive, float]:
    packed: list[Archive] = []

    def body() -> Iterator[bytes]:
        archive = pack()
        packed.append(archive)
        for chunk in archive:
            if on_progress is not None:
                on_progress(len(chunk))
            yield chunk

    started = clock.now()
    stored = store.upload(keys.output_zip, body)
    seconds = clock.now() - started
    archive = packed[-1]
    if stored.size != archive.size or _checksum(store, keys.output_zip) != archive.sha256:
        raise StoreUnavailableError(f"{keys.output_zip} is not in the store as it was sent")
    return archive, seconds


def _checksum(store: Store, key: str) -> str:
    checksum = hashlib.sha256()
    with store.open(key) as stream:
        while chunk := stream.read(_READ):
            checksum.update(chunk)
    return checksum.hexdigest()


def _manifest(archive: Archive, skipped: list[Skipped], epoch: int) -> Manifest:
    files, links, folders = [], [], []
    for entry in archive.entries:
        if entry.is_folder:
            folders.append(entry.path.removesuffix("/"))
        elif entry.is_link:
            links.append(Link(entry.path))
        else:
            mode = entry.mode & 0o7777
            files.append(File(entry.path, entry.size, mode, entry.mtime_ns, entry.sha256))
    return Manifest(
        epoch=epoch,
        files=tuple(files),
        links=tuple(links),
        folders=tuple(folders),
        skipped=tuple(skipped),
        changed=tuple(Skipped(path, why) for path, why in archive.notes),
        archive=ArchiveRef(archive.size, archive.sha256),
    )


def _output(manifest: Manifest, data: bytes, keys: AttemptKeys) -> Output:
    return Output(
        epoch=manifest.epoch,
        archive=keys.output_zip,
        manifest=keys.manifest,
        manifest_sha256=hashlib.sha256(data).hexdigest(),
        files=len(manifest.files),
        bytes=sum(file.size for file in manifest.files),
        archive_bytes=manifest.archive.size,
    )
