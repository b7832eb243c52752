"""Folders whose contents are not trusted: nothing in here goes through a symbolic link.

Everything is opened one component at a time relative to its folder, so neither a link that lies
in the tree nor one that is put there meanwhile leads out of it, and no path is too long.
"""

import os
import shutil
import stat
from collections.abc import Iterator
from contextlib import suppress
from types import TracebackType
from typing import NamedTuple, Self

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
# Without O_NONBLOCK, opening a FIFO that was put in a file's place would wait for its writer.
READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
CREATE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC

UNLISTED = "unreadable"
"""The kind of a folder that cannot be listed."""

_KINDS = {
    stat.S_IFREG: "file",
    stat.S_IFDIR: "folder",
    stat.S_IFLNK: "link",
    stat.S_IFIFO: "fifo",
    stat.S_IFSOCK: "socket",
    stat.S_IFCHR: "device",
    stat.S_IFBLK: "device",
}


class Tree:
    """A folder, by which what lies beneath is opened. Close it, or use it as a context.

    How ``root`` is reached is trusted; from there on to the folder ``beneath`` nothing is. Raises
    OSError, as `folder` does.
    """

    def __init__(self, root: str | os.PathLike[str], beneath: str = "") -> None:
        self.fd = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self._path = ""
        try:
            self._fd = os.dup(self.fd)
        except OSError:
            os.close(self.fd)
            raise
        if beneath:
            try:
                folder = os.dup(self.folder(beneath))
            except BaseException:
                self.close()
                raise
            os.close(self.fd)
            self._path, self.fd = "", folder

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the descriptors."""
        os.close(self._fd)
        os.close(self.fd)

    def folder(self, path: str, *, make: bool = False) -> int:
        """Open a folder, "" for the root; the descriptor is valid until the next call.

        ``make`` creates what is missing. Raises OSError, NotADirectoryError (or ELOOP) also where
        a symbolic link is in the way.
        """
        if path == self._path:
            return self._fd
        start, rest = self.fd, path
        if self._path and path.startswith(self._path + "/"):
            start, rest = self._fd, path[len(self._path) + 1 :]
        current = os.dup(start)
        try:
            for name in rest.split("/") if rest else ():
                _check_name(name, path)
                deeper = _step(current, name, make=make)
                os.close(current)
                current = deeper
        except BaseException:
            os.close(current)
            raise
        os.close(self._fd)
        self._path, self._fd = path, current
        return current

    def at(self, path: str, *, make: bool = False) -> tuple[int, str]:
        """Give the descriptor of a path's folder, and its name in there. Raises as `folder`."""
        parent, _, name = path.rpartition("/")
        _check_name(name, path)
        return self.folder(parent, make=make), name

    def create(self, path: str, mode: int) -> int:
        """Create a file for writing, in place of a file or link of that name.

        Raises OSError, IsADirectoryError where a folder has that name.
        """
        folder, name = self.at(path, make=True)
        try:
            return os.open(name, CREATE, mode, dir_fd=folder)
        except FileExistsError:
            os.unlink(name, dir_fd=folder)
            return os.open(name, CREATE, mode, dir_fd=folder)

    def link(self, path: str, target: str) -> None:
        """Create a symbolic link, in place of a file or link of that name. Raises OSError."""
        folder, name = self.at(path, make=True)
        try:
            os.symlink(target, name, dir_fd=folder)
        except FileExistsError:
            os.unlink(name, dir_fd=folder)
            os.symlink(target, name, dir_fd=folder)


def _check_name(name: str, path: str) -> None:
    if name in ("", ".", "..") or "/" in name:
        raise NotADirectoryError(f"{path!r} is no plain path")


def _step(folder: int, name: str, *, make: bool) -> int:
    try:
        return os.open(name, _FOLDER, dir_fd=folder)
    except FileNotFoundError:
        if not make:
            raise
    with suppress(FileExistsError):  # made by somebody else just now
        os.mkdir(name, 0o755, dir_fd=folder)
    return os.open(name, _FOLDER, dir_fd=folder)


class Found(NamedTuple):
    """Something in a tree. ``status`` is its own, not that of what a link points at."""

    path: str
    kind: str
    status: os.stat_result
    empty: bool = False


def ensure_folder(root: str | os.PathLike[str], beneath: str) -> None:
    """Make a folder where there is none. Raises OSError, also where a link is in the way."""
    with Tree(root) as tree:
        tree.folder(beneath, make=True)


def fresh_folder(root: str | os.PathLike[str], beneath: str) -> None:
    """Make a folder that is empty, in place of whatever has its name.

    Raises OSError, also where a link is in the way to it.
    """
    with Tree(root) as tree:
        folder, name = tree.at(beneath, make=True)
        with suppress(FileNotFoundError):
            if stat.S_ISDIR(os.stat(name, dir_fd=folder, follow_symlinks=False).st_mode):
                shutil.rmtree(name, dir_fd=folder)
            else:
                os.unlink(name, dir_fd=folder)
        os.mkdir(name, 0o755, dir_fd=folder)


def scan(root: str | os.PathLike[str], beneath: str = "", *, mend: bool = False) -> Iterator[Found]:
    """Walk all that lies in a folder, a folder before its contents, in the order of names.

    The folder is the one ``beneath`` the root, and paths are relative to it. Kinds are file,
    folder, link, fifo, socket, device; a folder that cannot be read is of kind unreadable, one on
    which something else is mounted of kind mount, and neither is entered. With ``mend``, what
    this user owns and may not read is made readable. Raises OSError where the folder itself
    cannot be read, or is none.
    """
    with Tree(root, beneath) as tree:
        device = os.fstat(tree.fd).st_dev
        pending: list[tuple[str, os.stat_result | None]] = [("", None)]
        while pending:
            path, status = pending.pop()
            if status is not None and status.st_dev != device:
                yield Found(path, "mount", status)
                continue
            try:
                contents = _look(tree.folder(path), path + "/" if path else "", mend=mend)
            except OSError as error:
                if status is None:
                    raise
                if not isinstance(error, FileNotFoundError | NotADirectoryError):
                    yield Found(path, UNLISTED, status)
                continue  # else it was removed or replaced since its folder was listed
            if status is not None:
                yield Found(path, "folder", status, not contents)
            yield from (found for found in contents if found.kind != "folder")
            folders = [(found.path, found.status) for found in contents if found.kind == "folder"]
            pending.extend(reversed(folders))


def _look(folder: int, prefix: str, *, mend: bool) -> list[Found]:
    with os.scandir(folder) as listing:
        entries = sorted(listing, key=_name)
    found = []
    for entry in entries:
        try:
            status = entry.stat(follow_symlinks=False)
            if mend and _make_readable(folder, entry.name, status):
                status = os.stat(entry.name, dir_fd=folder, follow_symlinks=False)
        except FileNotFoundError:
            continue
        found.append(Found(prefix + entry.name, kind_of(status), status))
    return found


def _name(entry: os.DirEntry[str]) -> str:
    return entry.name


def _make_readable(folder: int, name: str, status: os.stat_result) -> bool:
    """Let the owner read a file or folder, if that is this user; tell whether it had to be."""
    needed = {"file": 0o400, "folder": 0o700}.get(kind_of(status), 0)
    reads_all = os.geteuid() == 0
    if status.st_mode & needed == needed or status.st_uid != os.geteuid() or reads_all:
        return False
    # By its descriptor: a link that is in its place by now is not followed.
    descriptor = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=folder)
    try:
        now = os.fstat(descriptor)
        if not os.path.samestat(now, status):
            return False
        os.chmod(f"/proc/self/fd/{descriptor}", stat.S_IMODE(now.st_mode) | needed)
    except OSError:
        return False  # it stays unreadable, which whoever reads it reports
    finally:
        os.close(descriptor)
    return True


def kind_of(status: os.stat_result) -> str:
    """Name what something is: file, folder, link, fifo, socket, device."""
    return _KINDS.get(stat.S_IFMT(status.st_mode), "device")
