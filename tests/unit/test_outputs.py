"""What is an output, and that it is published once, whole, and found again."""

import hashlib
import io
import json
import os
import socket
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import BinaryIO, TypeVar

import pytest

from fakes.clock import FakeClock
from fakes.faults import CUT, LOST_ANSWER, UNAVAILABLE, Fault, Faults, FaultyStore
from fakes.store import MemoryStore
from simagent.domain.keys import TaskKeys
from simagent.domain.spec import Outputs
from simagent.ports.retry import retrying
from simagent.ports.store import Body, Entry, Store, StoreUnavailableError
from simagent.transfer.download import Place, download, once, read_manifest, read_output
from simagent.transfer.errors import OutputChangedError
from simagent.transfer.manifest import Manifest
from simagent.transfer.outputs import (
    EMPTY,
    Snapshot,
    select,
    snapshot,
)
from simagent.transfer.publishing import Uploaded, upload_outputs

T = TypeVar("T")
KEYS = TaskKeys("default", "T1").attempt(3)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "artifacts"
    folder.mkdir()
    return folder


def paths(root: Path, before: Snapshot = EMPTY, **outputs: object) -> list[str]:
    selection = select(root, before, Outputs.model_validate(outputs))
    return sorted(member.path for member in selection.members)


def test_only_what_the_run_made_or_changed(root: Path) -> None:
    for name in ("kept", "edited", "touched", "replaced", "removed", "moved"):
        (root / name).write_text("before")
    before = snapshot(root)
    (root / "new").write_text("")
    (root / "edited").write_text("after!")  # same size, same moment
    status = (root / "touched").stat()
    with (root / "touched").open("r+") as file:
        file.write("B")
    os.utime(root / "touched", ns=(status.st_atime_ns, status.st_mtime_ns))  # mtime put back
    (root / "other").write_text("before")
    (root / "other").rename(root / "replaced")
    (root / "removed").unlink()
    (root / "moved").rename(root / "moved-to")
    assert paths(root, before) == ["edited", "moved-to", "new", "replaced", "touched"]
    everything = ["edited", "kept", "moved-to", "new", "replaced", "touched"]
    assert paths(root, before, unchanged_inputs=True) == everything


def test_an_edit_right_after_the_snapshot_is_seen(root: Path) -> None:
    for _ in range(20):
        (root / "x").write_text("a")
        before = snapshot(root)
        with (root / "x").open("r+") as file:
            file.write("b")
        assert paths(root, before) == ["x"]


def test_links_folders_and_specials(root: Path) -> None:
    (root / "old-empty").mkdir()
    (root / "old-link").symlink_to("x")
    before = snapshot(root)
    (root / "new-empty").mkdir()
    (root / "link").symlink_to("/etc")
    (root / "folder").mkdir()
    (root / "folder" / "two\nlines").write_text("")
    os.mkfifo(root / "fifo")
    with socket.socket(socket.AF_UNIX) as unix:
        unix.bind(os.path.relpath(root / "socket"))
    selection = select(root, before, Outputs())
    found = sorted((member.path, member.kind) for member in selection.members)
    assert found == [("folder/two\nlines", "file"), ("link", "link"), ("new-empty", "folder")]
    assert sorted((s.path, s.why) for s in selection.skipped) == [
        ("fifo", "fifo"),
        ("socket", "socket"),
    ]


def test_include_and_exclude(root: Path) -> None:
    for name in ("a.csv", "run/b.csv", "run/big.dat", "tmp/c.csv"):
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_text("")
    assert paths(root, include=["**/*.csv"], exclude=["tmp"]) == ["a.csv", "run/b.csv"]


def test_a_snapshot_survives_a_restart(root: Path, tmp_path: Path) -> None:
    (root / os.fsdecode(b"caf\xe9 \n")).write_text("x")
    before = snapshot(root)
    before.save(tmp_path / "inputs.json")
    loaded = Snapshot.load(tmp_path / "inputs.json")
    assert loaded == before
    assert paths(root, loaded) == []


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"marks": {"a": [1]}}', '{"marks": 3}'])
def test_a_corrupt_snapshot_is_told(tmp_path: Path, text: str) -> None:
    (tmp_path / "inputs.json").write_text(text)
    with pytest.raises(ValueError, match=r".+"):
        Snapshot.load(tmp_path / "inputs.json")


def publish(
    store: Store, root: Path, extras: dict[str, Path] | None = None, *, tries: int = 20
) -> Uploaded:
    clock = FakeClock()
    left = tries

    def retry(call: Callable[[], T], /) -> T:
        nonlocal left
        left -= 1
        return retrying(call, clock=clock) if left >= 0 else once(call)

    return upload_outputs(
        store,
        KEYS,
        select(root, EMPTY, Outputs()),
        extras or {},
        epoch=3,
        threads=2,
        retry=retry,
        clock=clock,
    )


def archive_of(store: Store) -> dict[str, bytes]:
    with zipfile.ZipFile(io.BytesIO(store.get(KEYS.output_zip).data)) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def test_what_is_published(root: Path, tmp_path: Path) -> None:
    store = MemoryStore()
    (root / "x.csv").write_text("1,2\n" * 1000)
    (root / "l").symlink_to("x.csv")
    (root / "e").mkdir()
    os.mkfifo(root / "p")
    (tmp_path / "stdout").write_text("hello\n")
    uploaded = publish(
        store, root, {"stdout.txt": tmp_path / "stdout", "stderr.txt": tmp_path / "missing"}
    )
    assert archive_of(store) == {
        "x.csv": b"1,2\n" * 1000, "l": b"x.csv", "e/": b"", "stdout.txt": b"hello\n",
    }  # fmt: skip
    data = store.get(KEYS.manifest).data
    manifest = json.loads(data)
    files = {file["path"]: file for file in manifest["files"]}
    assert files["x.csv"]["sha256"] == hashlib.sha256(b"1,2\n" * 1000).hexdigest()
    assert files["x.csv"]["mtime"] == (root / "x.csv").stat().st_mtime_ns
    assert manifest["links"] == [{"path": "l"}]
    assert manifest["folders"] == ["e"]
    assert manifest["skipped"] == [{"path": "p", "why": "fifo"}]
    archive = store.get(KEYS.output_zip).data
    digest = hashlib.sha256(archive).hexdigest()
    assert manifest["archive"] == {"size": len(archive), "sha256": digest}
    output = uploaded.output
    assert (output.epoch, output.files, output.bytes) == (3, 2, 4006)
    assert output.archive_bytes == len(archive)
    assert output.manifest_sha256 == hashlib.sha256(data).hexdigest()


def test_the_runs_own_file_wins_its_name(root: Path, tmp_path: Path) -> None:
    store = MemoryStore()
    (root / "stdout.txt").write_text("the run's")
    (root / "stdout.1.txt").write_text("the run's, too")
    (tmp_path / "log").write_text("the agent's")
    publish(store, root, {"stdout.txt": tmp_path / "log"})
    assert archive_of(store) == {
        "stdout.txt": b"the run's",
        "stdout.1.txt": b"the run's, too",
        "stdout.2.txt": b"the agent's",
    }


def test_a_run_without_outputs_publishes_that(root: Path, tmp_path: Path) -> None:
    store = MemoryStore()
    uploaded = publish(store, root)
    assert archive_of(store) == {}
    assert download(store, uploaded.output, ["**"], Place(tmp_path / "target")) == []


@pytest.mark.parametrize("fault", [CUT, UNAVAILABLE, LOST_ANSWER])
@pytest.mark.parametrize("call", ["upload", "open", "put", "get", "head"])
def test_passing_faults_do_no_harm(root: Path, fault: Fault, call: str) -> None:
    (root / "x").write_bytes(os.urandom(300_000))
    failed: set[str] = set()

    def plan(now: str, _key: str) -> Fault | None:
        if now != call or len(failed) >= 2:
            return None
        failed.add(f"{now} {len(failed)}")
        return fault

    inner = MemoryStore()
    store = FaultyStore(inner, Faults(FakeClock(), plan=plan))
    uploaded = publish(store, root)
    assert archive_of(inner) == {"x": (root / "x").read_bytes()}
    assert uploaded.output.archive_bytes == inner.head(KEYS.output_zip).size
    Manifest.load(inner.get(KEYS.manifest).data)


class _Mangling(MemoryStore):
    """A store that changes the first upload on its way."""

    mangled = False

    def upload(self, key: str, body: Body) -> Entry:
        entry = super().upload(key, body)
        if not self.mangled:
            self.mangled = True
            data = bytearray(self.get(key).data)
            data[len(data) // 2] ^= 1
            self.put(key, bytes(data))
        return entry


def test_an_upload_that_arrives_changed_is_repeated(root: Path) -> None:
    store = _Mangling()
    (root / "x").write_bytes(os.urandom(1000))
    publish(store, root)
    assert store.mangled
    assert archive_of(store) == {"x": (root / "x").read_bytes()}


def test_a_crash_anywhere_is_repeated(root: Path) -> None:
    """Without retries, each failing call stands for a crash; the whole is done again."""
    (root / "x").write_bytes(os.urandom(1000))
    for crash in range(4):
        calls = 0

        def plan(call: str, _key: str, crash: int = crash) -> Fault | None:
            nonlocal calls
            calls += 1
            if calls != crash + 1:
                return None
            return UNAVAILABLE if call == "get" else LOST_ANSWER

        inner = MemoryStore()
        store = FaultyStore(inner, Faults(FakeClock(), plan=plan))
        with pytest.raises(StoreUnavailableError):
            publish(store, root, tries=0)
        uploaded = publish(store, root, tries=0)
        assert archive_of(inner) == {"x": (root / "x").read_bytes()}
        assert uploaded.output.archive_bytes == inner.head(KEYS.output_zip).size


def test_what_was_published_is_not_packed_again(root: Path) -> None:
    faults = Faults(FakeClock())
    store = FaultyStore(MemoryStore(), faults)
    (root / "x").write_text("x")
    first = publish(store, root)
    faults.calls.clear()
    assert publish(store, root).output == first.output
    assert "upload" not in [call for call, _ in faults.calls]


# Downloads of what was published.


@pytest.fixture
def published(root: Path) -> tuple[FaultyStore, Uploaded]:
    store = FaultyStore(MemoryStore(), Faults(FakeClock()))
    (root / "big.dat").write_bytes(os.urandom(6 << 20))
    (root / "run").mkdir()
    (root / "run" / "a.csv").write_text("a")
    (root / "run" / "b.csv").write_text("b")
    (root / "run" / "b.csv").chmod(0o755)
    (root / "tools").symlink_to("run")
    (root / "outward").symlink_to("/etc/passwd")
    (root / "empty").mkdir()
    return store, publish(store, root)


def test_download_everything(published: tuple[FaultyStore, Uploaded], tmp_path: Path) -> None:
    store, uploaded = published
    skipped: list[str] = []
    target = tmp_path / "new" / "target"
    found = download(
        store,
        uploaded.output,
        ["**"],
        Place(target),
        on_skip=lambda path, _why: skipped.append(path),
    )
    assert sorted(str(path.relative_to(target)) for path in found) == [
        "big.dat", "empty", "run/a.csv", "run/b.csv", "tools",
    ]  # fmt: skip
    assert skipped == ["outward"]
    assert (target / "big.dat").read_bytes() == (tmp_path / "artifacts" / "big.dat").read_bytes()
    assert (target / "run/b.csv").stat().st_mode & 0o777 == 0o755
    mtimes = [
        (folder / "run/a.csv").stat().st_mtime_ns for folder in (target, target / "../../artifacts")
    ]
    assert mtimes[0] == mtimes[1]
    assert (target / "tools").readlink() == Path("run")
    assert not [path for path in target.rglob("*") if ".part" in path.name]


class _Counting(MemoryStore):
    """Counts the bytes that are asked for."""

    asked = 0

    @contextmanager
    def open(self, key: str, *, start: int = 0, length: int | None = None) -> Iterator[BinaryIO]:
        self.asked += length if length is not None else self.head(key).size
        with super().open(key, start=start, length=length) as stream:
            yield stream


def test_only_what_is_wanted_is_read(root: Path, tmp_path: Path) -> None:
    store = _Counting()
    (root / "big.dat").write_bytes(os.urandom(6 << 20))
    (root / "small.csv").write_text("a")
    uploaded = publish(store, root)
    store.asked = 0
    (path,) = download(store, uploaded.output, ["*.csv"], Place(tmp_path / "t"))
    assert path.read_text() == "a"
    assert store.asked < 300_000


def test_a_download_survives_broken_reads(
    published: tuple[FaultyStore, Uploaded], tmp_path: Path
) -> None:
    store, uploaded = published
    count = 0

    def plan(call: str, _key: str) -> Fault | None:
        nonlocal count
        count += call in ("open", "get", "head")
        return (CUT if call == "open" else UNAVAILABLE) if count % 2 else None

    store.faults.plan = plan
    retry = partial(retrying, clock=FakeClock())
    found = download(store, uploaded.output, ["**"], Place(tmp_path / "t"), retry=retry)
    assert len(found) == 5
    artifacts = tmp_path / "artifacts"
    assert (tmp_path / "t/big.dat").read_bytes() == (artifacts / "big.dat").read_bytes()


def test_a_changed_archive_is_told(published: tuple[FaultyStore, Uploaded], tmp_path: Path) -> None:
    store, uploaded = published
    data = bytearray(store.get(KEYS.output_zip).data)
    data[3 << 20] ^= 1
    store.put(KEYS.output_zip, bytes(data))
    with pytest.raises(OutputChangedError, match=r"big\.dat"):
        download(store, uploaded.output, ["big.dat"], Place(tmp_path / "t"))
    assert list((tmp_path / "t").iterdir()) == []


def test_reading_one_output_tells_what_was_swapped(root: Path) -> None:
    store, swapped = MemoryStore(), MemoryStore()
    (root / "a.csv").write_text("mine")
    output = publish(store, root).output
    manifest = read_manifest(store, output)
    assert b"".join(read_output(store, output, manifest, "a.csv")) == b"mine"
    (root / "a.csv").write_text("other")
    publish(swapped, root)
    store.put(KEYS.output_zip, swapped.get(KEYS.output_zip).data)  # a sound archive, not this one
    with pytest.raises(OutputChangedError, match=r"a\.csv"):
        list(read_output(store, output, manifest, "a.csv"))
    with pytest.raises(FileNotFoundError):
        list(read_output(store, output, manifest, "b.csv"))


def test_a_changed_manifest_is_told(
    published: tuple[FaultyStore, Uploaded], tmp_path: Path
) -> None:
    store, uploaded = published
    store.put(KEYS.manifest, store.get(KEYS.manifest).data + b" ")
    with pytest.raises(OutputChangedError, match="manifest"):
        download(store, uploaded.output, ["**"], Place(tmp_path / "t"))


def test_a_download_does_not_follow_links(
    published: tuple[FaultyStore, Uploaded], tmp_path: Path
) -> None:
    store, uploaded = published
    outside = tmp_path / "outside"
    outside.mkdir()
    (tmp_path / "t").mkdir()
    (tmp_path / "t" / "run").symlink_to(outside)
    with pytest.raises(NotADirectoryError):
        download(store, uploaded.output, ["run/*"], Place(tmp_path / "t"))
    assert list(outside.iterdir()) == []


class _Losing(MemoryStore):
    """A store that loses the first upload."""

    lost = False

    def upload(self, key: str, body: Body) -> Entry:
        entry = super().upload(key, body)
        if not self.lost:
            self.lost = True
            self.delete(key)
        return entry


def test_an_upload_that_is_lost_is_repeated(root: Path) -> None:
    store = _Losing()
    (root / "x").write_bytes(os.urandom(1000))
    publish(store, root)
    assert store.lost
    assert archive_of(store) == {"x": (root / "x").read_bytes()}
