"""The published outputs of an ended task, looked at without fetching them."""

from collections.abc import Iterator

from simagent.client.errors import ClientError
from simagent.domain.keys import TaskKeys
from simagent.domain.live import MAX_DATA, Item, last_lines
from simagent.domain.state import Output, State, Status
from simagent.ports.retry import Retry
from simagent.ports.store import Store
from simagent.transfer.download import read_manifest, read_output
from simagent.transfer.errors import OutputChangedError


def output_of(task: TaskKeys, state: State, attempt: int | None) -> Output:
    """Give what a task published; of an attempt, what there was when it was given back.

    Raises `ClientError`.
    """
    if attempt is not None and (state.output is None or state.output.epoch != attempt):
        left = [found.partial for found in state.attempts if found.epoch == attempt]
        if left and left[0] is not None:
            return left[0]
        raise ClientError(f"task {task.id}: attempt {attempt} has left no outputs")
    if state.output is not None:
        return state.output
    if state.status is Status.DELETED:
        raise ClientError(f"task {task.id} was deleted, with its outputs")
    hint = "they come with its end" if not state.terminal else "it published none"
    raise ClientError(f"task {task.id} is {state.status} and has no outputs: {hint}")


class Published:
    """What a task published. Methods raise `ClientError` and StoreErrors."""

    def __init__(self, store: Store, output: Output, retry: Retry, task: TaskKeys) -> None:
        self._store = store
        self._output = output
        self._retry = retry
        self._task = task
        try:
            self._manifest = read_manifest(store, output, retry)
        except OutputChangedError as error:
            raise ClientError(f"task {task.id}: {error}") from None

    def list(self, path: str) -> list[Item]:
        """List a folder, or one file, in the order of names."""
        found: dict[str, Item] = {}
        files = [(f.path, "file", f.size, f.mtime / 1e9) for f in self._manifest.files]
        links = [(link.path, "link", 0, 0.0) for link in self._manifest.links]
        folders = [(f.rstrip("/"), "folder", 0, 0.0) for f in self._manifest.folders]
        for full, kind, size, mtime in (*folders, *files, *links):
            item = Item(name=full.rpartition("/")[2], kind=kind, size=size, mtime=mtime)
            if full == path and kind != "folder":
                return [item]
            inner = _beneath(full, path)
            name, deeper, _ = inner.partition("/")
            if deeper:
                item = Item(name=name, kind="folder", size=0, mtime=mtime)
            if name and (name not in found or found[name].mtime < mtime):
                found[name] = item
        if path and not found and (path, "folder", 0, 0.0) not in folders:
            raise self._missing(path)
        return [found[name] for name in sorted(found)]

    def size(self, path: str) -> int:
        """Tell the size of a file, in bytes."""
        for file in self._manifest.files:
            if file.path == path:
                return file.size
        raise self._missing(path)

    def read(self, path: str, start: int = 0) -> Iterator[bytes]:
        """Yield the bytes of a file from an offset on."""
        try:
            yield from read_output(
                self._store, self._output, self._manifest, path, self._retry, start=start
            )
        except FileNotFoundError:
            raise self._missing(path) from None
        except OutputChangedError as error:
            raise ClientError(f"task {self._task.id}: {error}") from None

    def tail(self, path: str, lines: int) -> tuple[bytes, bool]:
        """Give the last lines of a file, and whether they had to be cut."""
        size = self.size(path)
        window = b"".join(self.read(path, max(0, size - MAX_DATA)))
        start = last_lines(window, lines)
        return window[max(0, start) :], start < 0 and size > len(window)

    def _missing(self, path: str) -> ClientError:
        return ClientError(
            f"there is no {path!r} among the published files of task {self._task.id} "
            f"(`simagent ls {self._task.id}` lists them)"
        )


def _beneath(full: str, path: str) -> str:
    """Give a path relative to a folder; "" where it does not lie in it."""
    if not path:
        return full
    return full.removeprefix(path + "/") if full.startswith(path + "/") else ""
