"""The outputs of an attempt go into the store, verified, and then their manifest."""

import hashlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Literal, NamedTuple

from simagent.domain.keys import AttemptKeys
from simagent.domain.state import Output
from simagent.ports.clock import Clock
from simagent.ports.retry import Retry
from simagent.ports.store import Entry, NotFoundError, Store, StoreUnavailableError
from simagent.transfer.archive import Archive
from simagent.transfer.batch import UNREADABLE, Member
from simagent.transfer.manifest import (
    ArchiveRef,
    File,
    Link,
    Manifest,
    ManifestError,
    Skipped,
)
from simagent.transfer.outputs import Selection
from simagent.transfer.singles import Record, Singles, listed, not_there, publish_files
from simagent.transfer.tree import UNLISTED

_READ = 1 << 20


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
    layout: Literal["archive", "files"] = "archive",
    record: Path | None = None,
    yields: Callable[[], bool] = lambda: False,
    on_progress: Callable[[int], None] | None = None,
) -> Uploaded:
    """Publish the outputs of an attempt: one archive or single files, verified; then the manifest.

    ``extras`` are files put beside the run's own; where it made one of the same name, the extra
    gets a number (``stdout.1.txt``). ``retry`` repeats single store calls. ``on_progress`` is told
    the bytes of each piece of the archive, or of each file. While ``yields``, one thread is used.
    May be repeated after a crash anywhere: what was published entirely is not sent again, and of
    single files none that ``record``, a file on this machine, tells of. Raises what ``retry``
    lets through, and `simagent.ports.store.StoreRefusedError`.
    """
    published = retry(lambda: _published(store, keys, epoch))
    if published is not None:
        return published
    members = [*selection.members, *_extras(selection, extras)]
    started = clock.now()
    if layout == "files":
        sent = publish_files(
            store, keys, members, Record(record), retry=retry, on_progress=on_progress
        )
        manifest, upload_seconds = _of_files(sent, selection.skipped, epoch), clock.now() - started
    else:
        pack = partial(Archive, members, threads=threads, yields=yields)
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
        if manifest.archive is None:
            whole = not not_there(manifest.files, listed(store, keys))
        else:
            whole = store.head(keys.output_zip).size == manifest.archive.size
    except (NotFoundError, ManifestError):
        return None
    if manifest.epoch != epoch or not whole:
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
    if stored.size != archive.size or not _is_there(store, stored, archive):
        raise StoreUnavailableError(f"{keys.output_zip} is not in the store as it was sent")
    return archive, seconds


def _is_there(store: Store, stored: Entry, archive: Archive) -> bool:
    """Tell whether what was uploaded is what is stored.

    It is read again, unless the store compared each part with its checksum as it came.
    """
    try:
        if stored.checked:
            found = store.head(stored.key)
            return (found.size, found.etag) == (stored.size, stored.etag)
        return _checksum(store, stored.key) == archive.sha256
    except NotFoundError:
        return False


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
            file = File(entry.path, entry.size, mode, entry.mtime_ns, entry.sha256)
            files.append(replace(file, cuts=entry.cuts) if entry.cuts else file)
    return Manifest(
        epoch=epoch,
        files=tuple(files),
        links=tuple(links),
        folders=tuple(folders),
        skipped=tuple(skipped),
        changed=tuple(Skipped(path, why) for path, why in archive.notes),
        archive=ArchiveRef(archive.size, archive.sha256),
    )


def _of_files(sent: Singles, skipped: list[Skipped], epoch: int) -> Manifest:
    return Manifest(
        epoch=epoch,
        files=sent.files,
        links=sent.links,
        folders=sent.folders,
        skipped=tuple(skipped),
        changed=sent.notes,
        archive=None,
    )


def _output(manifest: Manifest, data: bytes, keys: AttemptKeys) -> Output:
    archive = manifest.archive
    return Output(
        epoch=manifest.epoch,
        layout="archive" if archive else "files",
        archive=keys.output_zip if archive else "",
        folder="" if archive else keys.output_folder,
        manifest=keys.manifest,
        manifest_sha256=hashlib.sha256(data).hexdigest(),
        files=len(manifest.files),
        bytes=sum(file.size for file in manifest.files),
        archive_bytes=archive.size if archive else 0,
    )
