"""Outputs as single files: at their paths in the store, each sent once, and found again."""

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TypeVar

import pytest

from fakes.clock import FakeClock
from fakes.faults import CUT, LOST_ANSWER, UNAVAILABLE, Fault, Faults, FaultyStore
from fakes.store import MemoryStore
from simagent.domain.keys import TaskKeys
from simagent.domain.spec import Outputs
from simagent.ports.retry import retrying
from simagent.ports.store import Body, Entry, Store, StoreUnavailableError
from simagent.stores.directory import DirectoryStore
from simagent.transfer.download import Place, download, once, read_manifest, read_output
from simagent.transfer.outputs import EMPTY, select
from simagent.transfer.publishing import Extra, Uploaded, upload_outputs

T = TypeVar("T")
KEYS = TaskKeys("default", "T1").attempt(3)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "made").mkdir()
    return tmp_path / "made"


def publish(
    store: Store, root: Path, extras: Mapping[str, Path | Extra] | None = None, *, tries: int = 30
) -> Uploaded:
    clock = FakeClock()
    left = tries

    def retry(call: Callable[[], T], /) -> T:
        nonlocal left
        left -= 1
        return retrying(call, clock=clock) if left >= 0 else once(call)

    return upload_outputs(
        store, KEYS, select(root, EMPTY, Outputs()), extras or {}, epoch=3, threads=2,
        retry=retry, clock=clock, layout="files", record=root.parent / "published.jsonl",
    )  # fmt: skip


def objects(store: Store) -> dict[str, bytes]:
    return {
        entry.key.removeprefix(KEYS.output_folder): store.get(entry.key).data
        for entry in store.scan(KEYS.output_folder)
    }


@pytest.fixture(params=["memory", "directory"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    return MemoryStore() if request.param == "memory" else DirectoryStore(tmp_path / "store")


def test_what_is_published(store: Store, root: Path, tmp_path: Path) -> None:
    (root / "run").mkdir()
    (root / "run" / "x.csv").write_text("1,2\n" * 1000)
    (root / "run" / "x.csv").chmod(0o755)
    (root / "none").write_text("")
    (root / "big").write_bytes(os.urandom(9 << 20))
    (root / "l").symlink_to("run/x.csv")
    (root / "e").mkdir()
    os.mkfifo(root / "p")
    (tmp_path / "stdout").write_text("hello\n")
    extras = {"stdout.txt": Extra(tmp_path / "stdout", 2, lambda size: b"cut %d" % size)}
    uploaded = publish(store, root, extras)
    assert objects(store) == {
        "run/x.csv": b"1,2\n" * 1000,
        "none": b"",
        "big": (root / "big").read_bytes(),
        "stdout.txt": b"hecut 6",
    }
    data = store.get(KEYS.manifest).data
    manifest = json.loads(data)
    files = {file["path"]: file for file in manifest["files"]}
    assert files["run/x.csv"] == {
        "path": "run/x.csv",
        "size": 4000,
        "mode": 0o755,
        "mtime": (root / "run" / "x.csv").stat().st_mtime_ns,
        "sha256": hashlib.sha256(b"1,2\n" * 1000).hexdigest(),
    }
    assert manifest["links"] == [{"path": "l", "target": "run/x.csv"}]
    assert manifest["folders"] == ["e"]
    assert manifest["skipped"] == [{"path": "p", "why": "fifo"}]
    assert manifest["archive"] is None
    output = uploaded.output
    assert (output.layout, output.folder, output.archive) == ("files", KEYS.output_folder, "")
    assert (output.files, output.bytes) == (4, 4000 + 7 + (9 << 20))
    assert uploaded.changed == ()

    paths = download(store, output, ["**"], Place(tmp_path / "got"))
    names = ["big", "e", "l", "none", "run/x.csv", "stdout.txt"]
    assert sorted(str(path.relative_to(tmp_path / "got")) for path in paths) == names
    for name in ("big", "l", "none", "run/x.csv"):
        assert (tmp_path / "got" / name).read_bytes() == (root / name).read_bytes()
    assert (tmp_path / "got/l").readlink() == Path("run/x.csv")
    assert (tmp_path / "got/run/x.csv").stat().st_mode & 0o777 == 0o755
    (path,) = download(store, output, ["**/*.csv"], Place(tmp_path / "some"))
    assert path == tmp_path / "some/run/x.csv"
    manifest_read = read_manifest(store, output)
    assert b"".join(read_output(store, output, manifest_read, "stdout.txt")) == b"hecut 6"


ODD = [
    "with space",
    "été ✓",
    "two\nlines",
    "tab\tand \x01",
    "%41+&?#",
    "back\\slash",
    "-",
    "~",
    "c:",
    os.fsdecode(b"caf\xe9"),
    "/".join(["deep" * 40] * 8),
    "/".join(["d" * 250] * 18),
]


@pytest.mark.parametrize("name", ODD, ids=range(len(ODD)))
def test_odd_names(store: Store, root: Path, tmp_path: Path, name: str) -> None:
    folder, file = os.path.split(name)
    at = os.open(root, os.O_DIRECTORY)
    for part in folder.split("/") if folder else ():
        os.mkdir(part, dir_fd=at)
        at = os.open(part, os.O_DIRECTORY, dir_fd=at)
    with open(os.open(file, os.O_WRONLY | os.O_CREAT, dir_fd=at), "w") as out:
        out.write("contents")
    (root / "plain").write_text("p")
    uploaded = publish(store, root)
    assert uploaded.changed == uploaded.unread == ()
    assert publish(store, root).output == uploaded.output
    manifest = read_manifest(store, uploaded.output)
    assert b"".join(read_output(store, uploaded.output, manifest, name)) == b"contents"
    download(store, uploaded.output, ["**"], Place(tmp_path / "t"))
    again = select(tmp_path / "t", EMPTY, Outputs())
    assert sorted(member.path for member in again.members) == sorted([name, "plain"])


@pytest.mark.parametrize("fault", [CUT, UNAVAILABLE, LOST_ANSWER])
@pytest.mark.parametrize("call", ["upload", "open", "put", "get", "scan"])
def test_passing_faults_do_no_harm(root: Path, fault: Fault, call: str) -> None:
    for number in range(30):
        (root / f"x{number}").write_bytes(os.urandom(1000))
    (root / "big").write_bytes(os.urandom(9 << 20))
    failed = 0

    def plan(now: str, _key: str) -> Fault | None:
        nonlocal failed
        failed += now == call
        return fault if now == call and failed % 3 == 0 else None

    inner = MemoryStore()
    uploaded = publish(FaultyStore(inner, Faults(FakeClock(), plan=plan)), root, tries=1000)
    assert objects(inner) == {path.name: path.read_bytes() for path in root.iterdir()}
    assert uploaded.output.files == 31


def test_a_crash_anywhere_is_gone_on_with(root: Path) -> None:
    """Without retries, each failing call stands for a crash; what was sent is not sent again."""
    names = [f"x{number:02d}" for number in range(12)]
    for name in names:
        (root / name).write_bytes(os.urandom(1000))
    for crash in range(0, 40, 3):
        calls = 0

        def plan(call: str, _key: str, crash: int = crash) -> Fault | None:
            nonlocal calls
            calls += 1
            return UNAVAILABLE if calls == crash + 1 else None

        inner = MemoryStore()
        faults = Faults(FakeClock(), plan=plan)
        store = FaultyStore(inner, faults)
        (root.parent / "published.jsonl").unlink(missing_ok=True)
        try:
            publish(store, root, tries=0)
        except StoreUnavailableError:
            noted = len((root.parent / "published.jsonl").read_bytes().splitlines()) if (
                root.parent / "published.jsonl"
            ).exists() else 0  # fmt: skip
            faults.calls.clear()
            publish(store, root, tries=0)
            sent = [key for call, key in faults.calls if call == "upload"]
            assert len(sent) == len(names) - noted
        assert objects(inner) == {name: (root / name).read_bytes() for name in names}


def test_a_file_that_was_written_since_is_sent_again(root: Path) -> None:
    store = MemoryStore()
    (root / "a").write_text("one")
    (root / "gone").write_text("x")
    publish(store, root)
    store.delete(KEYS.manifest)
    (root / "a").write_text("two")
    (root / "gone").unlink()
    uploaded = publish(store, root)
    assert objects(store) == {"a": b"two"}
    assert uploaded.output.files == 1


def test_what_was_published_is_not_sent_again(root: Path) -> None:
    faults = Faults(FakeClock())
    store = FaultyStore(MemoryStore(), faults)
    (root / "x").write_text("x")
    first = publish(store, root)
    faults.calls.clear()
    assert publish(store, root).output == first.output
    assert "upload" not in [call for call, _ in faults.calls]


def test_an_object_that_vanished_is_sent_again(root: Path) -> None:
    store = MemoryStore()
    (root / "x").write_text("x")
    (root / "y").write_text("y")
    publish(store, root)
    store.delete(KEYS.output_folder + "x")
    publish(store, root)
    assert objects(store) == {"x": b"x", "y": b"y"}


class _Mangling(MemoryStore):
    """A store that changes the first upload on its way."""

    mangled = False

    def upload(self, key: str, body: Body) -> Entry:
        entry = super().upload(key, body)
        if not self.mangled:
            self.mangled = True
            self.put(key, b"z" * entry.size)
        return entry


def test_an_upload_that_arrives_changed_is_repeated(root: Path) -> None:
    store = _Mangling()
    (root / "x").write_bytes(os.urandom(1000))
    publish(store, root)
    assert store.mangled
    assert objects(store) == {"x": (root / "x").read_bytes()}


def test_a_corrupt_record_costs_only_work(root: Path) -> None:
    store = MemoryStore()
    (root / "x").write_text("x")
    (root.parent / "published.jsonl").write_text('{"\n[1,2,3]\n[["x"], 1, 2]\nnull\n[[')
    publish(store, root)
    assert objects(store) == {"x": b"x"}


def test_what_changes_or_goes_meanwhile_is_told(root: Path) -> None:
    (root / "grows").write_text("12345")
    (root / "goes").write_text("x")
    (root / "becomes").write_text("x")
    selection = select(root, EMPTY, Outputs())
    (root / "grows").write_text("1234567")
    (root / "goes").unlink()
    (root / "becomes").unlink()
    (root / "becomes").symlink_to("grows")
    store = MemoryStore()
    uploaded = upload_outputs(
        store, KEYS, selection, {}, epoch=3, threads=1, clock=FakeClock(), layout="files",
        retry=partial(retrying, clock=FakeClock()),
    )  # fmt: skip
    assert sorted(note.path for note in uploaded.changed) == ["becomes", "goes", "grows"]
    assert objects(store) == {"grows": b"12345"}
