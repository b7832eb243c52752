"""The embedded store: objects are files in a local folder.

An object is never changed in place: a new version is a new file renamed over the old one. What
makes the conditional writes atomic is a lock per key, held from the comparison to the rename.

The version tag is made of the file's modification time and size. The time is set, in whole
microseconds, to later than that of the version replaced: no two versions of an object share it,
however coarse the kernel's own timestamps are, and it is told without reading the object.
"""

import errno
import fcntl
import io
import os
import stat
import time
import uuid
import zlib
from collections.abc import Generator, Iterable, Iterator
from contextlib import closing, contextmanager, suppress
from itertools import islice
from pathlib import Path
from typing import BinaryIO

from simagent.ports.store import (
    Blob,
    Body,
    Entry,
    NotFoundError,
    PreconditionError,
    StoreRefusedError,
    StoreUnavailableError,
)
from simagent.stores.filesystem import (
    FilePart,
    exclusive,
    is_known_local,
    make_folder,
    mapped,
    reading,
    remove_abandoned,
    self_test,
    sync_folder,
    write_all,
)

_INTERNAL = ".simagent"
_LOCKS = 64
_READ_FLAGS = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_WRITE_FLAGS = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
_READ_BUFFER = 1 << 18
_TICK = 1000  # ns: some file systems keep 100 ns
_FOLDER_RACES = 100


class DirectoryStore:
    """Objects as files beneath ``root``, shared by the processes of one machine.

    Cheap to make. Raises `StoreRefusedError` on a file system without working locks. A store that
    has been there, or has to be by ``existing``, and is not (unmounted, say) is unavailable, not
    empty: nobody may conclude that the tasks in it are gone.
    """

    def __init__(self, root: Path, *, existing: bool = False) -> None:
        self._root = root.absolute()
        self._internal = self._root / _INTERNAL
        self._existing = existing
        self._swept = False
        if not is_known_local(self._root):
            self.self_test()

    def self_test(self) -> None:
        """Try the locks with a second process. Raises `StoreRefusedError` saying what to do."""
        self_test(self._internal)

    def get(self, key: str) -> Blob:
        """Read a small object whole. Raises `NotFoundError`."""
        with self._file(key) as file, reading(self._path(key)):
            return Blob(file.readall(), _etag(os.fstat(file.fileno())))

    def put(
        self, key: str, data: bytes, *, if_match: str | None = None, if_absent: bool = False
    ) -> str:
        """Write an object whole and return its etag. Raises `PreconditionError`."""
        return self._write(key, (data,), if_match=if_match, if_absent=if_absent).etag

    def upload(self, key: str, body: Body) -> Entry:
        """Write a large object from a stream; all of it or nothing appears."""
        with closing(_chunks(body)) as chunks:
            return self._write(key, chunks)

    def head(self, key: str) -> Entry:
        """Tell an object's size and etag. Raises `NotFoundError`."""
        path = self._path(key)
        with self._missing_only_if_there(), reading(path):
            return _entry(key, _regular(os.stat(path, follow_symlinks=False), path))

    @contextmanager
    def open(self, key: str, *, start: int = 0, length: int | None = None) -> Iterator[BinaryIO]:
        """Read an object, or the byte range from ``start``, as a stream. Raises `NotFoundError`."""
        with self._file(key) as file:
            with reading(self._path(key)):
                rest = max(0, os.fstat(file.fileno()).st_size - start)
                file.seek(start)
            part = FilePart(file, rest if length is None else min(rest, length), self._path(key))
            with io.BufferedReader(part, _READ_BUFFER) as stream:
                yield stream

    def delete(self, key: str) -> None:
        """Remove an object, and the folders that are empty without it."""
        path = self._path(key)
        with mapped("delete", path):
            if _status(path) is None:
                self._check_there()
                return
            with exclusive(self._lock(key)), suppress(FileNotFoundError):
                path.unlink()
                self._prune(path.parent)

    def scan(self, prefix: str, *, after: str = "", limit: int | None = None) -> Iterator[Entry]:
        """Yield the objects with this prefix and a key greater than ``after``, in key order."""
        folder, _, stem = prefix.rpartition("/")
        if folder:
            self._path(folder)
        yield from islice(self._walk(f"{folder}/" if folder else "", stem, after), limit)

    def _walk(self, base: str, stem: str, after: str) -> Iterator[Entry]:
        for name in self._names(base):
            key = base + name
            if not name.startswith(stem):
                continue
            if name.endswith("/"):
                if key > after or after.startswith(key):
                    yield from self._walk(key, "", after)
            elif key > after:
                try:
                    entry = self.head(key)
                except NotFoundError:
                    continue
                yield entry

    def _names(self, base: str) -> list[str]:
        """List a folder in the order of its keys: a subfolder sorts by its name and a slash."""
        names = []
        try:
            with reading(self._root / base), os.scandir(self._root / base) as entries:
                for entry in entries:
                    if not _is_text(entry.name) or (not base and entry.name == _INTERNAL):
                        continue
                    if entry.is_dir(follow_symlinks=False):
                        names.append(entry.name + "/")
                    elif entry.is_file(follow_symlinks=False):
                        names.append(entry.name)
        except NotFoundError:
            self._check_there()
            return []
        return sorted(names)

    def _check_there(self) -> None:
        """Raise `StoreUnavailableError` if the whole store is gone."""
        if self._internal.is_dir():
            self._existing = True
        elif self._existing or (self._root.exists() and not self._root.is_dir()):
            raise StoreUnavailableError(f"the store in {self._root} is gone: is it mounted?")

    @contextmanager
    def _missing_only_if_there(self) -> Iterator[None]:
        try:
            yield
        except NotFoundError:
            self._check_there()
            raise
        if not self._existing:
            self._check_there()

    def _path(self, key: str) -> Path:
        parts = key.split("/")
        if parts[0] == _INTERNAL or "\0" in key or any(part in ("", ".", "..") for part in parts):
            raise StoreRefusedError(f"{key!r} cannot be the key of an object")
        if not _is_text(key):
            raise StoreRefusedError(f"{key!r} cannot be the key of an object: it is no valid text")
        return self._root / key

    def _lock(self, key: str) -> Path:
        return self._internal / "locks" / f"{zlib.crc32(key.encode()) % _LOCKS:02d}"

    def _file(self, key: str) -> io.FileIO:
        path = self._path(key)
        with self._missing_only_if_there(), reading(path):
            descriptor = os.open(path, _READ_FLAGS)
            try:
                _regular(os.fstat(descriptor), path)
                return io.FileIO(descriptor, "rb")
            except NotFoundError:
                os.close(descriptor)
                raise

    def _write(
        self,
        key: str,
        chunks: Iterable[bytes],
        *,
        if_match: str | None = None,
        if_absent: bool = False,
    ) -> Entry:
        path = self._path(key)
        with self._temporary() as (descriptor, temporary):
            for chunk in chunks:
                with mapped("write", path):
                    write_all(descriptor, chunk)
            with mapped("write", path):
                _stamp(descriptor, time.time_ns() // _TICK * _TICK)
                with exclusive(self._lock(key)):
                    current = _status(path)
                    _check(key, current, if_match=if_match, if_absent=if_absent)
                    status = os.fstat(descriptor)
                    if current is not None and status.st_mtime_ns <= current.st_mtime_ns:
                        status = _stamp(descriptor, current.st_mtime_ns // _TICK * _TICK + _TICK)
                    self._place(temporary, path)
        return _entry(key, status)

    @contextmanager
    def _temporary(self) -> Iterator[tuple[int, Path]]:
        folder = self._internal / "tmp"
        self._check_there()
        with mapped("write in", folder):
            make_folder(folder)
            self._existing = True
            if not self._swept:
                self._swept = True
                remove_abandoned(folder)
            path = folder / uuid.uuid4().hex
            descriptor = os.open(path, _WRITE_FLAGS, 0o666)
        try:
            with mapped("lock", path):
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            yield descriptor, path
        finally:
            os.close(descriptor)
            with suppress(OSError):
                path.unlink()

    def _place(self, temporary: Path, path: Path) -> None:
        """Rename, again where a delete removed the folder as empty meanwhile."""
        for _ in range(_FOLDER_RACES):
            try:
                make_folder(path.parent)
                folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
                try:
                    os.replace(temporary, path.name, dst_dir_fd=folder)
                    os.fsync(folder)
                    return
                finally:
                    os.close(folder)
            except FileNotFoundError:
                continue
            except (NotADirectoryError, FileExistsError, IsADirectoryError):
                self._check_clash(path)
        raise StoreUnavailableError(f"cannot write {path}: its folder keeps vanishing")

    def _check_clash(self, path: Path) -> None:
        for folder in path.parents[: len(path.parts) - len(self._root.parts)]:
            if folder.exists() and not folder.is_dir():
                raise StoreRefusedError(f"cannot write {path}: {folder} is an object, not a folder")
        # A crash between a delete and its clean-up can have left an empty folder of this name.
        with suppress(FileNotFoundError, NotADirectoryError):
            try:
                path.rmdir()
            except OSError as error:
                if error.errno == errno.ENOTEMPTY:
                    raise StoreRefusedError(
                        f"cannot write {path}: there are objects beneath this name"
                    ) from None
                raise

    def _prune(self, folder: Path) -> None:
        while folder != self._root:
            try:
                folder.rmdir()
            except OSError:
                break
            folder = folder.parent
        sync_folder(folder)


def _chunks(body: Body) -> Generator[bytes, None, None]:
    """Yield what a body does; closed, it closes the body, which may hold files and processes."""
    yield from body()


def _etag(status: os.stat_result) -> str:
    return f"{status.st_mtime_ns:x}-{status.st_size:x}"


def _entry(key: str, status: os.stat_result) -> Entry:
    return Entry(key, status.st_size, _etag(status))


def _regular(status: os.stat_result, path: Path) -> os.stat_result:
    if not stat.S_ISREG(status.st_mode):
        raise NotFoundError(f"{path} is no regular file")
    return status


def _status(path: Path) -> os.stat_result | None:
    try:
        return _regular(os.stat(path, follow_symlinks=False), path)
    except (FileNotFoundError, NotADirectoryError, NotFoundError):
        return None


def _check(
    key: str, current: os.stat_result | None, *, if_match: str | None, if_absent: bool
) -> None:
    if if_absent and current is not None:
        raise PreconditionError(f"{key} exists")
    if if_match is not None and (current is None or _etag(current) != if_match):
        raise PreconditionError(f"{key} is {'missing' if current is None else 'another version'}")


def _is_text(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def _stamp(descriptor: int, modified: int) -> os.stat_result:
    """Set the time of modification (ns) that tells versions apart, and make the file durable."""
    os.utime(descriptor, ns=(modified, modified))
    os.fsync(descriptor)
    status = os.fstat(descriptor)
    if status.st_mtime_ns != modified:
        raise StoreRefusedError(
            "the store is on a file system that keeps times too coarsely to tell versions apart: "
            "use a folder on a local disk"
        )
    return status
