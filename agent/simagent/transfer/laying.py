"""Published files laid into a folder: each appears whole and verified, or not at all."""

import fcntl
import hashlib
import os
import secrets
import stat
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, contextmanager, suppress
from typing import NamedTuple

from simagent.ports.retry import Retry
from simagent.transfer.ahead import Job, in_order
from simagent.transfer.batch import open_file
from simagent.transfer.errors import OutputChangedError
from simagent.transfer.manifest import PIECE, File
from simagent.transfer.pieces import Pieces
from simagent.transfer.ranges import THREADS
from simagent.transfer.tree import Tree
from simagent.transfer.unpack import write_all
from simagent.transfer.zipread import ZipError

_READ = 1 << 20
_PART = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


class Told(NamedTuple):
    """Who hears of bytes that came, and of bytes that were there already."""

    progress: Callable[[int], None]
    kept: Callable[[int], None]


class Laying:
    """Lays files into a tree. ``version`` tells one task's outputs from another's.

    Methods raise OSError, and `OutputChangedError` where contents are not what was published.
    """

    def __init__(self, tree: Tree, version: str, told: Told) -> None:
        self._tree = tree
        self._version = version
        self._told = told

    def is_there(self, path: str, known: File) -> bool:
        """Tell whether a file has been laid already.

        Its time of modification is set once its contents have proven right, so that and its size
        are enough; where only the size agrees, its contents are read.
        """
        try:
            file, status = open_file(self._tree, path)
        except OSError:
            return False
        try:
            if status.st_size != known.size:
                return False
            if status.st_mtime_ns != known.mtime:
                if _checksum(file).hexdigest() != known.sha256:
                    return False
                with suppress(OSError):  # somebody else's file, of the right contents
                    _finish(file, known)
        finally:
            os.close(file)
        self._told.kept(known.size)
        return True

    def write(self, path: str, known: File, pieces: Iterable[bytes | bytearray]) -> None:
        """Make a file of its contents."""
        name = f".simagent-{secrets.token_hex(8)}.part"
        file = self._tree.create(_beside(path, name), 0o600)
        try:
            try:
                checksum = hashlib.sha256()
                for piece in pieces:
                    checksum.update(piece)
                    write_all(file, piece)
                    self._told.progress(len(piece))
                _check(known, checksum.hexdigest())
                _finish(file, known)
            finally:
                os.close(file)
            self._rename(path, name)
        except BaseException:
            self._remove(_beside(path, name))
            raise

    def fetch(self, path: str, known: File, pieces: Pieces, retry: Retry) -> None:
        """Make a large file of its pieces; go on where an earlier try was interrupted."""
        with self._part(path) as (part, name):
            for last in (False, True):
                had = os.fstat(part).st_size
                try:
                    checksum = self._fill(part, known, pieces, retry)
                    _check(known, checksum.hexdigest())
                    _finish(part, known)
                    self._rename(path, name)
                    return
                except (ZipError, OutputChangedError):
                    if last or not had:
                        self._remove(_beside(path, name))
                        raise
                    os.ftruncate(part, 0)  # what was there already may be what is wrong

    def _fill(self, part: int, known: File, pieces: Pieces, retry: Retry) -> "hashlib._Hash":
        """Fetch what is missing of a file; give the checksum of all of it."""
        at = _begun(part, known.size)
        checksum = _checksum(part)
        self._told.kept(at)

        def written(number: int) -> Job[bytes | bytearray]:
            piece = pieces(number)

            def write() -> bytes | bytearray:
                data = piece.call()
                _write_at(part, data, number * PIECE)
                return data

            return Job(write, piece.size)

        jobs = map(written, range(at // PIECE, -(-known.size // PIECE)))
        # Written on the threads that fetch: one alone cannot write as fast as they all fetch.
        with closing(in_order(jobs, threads=THREADS, retry=retry)) as done:
            for data in done:
                checksum.update(data)
                self._told.progress(len(data))
        return checksum

    @contextmanager
    def _part(self, path: str) -> Iterator[tuple[int, str]]:
        """Give a file that fills up with what is fetched, and its name.

        It stays until it is renamed or removed, so that an interrupted try can be gone on with.
        """
        marks = hashlib.sha256(f"{self._version} {path}".encode(errors="surrogateescape"))
        name = f".simagent-{marks.hexdigest()[:16]}.part"
        folder, _ = self._tree.at(_beside(path, name), make=True)
        while True:
            file = _open_part(folder, name)
            try:
                if _held(file, path, folder, name):
                    yield file, name
                    return
            finally:
                os.close(file)

    def _rename(self, path: str, name: str) -> None:
        folder, last = self._tree.at(path)
        os.rename(name, last, src_dir_fd=folder, dst_dir_fd=folder)

    def _remove(self, path: str) -> None:
        folder, name = self._tree.at(path)
        with suppress(FileNotFoundError):
            os.unlink(name, dir_fd=folder)


def _held(file: int, path: str, folder: int, name: str) -> bool:
    """Lock a part; tell whether it still has its name: else it was finished by another just now."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        message = f"another download fetches {path!r} into this folder: wait for it"
        raise BlockingIOError(error.errno, message) from None
    try:
        named = os.stat(name, dir_fd=folder, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return os.path.samestat(os.fstat(file), named)


def _open_part(folder: int, name: str) -> int:
    """Open a part, a new one where what has its name may be somebody else's, too."""
    file = os.open(name, _PART, 0o600, dir_fd=folder)
    status = os.fstat(file)
    owners = {os.geteuid(), os.fstat(folder).st_uid}  # where one user owns a whole file system
    if stat.S_ISREG(status.st_mode) and status.st_nlink == 1 and status.st_uid in owners:
        return file
    os.close(file)
    os.unlink(name, dir_fd=folder)
    return os.open(name, _PART | os.O_EXCL, 0o600, dir_fd=folder)


def _begun(part: int, size: int) -> int:
    """Cut a part to the whole pieces that it has from its start on, and tell how long it is.

    Pieces are written as they come. What has not come before later ones did is a hole; where the
    file system does not tell of holes, the checksum will.
    """
    had = os.fstat(part).st_size
    whole = min(os.lseek(part, 0, os.SEEK_HOLE) if had else 0, size) // PIECE * PIECE
    os.ftruncate(part, whole)
    return whole


def _write_at(file: int, data: bytes | bytearray, at: int) -> None:
    view = memoryview(data)
    while view:
        count = os.pwrite(file, view, at)
        view, at = view[count:], at + count


def _beside(path: str, name: str) -> str:
    parent = path.rpartition("/")[0]
    return f"{parent}/{name}" if parent else name


def _checksum(file: int) -> "hashlib._Hash":
    checksum = hashlib.sha256()
    at = 0
    while data := os.pread(file, _READ, at):
        checksum.update(data)
        at += len(data)
    return checksum


def _check(known: File, sha256: str) -> None:
    if sha256 != known.sha256:
        raise OutputChangedError(f"{known.path!r} is not what the task published")


def _finish(file: int, known: File) -> None:
    # Never set-uid: it would be this user's.
    os.fchmod(file, known.mode & 0o777 | 0o600)
    os.utime(file, ns=(known.mtime, known.mtime))
