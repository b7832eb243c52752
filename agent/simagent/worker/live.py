"""Serves requests about the files of a running attempt: what lies there, what a file says.

Everything is opened beneath the task's folder, one component at a time. What is served in one look,
and how much, is bounded; whatever goes wrong is an answer, and never the attempt's problem.
"""

import heapq
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

import structlog

from simagent.domain.keys import TaskKeys
from simagent.domain.live import (
    MAX_DATA,
    MAX_NAMES,
    MAX_NAMES_BYTES,
    MAX_REQUEST,
    MEMORY,
    Answer,
    Item,
    Place,
    Request,
    last_lines,
    parse_request,
    task_path,
)
from simagent.ports.clock import Clock
from simagent.ports.store import Entry, NotFoundError, Store
from simagent.transfer.tree import READ, Tree, kind_of

_SERVED_A_LOOK = 8
_MOST_KEYS = 400
_STALE = 60.0
_MOST_LINKS = 40
_ITEM_BYTES = 70
"""What an item takes in JSON, besides its name."""

log = structlog.get_logger()


class Syncs(Protocol):
    """Puts what a task has made so far into the store."""

    def answer(self, request: Request, *, waits: bool) -> Answer | None:
        """Begin with it, or tell how far it is; None while there is nothing to tell."""


class LiveFiles:
    """Answers the requests beside one task. For one thread.

    The files lie in the folder ``beneath`` the root: no link on the way from there is followed.
    Times of requests are this agent's: whatever it has seen for a minute was left by a client that
    died, and is removed.
    """

    def __init__(
        self,
        store: Store,
        clock: Clock,
        *,
        task: TaskKeys,
        epoch: int,
        root: Path,
        beneath: str = "",
        syncs: "Syncs | None" = None,
    ) -> None:
        self._store = store
        self._clock = clock
        self._task = task
        self._files = _Files(root, beneath, epoch)
        self._epoch = epoch
        self._syncs = syncs
        self._found: dict[str, _Found] = {}

    @property
    def waiting(self) -> bool:
        """Whether there are requests without an answer, as far as is known."""
        return any(found.open for found in self._found.values())

    def serve(self, *, anew: bool = True) -> None:
        """Answer what is asked: what has come by now, or unless ``anew`` what was put off.

        Raises `simagent.ports.store.StoreError`s.
        """
        now = self._clock.now()
        if anew:
            self._list(now)
        served = 0
        for key, found in list(self._found.items()):
            age = now - found.since
            if age >= _STALE:
                self._store.delete(key)
                del self._found[key]
                continue
            if not found.open or served == _SERVED_A_LOOK:
                continue
            try:
                answer = self._answer(found, age)
            except NotFoundError:
                found.open = False
                continue  # whoever asked has given up
            if answer is not None:
                answer_key = self._task.answer(key.removeprefix(self._task.requests))
                self._store.put(answer_key, answer)
                found.open = False
                self._found[answer_key] = _Found(None, now, open=False)
                served += 1

    def _list(self, now: float) -> None:
        """Find the requests and answers that lie there."""
        entries = {e.key: e for e in self._store.scan(self._task.requests, limit=_MOST_KEYS)}
        known, self._found = self._found, {}
        for key, entry in entries.items():
            name = key.removeprefix(self._task.requests)
            unanswered = not key.endswith(".answer") and self._task.answer(name) not in entries
            found = known.get(key) or _Found(entry, now, open=unanswered)
            found.open = found.open and unanswered
            self._found[key] = found

    def clear(self) -> None:
        """Remove all requests and answers. Raises `simagent.ports.store.StoreError`s."""
        for entry in list(self._store.scan(self._task.requests)):
            self._store.delete(entry.key)

    def _answer(self, found: "_Found", age: float) -> bytes | None:
        """Make the answer to a request; None while it is to be put off."""
        assert found.entry is not None
        if found.entry.size > MAX_REQUEST:
            return self._refuse("unsupported", f"the request has more than {MAX_REQUEST} bytes")
        try:
            if found.request is None:
                found.request = parse_request(self._store.get(found.entry.key).data)
        except ValueError as error:
            return self._refuse("unsupported", f"{error}: is the agent older than you?")
        request = found.request
        waits = age < request.wait
        if request.op == "sync":
            if self._syncs is None or not request.sync:
                return self._refuse("unsupported", "it has no name to be told of by")
            told = self._syncs.answer(request, waits=waits)
            return None if told is None else told.encode()
        try:
            answer, data = self._files.look(request)
        except (FileNotFoundError, NotADirectoryError):
            return None if waits else self._refuse("missing", _missing(request.path))
        except (_RefusedError, PermissionError) as error:
            return self._refuse("refused", f"{request.path!r}: {_what(error)}")
        except Exception as error:
            log.warning("live request failed", task=self._task.id, error=repr(error), exc_info=True)
            return self._refuse("failed", f"{request.path!r}: {_what(error)}")
        if waits and request.since is not None and not data and answer.anew is None:
            return None
        return answer.encode(data)

    def _refuse(self, error: str, message: str) -> bytes:
        fields = {"epoch": self._epoch, "error": error, "message": message}
        return Answer.model_validate(fields).encode()


@dataclass(slots=True)
class _Found:
    """A request, or an answer, since when it is known; ``open`` while it wants an answer."""

    entry: Entry | None
    since: float
    open: bool
    request: Request | None = None


class _RefusedError(Exception):
    """This is not to be shown."""


class _Files:
    """The files of an attempt. Methods raise OSError and `_RefusedError`."""

    def __init__(self, root: Path, beneath: str, epoch: int) -> None:
        self._root = os.path.realpath(root)
        self._beneath = beneath
        self._inside = os.path.join(self._root, beneath, "")
        self._epoch = epoch

    def look(self, request: Request) -> tuple[Answer, bytes]:
        """Do what a request asks for."""
        try:
            path = task_path(request.path)
        except ValueError as error:
            raise _RefusedError(str(error)) from None
        with Tree(self._root, self._beneath) as tree:
            path = self._resolve(tree, path)
            if request.op == "list":
                return self._list(tree, path), b""
            return self._read(tree, path, request)

    def _resolve(self, tree: Tree, path: str) -> str:
        """Follow the symbolic links of a path as long as they stay in the task's folder."""
        at: list[str] = []
        todo = path.split("/")[::-1]
        links = 0
        while todo:
            name = todo.pop()
            if name in ("", "."):
                continue
            if name == "..":
                if not at:
                    raise _RefusedError("a symbolic link leads out of the task's folder")
                at.pop()
                continue
            folder = tree.folder("/".join(at))
            if not stat.S_ISLNK(os.stat(name, dir_fd=folder, follow_symlinks=False).st_mode):
                at.append(name)
                continue
            links += 1
            if links > _MOST_LINKS:
                raise _RefusedError("too many symbolic links")
            target = os.readlink(name, dir_fd=folder)
            if target.startswith("/"):
                if not target.startswith(self._inside):
                    raise _RefusedError("a symbolic link leads out of the task's folder")
                at, target = [], target.removeprefix(self._inside)
            todo += target.split("/")[::-1]
        return "/".join(at)

    def _list(self, tree: Tree, path: str) -> Answer:
        parent, _, name = path.rpartition("/")
        if path:
            status = os.stat(name, dir_fd=tree.folder(parent), follow_symlinks=False)
            if not stat.S_ISDIR(status.st_mode):
                return Answer(epoch=self._epoch, items=(_item(name, status),))
        folder = tree.folder(path)
        names = _Counted(folder)
        items: list[Item] = []
        room = MAX_NAMES_BYTES
        for found in heapq.nsmallest(MAX_NAMES, names):
            room -= 6 * len(found) + _ITEM_BYTES  # each character of a name is \uXXXX at worst
            if room < 0:
                break
            try:
                status = os.stat(found, dir_fd=folder, follow_symlinks=False)
            except FileNotFoundError:
                names.count -= 1
            else:
                items.append(_item(found, status))
        return Answer(epoch=self._epoch, items=tuple(items), more=names.count - len(items))

    def _read(self, tree: Tree, path: str, request: Request) -> tuple[Answer, bytes]:
        if not path:
            raise _RefusedError("it is a folder")
        with _opened(tree, path) as file:
            status = os.fstat(file)
            if not stat.S_ISREG(status.st_mode):
                raise _RefusedError(f"it is a {kind_of(status)}")
            identity = f"{self._epoch}.{status.st_dev:x}.{status.st_ino:x}"
            anew, cut = None, False
            if request.since is None:
                start, cut = _start_of_last(file, status.st_size, request.lines)
            else:
                anew = _changed(file, status.st_size, identity, request.since)
                start = 0 if anew else request.since.offset
            data = _bytes(file, start, MAX_DATA)
            end = start + len(data)
            before = _bytes(file, max(0, end - MEMORY), min(MEMORY, end))
        place = Place(file=identity, offset=end, before=before.hex())
        return Answer(epoch=self._epoch, place=place, cut=cut, anew=anew), data


class _Counted:
    """The names in a folder, counted while they are gone through."""

    def __init__(self, folder: int) -> None:
        self._folder = folder
        self.count = 0

    def __iter__(self) -> Iterator[str]:
        with os.scandir(self._folder) as entries:
            for entry in entries:
                self.count += 1
                yield entry.name


@contextmanager
def _opened(tree: Tree, path: str) -> Iterator[int]:
    folder, name = tree.at(path)
    kind = kind_of(os.stat(name, dir_fd=folder, follow_symlinks=False))
    if kind != "file":  # opening a device may do something already
        raise _RefusedError(f"it is a {kind}")
    file = os.open(name, READ, dir_fd=folder)
    try:
        yield file
    finally:
        os.close(file)


def _start_of_last(file: int, size: int, lines: int) -> tuple[int, bool]:
    """Tell where the last lines begin, and whether that is later than it should be."""
    window = max(0, size - MAX_DATA)
    at = last_lines(_bytes(file, window, MAX_DATA), lines)
    return (window, window > 0) if at < 0 else (window + at, False)


def _changed(
    file: int, size: int, identity: str, since: Place
) -> Literal["truncated", "replaced"] | None:
    """Tell what happened to a file that was read up to a place; None if nothing did."""
    if since.file != identity:
        return "replaced"
    if size < since.offset:
        return "truncated"
    length = len(since.before) // 2
    seen = _bytes(file, since.offset - length, length) if length <= since.offset else b""
    return None if seen.hex() == since.before else "replaced"


def _bytes(file: int, start: int, length: int) -> bytes:
    """Read as many bytes as there are, up to a length."""
    pieces = []
    while length > 0 and (piece := os.pread(file, length, start)):
        pieces.append(piece)
        start += len(piece)
        length -= len(piece)
    return b"".join(pieces)


def _item(name: str, status: os.stat_result) -> Item:
    return Item(name=name, kind=kind_of(status), size=status.st_size, mtime=status.st_mtime)


def _missing(path: str) -> str:
    return f"there is no {path!r}" if path else "the task's folder is not there yet"


def _what(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error) or type(error).__name__
