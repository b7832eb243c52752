"""Downloads: by several ranges at a time, in bounded memory, gone on with after an interruption."""

import fcntl
import hashlib
import io
import json
import os
import threading
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO, Literal

import pytest

from fakes.clock import FakeClock
from fakes.store import MemoryStore
from simagent.domain.keys import TaskKeys
from simagent.domain.spec import Outputs
from simagent.domain.state import Output
from simagent.ports.store import Entry, NotFoundError, StoreUnavailableError
from simagent.transfer.download import Place, download, once
from simagent.transfer.errors import OutputChangedError
from simagent.transfer.outputs import EMPTY, select
from simagent.transfer.publishing import upload_outputs
from simagent.transfer.ranges import read_range

MEGABYTE = 1 << 20
KEYS = TaskKeys("default", "T1").attempt(1)
LARGE = 70 * MEGABYTE
Layout = Literal["archive", "files"]


class Watched(MemoryStore):
    """Counts the bytes that are given out. Beyond ``limit`` nothing of an object can be had."""

    def __init__(self) -> None:
        super().__init__()
        self.given = 0
        self.limit: int | None = None
        self._count = threading.Lock()

    @contextmanager
    def open(self, key: str, *, start: int = 0, length: int | None = None) -> Iterator[BinaryIO]:
        if self.limit and (length or 0) > MEGABYTE and start + (length or 0) > self.limit:
            raise StoreUnavailableError("the line is dead")
        with super().open(key, start=start, length=length) as stream:
            size = stream.seek(0, io.SEEK_END)
            stream.seek(0)
            with self._count:
                self.given += size
            yield stream


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "made").mkdir()
    return tmp_path / "made"


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "target"


def publish(store: MemoryStore, root: Path, layout: Layout) -> Output:
    return upload_outputs(
        store, KEYS, select(root, EMPTY, Outputs()), {},
        epoch=1, threads=2, retry=once, clock=FakeClock(), layout=layout,
    ).output  # fmt: skip


both = pytest.mark.parametrize("layout", ["archive", "files"])


@both
def test_several_ranges_are_fetched_at_a_time(root: Path, target: Path, layout: Layout) -> None:
    store = Watched()
    (root / "big").write_bytes(os.urandom(20 * MEGABYTE))
    output = publish(store, root, layout)
    whole = download(store, output, ["**"], Place(target / "first"))
    assert whole == [target / "first" / "big"]
    met = 0
    opened = store.open

    @contextmanager
    def two(key: str, *, start: int = 0, length: int | None = None) -> Iterator[BinaryIO]:
        nonlocal met
        if (length or 0) > 2 * MEGABYTE and start < 16 * MEGABYTE:
            barrier.wait(30)
            met += 1
        with opened(key, start=start, length=length) as stream:
            yield stream

    barrier = threading.Barrier(2)
    store.open = two  # type: ignore[method-assign]
    download(store, output, ["**"], Place(target / "second"))
    assert met == 2
    assert (target / "second" / "big").read_bytes() == (root / "big").read_bytes()


def test_memory_is_bounded_however_large_the_object() -> None:
    class Zeros(MemoryStore):
        @contextmanager
        def open(
            self, key: str, *, start: int = 0, length: int | None = None
        ) -> Iterator[BinaryIO]:
            yield io.BytesIO(bytes(length or 0))

    tracemalloc.start()
    try:
        size = sum(map(len, read_range(Zeros(), "big", 0, 1000 * MEGABYTE, once)))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert size == 1000 * MEGABYTE
    assert peak < 200 * MEGABYTE


@both
def test_an_interrupted_download_is_gone_on_with(root: Path, target: Path, layout: Layout) -> None:
    store = Watched()
    (root / "a.csv").write_text("a")
    (root / "big").write_bytes(os.urandom(LARGE))
    output = publish(store, root, layout)
    store.limit = 45 * MEGABYTE
    with pytest.raises(StoreUnavailableError):
        download(store, output, ["**"], Place(target))
    assert not (target / "big").exists()
    store.given, store.limit = 0, None
    told = {"came": 0, "kept": 0}

    def add(what: str) -> Callable[[int], None]:
        def count(bytes_: int) -> None:
            told[what] += bytes_

        return count

    paths = download(
        store, output, ["**"], Place(target), on_progress=add("came"), on_kept=add("kept")
    )
    assert sorted(path.name for path in paths) == ["a.csv", "big"]
    assert (target / "big").read_bytes() == (root / "big").read_bytes()
    assert sorted(path.name for path in target.iterdir()) == ["a.csv", "big"]
    assert store.given < LARGE - 39 * MEGABYTE
    assert told["kept"] > 39 * MEGABYTE
    assert told["came"] + told["kept"] == LARGE + 1


@both
def test_a_gap_before_what_came_is_fetched(root: Path, target: Path, layout: Layout) -> None:
    """Pieces are written in the order in which they come, and one may never have."""

    class Slow(Watched):
        """Its fourth piece does not come, and fails after a later one came."""

        dead = False

        @contextmanager
        def open(
            self, key: str, *, start: int = 0, length: int | None = None
        ) -> Iterator[BinaryIO]:
            if self.dead and (length or 0) > MEGABYTE and 22 * MEGABYTE < start < 32 * MEGABYTE:
                later.wait(30)
                raise StoreUnavailableError("the line is dead")
            with super().open(key, start=start, length=length) as stream:
                yield stream
            if start > 32 * MEGABYTE:
                later.set()

    later = threading.Event()
    store = Slow()
    (root / "big").write_bytes(os.urandom(LARGE))
    output = publish(store, root, layout)
    store.dead = True
    with pytest.raises(StoreUnavailableError):
        download(store, output, ["**"], Place(target))
    store.dead, kept = False, list[int]()
    download(store, output, ["**"], Place(target), on_kept=kept.append)
    assert sum(kept) == 24 * MEGABYTE
    assert (target / "big").read_bytes() == (root / "big").read_bytes()


def test_what_was_deflated_is_gone_on_with(root: Path, target: Path) -> None:
    store = Watched()
    lines = b"".join(b"%d,%f\n" % (number, number**0.5) for number in range(2_000_000))
    (root / "big.csv").write_bytes(lines)
    output = publish(store, root, "archive")
    packed = store.head(output.archive).size
    assert packed < len(lines) / 2
    store.limit = packed // 2
    with pytest.raises(StoreUnavailableError):
        download(store, output, ["**"], Place(target))
    store.given, store.limit = 0, None
    download(store, output, ["**"], Place(target))
    assert store.given < 0.8 * packed
    assert (target / "big.csv").read_bytes() == lines


@pytest.mark.parametrize("how", ["untold", "of other pieces"])
def test_a_large_member_whose_pieces_are_not_told_comes_whole(
    root: Path, target: Path, how: str
) -> None:
    store = Watched()
    (root / "big").write_bytes(os.urandom(20 * MEGABYTE))
    output = publish(store, root, "archive")
    manifest = json.loads(store.get(output.manifest).data)
    cuts = manifest["files"][0].pop("cuts")
    if how == "of other pieces":
        manifest["files"][0]["cuts"] = [cuts[0], cuts[-1]]
    data = json.dumps(manifest).encode()
    store.put(output.manifest, data)
    told = {"manifest_sha256": hashlib.sha256(data).hexdigest()}
    output = output.model_copy(update=told)
    download(store, output, ["**"], Place(target))
    assert (target / "big").read_bytes() == (root / "big").read_bytes()


@both
def test_what_is_there_already_is_not_fetched_again(
    root: Path, target: Path, layout: Layout
) -> None:
    store = Watched()
    for name in ("same", "touched", "edited", "shorter"):
        (root / name).write_bytes(os.urandom(MEGABYTE))
    output = publish(store, root, layout)
    download(store, output, ["**"], Place(target))
    mtime = (root / "touched").stat().st_mtime_ns
    os.utime(target / "touched")
    with (target / "edited").open("r+b") as file:
        file.write(b"something else")
    os.truncate(target / "shorter", 5)
    store.given = 0
    paths = download(store, output, ["**"], Place(target))
    assert len(paths) == 4
    for name in ("same", "touched", "edited", "shorter"):
        assert (target / name).read_bytes() == (root / name).read_bytes()
    assert (target / "touched").stat().st_mtime_ns == mtime
    assert store.given < 2.5 * MEGABYTE


@both
def test_a_part_that_is_wrong_is_begun_anew(root: Path, target: Path, layout: Layout) -> None:
    store = Watched()
    (root / "big").write_bytes(os.urandom(LARGE))
    output = publish(store, root, layout)
    store.limit = 45 * MEGABYTE
    with pytest.raises(StoreUnavailableError):
        download(store, output, ["**"], Place(target))
    (part,) = target.iterdir()
    with part.open("r+b") as file:
        file.seek(5 * MEGABYTE)
        file.write(b"rotten")
    store.limit = None
    download(store, output, ["**"], Place(target))
    assert (target / "big").read_bytes() == (root / "big").read_bytes()


@pytest.mark.parametrize("how", ["hard link", "symbolic link", "folder"])
def test_what_others_put_in_the_place_of_a_part_is_not_written_to(
    root: Path, target: Path, tmp_path: Path, how: str
) -> None:
    """The folder may be one in which others can write, and they may know the name."""
    store = Watched()
    (root / "big").write_bytes(os.urandom(9 * MEGABYTE))
    output = publish(store, root, "files")
    store.limit = MEGABYTE
    with pytest.raises(StoreUnavailableError):
        download(store, output, ["**"], Place(target))
    (part,) = target.iterdir()
    part.unlink()
    mine = tmp_path / "mine"
    mine.write_bytes(b"precious")
    if how == "hard link":
        os.link(mine, part)
    elif how == "symbolic link":
        part.symlink_to(mine)
    else:
        part.mkdir()
    store.limit = None
    with suppress(OSError):
        download(store, output, ["**"], Place(target))
    assert mine.read_bytes() == b"precious"
    if how == "hard link":
        assert (target / "big").read_bytes() == (root / "big").read_bytes()


@both
def test_a_large_file_that_is_wrong_in_the_store_leaves_nothing(
    root: Path, target: Path, layout: Layout
) -> None:
    store = Watched()
    (root / "big").write_bytes(os.urandom(LARGE))
    output = publish(store, root, layout)
    key = output.archive or f"{output.folder}big"
    data = bytearray(store.get(key).data)
    data[9 * MEGABYTE] ^= 1
    store.put(key, bytes(data))
    with pytest.raises(OutputChangedError, match="big"):
        download(store, output, ["**"], Place(target))
    assert list(target.iterdir()) == []


@both
def test_what_is_damaged_on_its_way_is_fetched_again(
    root: Path, target: Path, layout: Layout
) -> None:
    class Bending(MemoryStore):
        bend = False

        @contextmanager
        def open(
            self, key: str, *, start: int = 0, length: int | None = None
        ) -> Iterator[BinaryIO]:
            with super().open(key, start=start, length=length) as stream:
                data = bytearray(stream.read())
            if self.bend and len(data) > MEGABYTE // 2:
                self.bend = False
                data[len(data) // 2] ^= 1
            yield io.BytesIO(data)

    store = Bending()
    (root / "a").write_bytes(os.urandom(MEGABYTE))
    (root / "big").write_bytes(os.urandom(9 * MEGABYTE))
    output = publish(store, root, layout)
    store.bend = True
    download(store, output, ["**"], Place(target))
    assert not store.bend
    assert sorted(path.name for path in target.iterdir()) == ["a", "big"]
    for name in ("a", "big"):
        assert (target / name).read_bytes() == (root / name).read_bytes()


def test_two_downloads_of_a_large_file_do_not_mix(root: Path, target: Path) -> None:
    store = Watched()
    (root / "big").write_bytes(os.urandom(9 * MEGABYTE))
    output = publish(store, root, "files")
    started, go_on = threading.Event(), threading.Event()

    def wait(_count: int) -> None:
        started.set()
        go_on.wait(30)

    first = threading.Thread(
        target=download, args=(store, output, ["**"], Place(target)), kwargs={"on_progress": wait}
    )
    first.start()
    assert started.wait(30)
    with pytest.raises(BlockingIOError, match="another download"):
        download(store, output, ["**"], Place(target))
    go_on.set()
    first.join(30)
    assert (target / "big").read_bytes() == (root / "big").read_bytes()


def test_a_file_that_another_download_has_just_finished_is_not_written_to(
    root: Path, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Watched()
    data = os.urandom(20 * MEGABYTE)
    (root / "big").write_bytes(data)
    output = publish(store, root, "files")
    lock = fcntl.flock
    finished: list[BinaryIO] = []

    def late(file: int, how: int) -> None:
        if not finished:  # the other one renames its part, and lets go of it
            (part,) = target.glob(".simagent-*.part")
            part.write_bytes(data)
            part.rename(target / "big")
            finished.append((target / "big").open("rb"))
        lock(file, how)

    monkeypatch.setattr(fcntl, "flock", late)
    download(store, output, ["**"], Place(target))
    with finished[0] as other:
        assert other.read() == data
    assert (target / "big").read_bytes() == data
    assert os.listdir(target) == ["big"]


def test_an_object_that_was_cut_or_removed_is_told(root: Path, target: Path) -> None:
    store = Watched()
    (root / "a").write_text("contents")
    output = publish(store, root, "files")
    store.put(f"{output.folder}a", b"cont")
    with pytest.raises(OutputChangedError, match="4 bytes, and should have 8"):
        download(store, output, ["**"], Place(target))
    store.delete(f"{output.folder}a")
    with pytest.raises(NotFoundError):
        download(store, output, ["**"], Place(target))


def test_what_is_checked_is_no_part_of_what_an_object_is() -> None:
    assert Entry("k", 1, "e", checked=True) == Entry("k", 1, "e")
