"""Laying a task's inputs into its folder, on the machine that runs it."""

import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from urllib.parse import unquote, urlsplit

from simagent.domain.keys import ArrayKeys, TaskKeys
from simagent.domain.spec import Input
from simagent.domain.state import Output, Timing
from simagent.ports.clock import Clock, Waitable
from simagent.ports.retry import InterruptedRetryError, Retry, retrying
from simagent.ports.store import NotFoundError, Store
from simagent.transfer.download import Place, download
from simagent.transfer.errors import InputMissingError, InputRejectedError, OutputChangedError
from simagent.transfer.http import HttpLimits, download_url
from simagent.transfer.inputs import folder_members, packed, place, wants_unpacking
from simagent.transfer.ranges import read_range
from simagent.transfer.tree import Tree
from simagent.transfer.unpack import Limits, unpack, write_all

_CHUNK = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Sources:
    """Where inputs may come from, and how long and how much is worth trying.

    ``resolve_task`` finds what a task, named by its id, has published; None if nothing.
    ``allow_file`` lets ``file://`` read this machine's files, with the agent's rights. ``wake``
    interrupts. ``patience`` is seconds without progress, for servers other than the store.
    """

    store: Store
    keys: TaskKeys | ArrayKeys
    """Where inputs lie that were uploaded."""
    resolve_task: Callable[[str], Output | None]
    clock: Clock
    wake: Waitable
    limits: Limits = field(default_factory=Limits)
    allow_file: bool = False
    patience: float = 300.0
    on_progress: Callable[[int], None] = lambda _count: None


def fetch_inputs(
    inputs: Sequence[Input], sources: Sources, *, root: Path, scratch: Path
) -> dict[str, Timing]:
    """Lay inputs into ``root``, in order, other tasks' outputs first so that own inputs win.

    ``scratch`` is a folder for downloads in progress. Nothing is written outside of either. May
    be repeated after a crash. Gives the timeline: what each took. Raises
    `simagent.transfer.errors.InputError`s, `simagent.ports.retry.InterruptedRetryError`,
    `simagent.ports.store.StoreRefusedError`, and OSError where this machine's disk fails.
    """
    scratch.mkdir(parents=True, exist_ok=True)
    fetching = _Fetching(sources, root, scratch)
    numbered = list(enumerate(inputs))
    numbered.sort(key=lambda pair: pair[1].scheme != "task")
    for number, item in numbered:
        try:
            fetching.lay(number, item)
        except OSError as error:
            if isinstance(error, NotADirectoryError | IsADirectoryError):
                raise InputRejectedError(
                    f"inputs[{number}].destination: {item.destination} is in the way of what is "
                    f"there, or goes through a link: {error.strerror or error}"
                ) from error
            raise
    return fetching.timings


def _nobody(_count: int) -> None:
    """Hear nothing: what was there already was not moved."""


class _Fetching:
    def __init__(self, sources: Sources, root: Path, scratch: Path) -> None:
        self._sources = sources
        self._root = root
        self._scratch = scratch
        self._moved = 0
        self.timings: dict[str, Timing] = {}
        self._retry: Retry = partial(retrying, clock=sources.clock, wake=sources.wake)

    def lay(self, number: int, item: Input) -> None:
        """Fetch an input and lay it where it belongs."""
        ways = {
            "task": self._task,
            "upload": self._upload,
            "file": self._local,
            "http": self._http,
            "https": self._http,
        }
        way = ways.get(item.scheme)
        if way is None:
            raise InputMissingError(
                f"inputs[{number}].source: {item.scheme or 'a local path'} cannot be fetched by "
                "an agent: use file, http, https or task"
            )
        way(number, item)

    @contextmanager
    def _timed(self, number: int, what: str) -> Iterator[None]:
        clock, moved = self._sources.clock, self._moved
        wall, begin = clock.wall(), clock.now()
        try:
            yield
        finally:
            self.timings[f"input.{number}.{what}"] = Timing(
                seconds=clock.now() - begin, bytes=self._moved - moved, started=wall
            )

    def _progress(self, count: int) -> None:
        self._moved += count
        self._sources.on_progress(count)
        if self._sources.clock.wait(0, self._sources.wake):
            raise InterruptedRetryError("laying the inputs was interrupted")

    def _task(self, number: int, item: Input) -> None:
        task, _, pattern = item.source.removeprefix("task://").partition("/")
        sources = self._sources
        try:
            output = self._retry(lambda: sources.resolve_task(task))
            if output is None:
                raise InputMissingError(f"inputs[{number}].source: task {task} has no outputs")
            with self._timed(number, "download"):
                paths = download(
                    sources.store, output, [pattern or "**"], Place(self._root, item.destination),
                    retry=self._retry, on_progress=self._progress, on_kept=_nobody,
                )  # fmt: skip
        except NotFoundError as error:
            raise InputMissingError(f"inputs[{number}].source: {error} is not there") from error
        except OutputChangedError as error:
            raise InputRejectedError(f"inputs[{number}].source: {error}") from error
        if not paths:
            raise InputMissingError(f"inputs[{number}].source: {item.source} matches nothing")

    def _upload(self, number: int, item: Input) -> None:
        name = item.source.removeprefix("upload://")
        if not name.isascii() or not name.isdigit():
            raise InputRejectedError(f"inputs[{number}].source: {item.source} is not a number")
        key = self._sources.keys.input(int(name))
        file = self._part(number)
        before = b""
        while True:
            self._download(number, key, file)
            try:
                self._unpack(number, item, file)
            except InputRejectedError:
                # Nobody checks the bytes of a range on their way: what comes twice is there so.
                with file.open("rb") as came:
                    now = hashlib.file_digest(came, "sha256").digest()
                if now == before:
                    raise
                before = now
            else:
                return

    def _download(self, number: int, key: str, file: Path) -> None:
        try:
            with self._timed(number, "download"):
                size = self._retry(lambda: self._sources.store.head(key)).size
                if size > self._sources.limits.max_bytes:
                    raise InputRejectedError(
                        f"inputs[{number}].source: it has {size} bytes, more than the "
                        f"{self._sources.limits.max_bytes} allowed"
                    )
                pieces = read_range(self._sources.store, key, 0, size, self._retry)
                with file.open("wb") as out, closing(pieces):
                    for piece in pieces:
                        write_all(out.fileno(), piece)
                        self._progress(len(piece))
        except NotFoundError as error:
            raise InputMissingError(f"inputs[{number}].source: {key} is not there") from error
        except OutputChangedError as error:
            raise InputRejectedError(f"inputs[{number}].source: {error}") from error

    def _http(self, number: int, item: Input) -> None:
        file = self._part(number)
        name = unquote(urlsplit(item.source).path).rpartition("/")[2]
        with self._timed(number, "download"):
            download_url(
                item.source,
                file,
                clock=self._sources.clock,
                wake=self._sources.wake,
                limits=HttpLimits(self._sources.limits.max_bytes, self._sources.patience),
                on_progress=self._progress,
            )
        self._lay_file(number, item, file, name)
        file.unlink()

    def _local(self, number: int, item: Input) -> None:
        path = Path(unquote(urlsplit(item.source).path))
        if not self._sources.allow_file:
            raise InputRejectedError(
                f"inputs[{number}].source: this agent reads no files of its own machine for "
                "tasks: upload the file instead"
            )
        if path.is_dir():
            file = self._part(number)
            try:
                with self._timed(number, "copy"), file.open("wb") as out:
                    for chunk in packed(folder_members(path), 1)():
                        out.write(chunk)
            except ValueError as error:
                raise InputRejectedError(f"inputs[{number}].source: {error}") from error
            self._unpack(number, item, file)
        elif path.is_file():
            self._lay_file(number, item, path, path.name)
        else:
            raise InputMissingError(f"inputs[{number}].source: {path} does not exist")

    def _part(self, number: int) -> Path:
        return self._scratch / f"input-{number}.part"

    def _lay_file(self, number: int, item: Input, file: Path, name: str) -> None:
        if wants_unpacking(item, name):
            with self._timed(number, "unpack"):
                self._unpack_into(number, item, file)
            return
        folder, name = place(item.destination, name)
        if name in ("", ".", "..") or "/" in name or "\0" in name:
            raise InputRejectedError(
                f"inputs[{number}].source: {item.source} names no file: set a destination"
            )
        with self._timed(number, "copy"), file.open("rb") as source, Tree(self._root) as tree:
            out = tree.create(Place(self._root, folder).beneath(name), 0o644)
            try:
                while data := source.read(_CHUNK):
                    write_all(out, data)
                    self._progress(len(data))
                os.fchmod(out, os.fstat(source.fileno()).st_mode & 0o777 | 0o644)
            finally:
                os.close(out)

    def _unpack(self, number: int, item: Input, file: Path) -> None:
        with self._timed(number, "unpack"):
            self._unpack_into(number, item, file)
        file.unlink()

    def _unpack_into(self, number: int, item: Input, file: Path) -> None:
        try:
            unpack(
                file,
                self._root,
                destination=item.destination,
                limits=self._sources.limits,
                on_progress=self._progress,
            )
        except InputRejectedError as error:
            raise InputRejectedError(f"inputs[{number}].source: {error}") from error
