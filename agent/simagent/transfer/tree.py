"""Folders whose contents are not trusted: nothing in here goes through a symbolic link.

Everything is opened one component at a time relative to its folder, so neither a link that lies
in the tree nor one that is put there meanwhile leads out of it, and no path is too long.
"""

import os
import stat
from collections.abc import Iterator
from contextlib import suppress
from types import TracebackType
from typing import NamedTuple, Self

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
# Without O_NONBLOCK, opening a FIFO that was put in a file's place would wait for its writer.
READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
CREATE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC

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
    """A folder, by which what lies beneath is opened. Close it, or use it as a context."""

    def __init__(self, root: str | os.PathLike[str]) -> None:
        self.fd = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self._path = ""
        self._fd = os.dup(self.fd)

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


def scan(root: str | os.PathLike[str]) -> Iterator[Found]:
    """Walk all that lies beneath a folder, a folder before its contents, in the order of names.

    Kinds are file, folder, link, fifo, socket, device; a folder that cannot be read is of kind
    unreadable, one on which something else is mounted of kind mount, and neither is entered.
    """
    with Tree(root) as tree:
        device = os.fstat(tree.fd).st_dev
        pending: list[tuple[str, os.stat_result | None]] = [("", None)]
        while pending:
            path, status = pending.pop()
            if status is not None and status.st_dev != device:
                yield Found(path, "mount", status)
                continue
            try:
                with os.scandir(tree.folder(path)) as listing:
                    entries = sorted(listing, key=_name)
            except PermissionError:
                if status is not None:
                    yield Found(path, "unreadable", status)
                continue
            except OSError:
                continue  # removed or replaced since its folder was listed
            if status is not None:
                yield Found(path, "folder", status, not entries)
            folders = []
            for found in _look(path + "/" if path else "", entries):
                if found.kind == "folder":
                    folders.append((found.path, found.status))
                else:
                    yield found
            pending.extend(reversed(folders))


def _name(entry: os.DirEntry[str]) -> str:
    return entry.name


def _look(prefix: str, entries: list[os.DirEntry[str]]) -> Iterator[Found]:
    for entry in entries:
        try:
            status = entry.stat(follow_symlinks=False)
        except FileNotFoundError:
            continue
        yield Found(prefix + entry.name, kind_of(status), status)


def kind_of(status: os.stat_result) -> str:
    """Name what something is: file, folder, link, fifo, socket, device."""
    return _KINDS.get(stat.S_IFMT(status.st_mode), "device")
