"""Checkpoints: files of a running task, taken as one set that belongs together, and laid back.

A set is copied on this machine first. It is one set only if none of its files has changed between
a look before that and one after it; how long packing and the store then take matters to nobody.
"""

import hashlib
import os
import stat
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from simagent.domain.state import Checkpoint
from simagent.ports.retry import Retry
from simagent.ports.store import NotFoundError, Store, StoreUnavailableError
from simagent.transfer.archive import Archive
from simagent.transfer.batch import Member, open_file
from simagent.transfer.errors import InputRejectedError, TooManyOutputsError
from simagent.transfer.globs import Globs
from simagent.transfer.outputs import MAX_OUTPUTS, Mark, Snapshot, mark_of
from simagent.transfer.removal import remove_tree
from simagent.transfer.tree import Tree, scan
from simagent.transfer.unpack import Limits, plain_path, plain_target, unpack, write_all
from simagent.transfer.zipread import ZipError, read_directory

_READ = 1 << 20
_COPY = 16 << 20
_COARSE_CLOCK = 5  # CLOCK_REALTIME_COARSE of linux/time.h: what the kernel stamps files with


class UnsettledError(Exception):
    """Files of a set were written while they were read: they are no set."""


class CheckpointError(Exception):
    """A checkpoint cannot be laid back; the message says why."""


@dataclass(frozen=True, slots=True)
class FileSet:
    """The files of a checkpoint, and by what each shows that it was not changed."""

    members: tuple[Member, ...]
    marks: Mapping[str, Mark]

    @property
    def bytes(self) -> int:
        """The size of all of them."""
        return sum(member.size for member in self.members)

    def quiet_since(self, moment: int) -> bool:
        """Tell whether none was touched since a moment of `file_clock`."""
        return all(ctime < moment for _, _, ctime, _ in self.marks.values())


@dataclass(frozen=True, slots=True)
class Stored:
    """A set in the store, as one archive. Sizes are in bytes, ``files`` counts links, too."""

    sha256: str
    archive_bytes: int
    files: int
    bytes: int


def file_clock() -> int:
    """Give the time by which the kernel stamps files, in nanoseconds."""
    return time.clock_gettime_ns(_COARSE_CLOCK)


def find(root: Path, before: Snapshot, paths: Iterable[str], *, beneath: str = "") -> FileSet:
    """Find the files that belong to a checkpoint: those that match and that the task has made.

    As with outputs, inputs that are as they were ``before`` are not among them; nor are links that
    lead out of the folder, which is the one ``beneath`` the root. Raises OSError.
    """
    globs = Globs(paths)
    members: list[Member] = []
    marks: dict[str, Mark] = {}
    prefix = beneath + "/" if beneath else ""
    for path, kind, status, empty in scan(root, beneath, mend=True):
        if kind not in ("file", "link") and not (kind == "folder" and empty):
            continue
        mark = mark_of(status)
        if before.marks.get(path) == mark or not globs.match(path):
            continue
        if kind == "link" and not _stays(root / beneath / path, path):
            continue
        if len(members) == MAX_OUTPUTS:
            raise TooManyOutputsError(f"more than {MAX_OUTPUTS} files match checkpoint.paths")
        size = status.st_size if kind == "file" else 0
        members.append(Member(path, str(root), prefix + path, kind, size))
        marks[path] = mark
    return FileSet(tuple(members), marks)


def _stays(link: Path, path: str) -> bool:
    try:
        plain_target(path, os.readlink(link))
    except (OSError, ZipError):
        return False
    return True


def copy(files: FileSet, target: Path, check: Callable[[], None]) -> FileSet:
    """Copy a set into a folder of its own. Whether it changed meanwhile, another `find` tells.

    ``check`` is called for each piece and may raise. Raises OSError, and `UnsettledError` where a
    file is not what was found.
    """
    copies = []
    with Tree(target) as made:
        for member in files.members:
            check()
            try:
                with Tree(member.root) as tree:
                    _copy(tree, made, member, check)
            except (FileNotFoundError, NotADirectoryError) as error:
                raise UnsettledError(f"{member.path!r} vanished or was replaced") from error
            copies.append(member._replace(root=str(target), source=member.path))
    return FileSet(tuple(copies), files.marks)


def _copy(tree: Tree, made: Tree, member: Member, check: Callable[[], None]) -> None:
    if member.kind == "folder":
        mode = os.fstat(tree.folder(member.source)).st_mode
        os.fchmod(made.folder(member.path, make=True), stat.S_IMODE(mode) | 0o700)
        return
    if member.kind == "link":
        folder, name = tree.at(member.source)
        made.link(member.path, os.readlink(name, dir_fd=folder))
        return
    file, status = open_file(tree, member.source)
    try:
        out = made.create(member.path, 0o600)
        try:
            left = member.size
            while left and (count := os.sendfile(out, file, None, min(left, _COPY))):
                left -= count
                check()
            os.fchmod(out, stat.S_IMODE(status.st_mode) & 0o777 | 0o600)
            os.utime(out, ns=(status.st_mtime_ns, status.st_mtime_ns))
        finally:
            os.close(out)
    finally:
        os.close(file)
    if left or status.st_size != member.size:
        raise UnsettledError(f"{member.path!r} changed while it was copied")


def drop(copies: Path) -> None:
    """Remove a copied set, and free its room also where somebody reads it. Raises nothing."""
    with suppress(OSError):
        for found in scan(copies):
            if found.kind == "file":
                with suppress(OSError):
                    _empty(copies, found.path)
    with suppress(OSError):
        remove_tree(copies)


def _empty(root: Path, path: str) -> None:
    with Tree(root) as tree:
        folder, name = tree.at(path)
        file = os.open(name, os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=folder)
        try:
            os.ftruncate(file, 0)
        finally:
            os.close(file)


def store_set(
    store: Store,
    key: str,
    files: FileSet,
    *,
    retry: Retry,
    check: Callable[[], None],
    threads: int = 1,
) -> Stored:
    """Pack a copied set and upload it; read it back, unless the engine held it against checksums.

    ``check`` is as in `copy`.

    One thread gives way to what else runs, several do not.
    Raises what ``retry`` lets through, and `UnsettledError` where a copy is not what was copied.
    """
    packed: list[Archive] = []

    def body() -> Iterator[bytes]:
        packed.append(Archive(files.members, threads=threads, yields=lambda: threads == 1))
        for chunk in packed[-1]:
            check()
            yield chunk
        for path, why in packed[-1].notes:
            raise UnsettledError(f"{path!r} {why}")

    def upload() -> Archive:
        check()
        entry = store.upload(key, body)
        archive = packed[-1]
        whole = entry.size == archive.size
        if not whole or not (entry.checked or _checksum(store, key, check) == archive.sha256):
            raise StoreUnavailableError(f"{key} is not in the store as it was sent")
        return archive

    archive = retry(upload)
    count = sum(member.kind != "folder" for member in files.members)
    size = sum(entry.size for entry in archive.entries)  # a link's is that of its target's name
    return Stored(archive.sha256, archive.size, count, size)


def _checksum(store: Store, key: str, check: Callable[[], None]) -> str:
    checksum = hashlib.sha256()
    with store.open(key) as stream:
        while data := stream.read(_READ):
            check()
            checksum.update(data)
    return checksum.hexdigest()


def fetch(
    store: Store, checkpoint: Checkpoint, target: Path, *, retry: Retry, check: Callable[[], None]
) -> None:
    """Download a set, and verify it. ``check`` as in `copy`.

    Raises `CheckpointError` where it is gone or damaged, what ``retry`` lets through, and OSError.
    """
    key, size = checkpoint.archive, checkpoint.archive_bytes

    def go_on() -> None:
        have = os.fstat(out.fileno()).st_size
        with store.open(key, start=have, length=size - have) as stream:
            while have < size:
                data = stream.read(min(_READ, size - have))
                if not data:
                    raise StoreUnavailableError(f"{key} ended early")
                check()
                write_all(out.fileno(), data)
                have += len(data)

    with target.open("wb+") as out:
        try:
            there = retry(lambda: store.head(key)).size
            if there == size:
                retry(go_on)
        except NotFoundError as error:
            raise CheckpointError(f"{key} is not there any more") from error
        out.seek(0)
        if there != size or hashlib.file_digest(out, "sha256").hexdigest() != checkpoint.sha256:
            raise CheckpointError(f"{key} is damaged")


def lay(archive: Path, checkpoint: Checkpoint, root: Path) -> frozenset[str]:
    """Unpack a verified set over what lies in a folder; give the paths that came with it.

    Raises `CheckpointError` where something there is in the way, and OSError.
    """
    limits = Limits(max_bytes=checkpoint.bytes, max_files=2 * MAX_OUTPUTS, max_ratio=1 << 40)
    try:
        unpack(archive, root, limits=limits)
        with archive.open("rb") as file:
            directory = read_directory(file, max_files=limits.max_files)
    except (InputRejectedError, ZipError) as error:
        raise CheckpointError(f"{checkpoint.archive}: {error}") from error
    return frozenset(plain_path(entry) for entry in directory.entries)
