"""Outputs in a folder that its task has made unreadable, or has replaced by a link elsewhere."""

import ctypes
import io
import os
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from fakes.clock import FakeClock
from fakes.store import MemoryStore
from simagent.domain.keys import TaskKeys
from simagent.domain.spec import Outputs
from simagent.transfer.download import once
from simagent.transfer.errors import TooManyOutputsError
from simagent.transfer.outputs import EMPTY, select, snapshot
from simagent.transfer.publishing import Uploaded, upload_outputs
from simagent.transfer.tree import ensure_folder, fresh_folder

KEYS = TaskKeys("default", "T1").attempt(1)
PARTS = ("work", "output", "artifacts")
ARTIFACTS = "/".join(PARTS)
NOBODY = 65534
PR_SET_DUMPABLE = 4  # prctl(2)


@pytest.fixture
def plain() -> Iterator[Path]:
    """A folder of a user who may not read everything, who this process is meanwhile."""
    with tempfile.TemporaryDirectory() as name:
        if os.geteuid() != 0:
            yield Path(name)
            return
        os.chown(name, NOBODY, NOBODY)
        os.seteuid(NOBODY)
        # As after an exec by that user: else what is in /proc/self belongs to root.
        ctypes.CDLL(None).prctl(PR_SET_DUMPABLE, 1, 0, 0, 0)
        try:
            yield Path(name)
        finally:
            os.seteuid(0)


def publish(store: MemoryStore, root: Path) -> Uploaded:
    return upload_outputs(
        store, KEYS, select(root, EMPTY, Outputs()), {},
        epoch=1, threads=1, retry=once, clock=FakeClock(),
    )  # fmt: skip


def archived(store: MemoryStore) -> dict[str, bytes]:
    with zipfile.ZipFile(io.BytesIO(store.get(KEYS.output_zip).data)) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def test_what_the_run_made_unreadable_is_published(plain: Path) -> None:
    for name in ("closed", "blind"):
        (plain / name).mkdir()
        (plain / name / "inner").write_text(name)
    (plain / "result").write_text("result")
    for name, mode in (("result", 0), ("closed", 0), ("blind", 0o444)):
        (plain / name).chmod(mode)
    store = MemoryStore()
    assert publish(store, plain).unread == ()
    assert archived(store) == {
        "result": b"result", "closed/inner": b"closed", "blind/inner": b"blind",
    }  # fmt: skip


def test_what_stays_unreadable_is_told(plain: Path) -> None:
    if os.getuid() != 0:
        pytest.skip("machine: files of another user: only root can make them")
    (plain / "mine").write_text("mine")
    os.seteuid(0)
    (plain / "theirs").touch(mode=0)
    (plain / "folder").mkdir(mode=0)
    os.seteuid(NOBODY)
    store = MemoryStore()
    for _ in range(2):  # the second time everything is published already
        unread = {item.path: item.why for item in publish(store, plain).unread}
        assert unread == {"folder": "unreadable", "theirs": "could not be read"}
    assert archived(store) == {"mine": b"mine"}
    assert select(plain, EMPTY, Outputs(include=("mine", "*.csv"))).skipped == []
    (skipped,) = select(plain, EMPTY, Outputs(include=("*/x/*.csv",))).skipped
    assert skipped.path == "folder", "what is wanted may lie in it"


@pytest.mark.parametrize("mode", [0, 0o444])
def test_a_folder_that_cannot_be_read_is_not_empty(plain: Path, mode: int) -> None:
    (plain / "work").mkdir()
    (plain / "work" / "result").write_text("result")
    (plain / "work").chmod(mode)
    with pytest.raises(PermissionError):
        select(plain / "work", EMPTY, Outputs())
    (plain / "work").chmod(0o700)


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_no_link_on_the_way_to_the_outputs_is_followed(tmp_path: Path, depth: int) -> None:
    base, outside = tmp_path / "attempt", tmp_path / "outside"
    outside.joinpath(*PARTS[depth:]).mkdir(parents=True)
    outside.joinpath(*PARTS[depth:], "secret").write_text("not the run's")
    link = base.joinpath(*PARTS[:depth])
    link.parent.mkdir(parents=True)
    link.symlink_to(outside)
    with pytest.raises(NotADirectoryError):
        select(base, EMPTY, Outputs(), beneath=ARTIFACTS)
    with pytest.raises(NotADirectoryError):
        snapshot(base, ARTIFACTS)
    with pytest.raises(NotADirectoryError):
        ensure_folder(base, ARTIFACTS)
    if depth < len(PARTS):
        with pytest.raises(NotADirectoryError):
            fresh_folder(base, ARTIFACTS)
    else:
        fresh_folder(base, ARTIFACTS)
        assert list((base / ARTIFACTS).iterdir()) == []
    assert [path.name for path in outside.rglob("*") if path.is_file()] == ["secret"]


def test_outputs_beneath_a_folder(tmp_path: Path) -> None:
    ensure_folder(tmp_path, ARTIFACTS)
    (tmp_path / ARTIFACTS / "kept").write_text("kept")
    before = snapshot(tmp_path, ARTIFACTS)
    (tmp_path / ARTIFACTS / "run").mkdir()
    (tmp_path / ARTIFACTS / "run" / "a").write_text("a")
    ensure_folder(tmp_path, ARTIFACTS)
    store = MemoryStore()
    upload_outputs(
        store, KEYS, select(tmp_path, before, Outputs(), beneath=ARTIFACTS), {},
        epoch=1, threads=1, retry=once, clock=FakeClock(),
    )  # fmt: skip
    assert archived(store) == {"run/a": b"a"}
    fresh_folder(tmp_path, ARTIFACTS)
    assert list((tmp_path / ARTIFACTS).iterdir()) == []


def test_too_many_outputs(tmp_path: Path) -> None:
    for number in range(4):
        (tmp_path / f"{number}.dat").touch()
    (tmp_path / "log").touch()
    assert len(select(tmp_path, EMPTY, Outputs(), most=5).members) == 5
    with pytest.raises(TooManyOutputsError, match=r"more than 4 outputs: .*tar.*outputs\.exclude"):
        select(tmp_path, EMPTY, Outputs(), most=4)
    assert len(select(tmp_path, EMPTY, Outputs(exclude=("*.dat",)), most=4).members) == 1
