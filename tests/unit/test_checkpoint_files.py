"""Checkpoints' files: found, packed as one set or not at all, stored, fetched and laid back."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import pytest

from fakes.store import MemoryStore
from simagent.domain.state import Checkpoint
from simagent.transfer.checkpoint import (
    CheckpointError,
    FileSet,
    Stored,
    UnsettledError,
    copy,
    fetch,
    file_clock,
    find,
    lay,
    store_set,
)
from simagent.transfer.outputs import EMPTY, snapshot

T = TypeVar("T")


def once(call: Callable[[], T], /) -> T:
    return call()


def nothing() -> None:
    """Let everything go on."""


@pytest.fixture
def work(tmp_path: Path) -> Path:
    folder = tmp_path / "work"
    (folder / "restart" / "empty").mkdir(parents=True)
    (folder / "restart" / "a.rst").write_bytes(os.urandom(300_000))
    (folder / "restart" / "b.rst").write_bytes(b"")
    (folder / "other.txt").write_text("not asked for")
    (folder / "restart" / "latest").symlink_to("a.rst")
    return folder


def paths(files: FileSet) -> list[str]:
    return [member.path for member in files.members]


def test_only_what_matches_and_was_made_by_the_task_belongs_to_it(work: Path) -> None:
    (work / "restart" / "input.rst").write_text("as submitted")
    before = snapshot(work).without(paths(find(work, EMPTY, ["restart/[ab].rst"])))
    found = find(work, before, ["restart/*.rst"])
    assert paths(found) == ["restart/a.rst", "restart/b.rst"]
    assert found.bytes == 300_000
    (work / "restart" / "input.rst").write_text("changed")
    assert "restart/input.rst" in paths(find(work, before, ["restart/*.rst"]))


def test_links_that_lead_out_of_the_folder_do_not(work: Path) -> None:
    (work / "restart" / "out").symlink_to("../../secret")
    (work / "restart" / "absolute").symlink_to(work / "restart" / "a.rst")
    os.mkfifo(work / "restart" / "pipe")
    found = paths(find(work, EMPTY, ["restart"]))
    assert found == ["restart/a.rst", "restart/b.rst", "restart/latest", "restart/empty"]


def test_a_set_tells_whether_it_was_quiet(work: Path) -> None:
    found = find(work, EMPTY, ["restart"])
    assert not found.quiet_since(0)
    assert found.quiet_since(file_clock() + 10**9)


def test_any_change_shows(work: Path) -> None:
    before = find(work, EMPTY, ["restart"]).marks
    (work / "restart" / "b.rst").chmod(0o600)
    assert find(work, EMPTY, ["restart"]).marks != before


def test_a_file_that_is_written_while_it_is_copied_makes_no_set(work: Path) -> None:
    found, copies = find(work, EMPTY, ["restart"]), work.parent / "copies"
    copies.mkdir()
    with (work / "restart" / "a.rst").open("ab") as file:
        file.write(b"more")
    with pytest.raises(UnsettledError, match=r"'restart/a.rst' changed while it was copied"):
        copy(found, copies, nothing)
    (work / "restart" / "a.rst").unlink()
    with pytest.raises(UnsettledError, match=r"'restart/a.rst' vanished"):
        copy(found, copies, nothing)


@pytest.mark.parametrize("name", ["a.rst", "b.rst"])
def test_a_copy_that_is_gone_before_it_is_packed_makes_no_set(work: Path, name: str) -> None:
    store, copies = MemoryStore(), work.parent / "copies"
    copies.mkdir()
    copied = copy(find(work, EMPTY, ["restart"]), copies, nothing)
    (copies / "restart" / name).unlink()
    with pytest.raises(UnsettledError, match=f"'restart/{name}' vanished"):
        store_set(store, "set", copied, retry=once, check=nothing)
    assert list(store.scan("")) == []


def stored(work: Path, store: MemoryStore) -> tuple[Stored, Checkpoint]:
    copies = work.parent / "copies"
    copies.mkdir()
    copied = copy(find(work, EMPTY, ["restart"]), copies, nothing)
    packed = store_set(store, "set", copied, retry=once, check=nothing)
    return packed, Checkpoint(
        epoch=1,
        number=1,
        archive="set",
        sha256=packed.sha256,
        archive_bytes=packed.archive_bytes,
        files=packed.files,
        bytes=packed.bytes,
        at=1.0,
    )


def test_it_comes_back_as_it_was_over_what_is_there(work: Path, tmp_path: Path) -> None:
    store, root = MemoryStore(), tmp_path / "next"
    packed, checkpoint = stored(work, store)
    assert (packed.files, packed.bytes) == (3, 300_000 + len("a.rst"))
    (root / "restart").mkdir(parents=True)
    (root / "restart" / "a.rst").write_text("the input")
    (root / "restart" / "b.rst").symlink_to("/etc/passwd")
    fetch(store, checkpoint, tmp_path / "got.zip", retry=once, check=nothing)
    laid = lay(tmp_path / "got.zip", checkpoint, root)
    assert laid == {"restart/a.rst", "restart/b.rst", "restart/latest", "restart/empty"}
    for name in ("a.rst", "b.rst"):
        assert (root / "restart" / name).read_bytes() == (work / "restart" / name).read_bytes()
    assert not (root / "restart" / "b.rst").is_symlink()
    assert (root / "restart" / "latest").readlink() == Path("a.rst")


def test_a_damaged_or_vanished_one_is_refused(work: Path, tmp_path: Path) -> None:
    store = MemoryStore()
    _, checkpoint = stored(work, store)
    whole = store.get("set").data
    for damaged in (whole[:-1], whole + b"x", bytes([whole[0] ^ 1]) + whole[1:]):
        store.put("set", damaged)
        with pytest.raises(CheckpointError, match="set is damaged"):
            fetch(store, checkpoint, tmp_path / "got.zip", retry=once, check=nothing)
    store.delete("set")
    with pytest.raises(CheckpointError, match="set is not there any more"):
        fetch(store, checkpoint, tmp_path / "got.zip", retry=once, check=nothing)


def test_what_is_in_its_way_is_told(work: Path, tmp_path: Path) -> None:
    store, root = MemoryStore(), tmp_path / "next"
    _, checkpoint = stored(work, store)
    outside = tmp_path / "outside"
    outside.mkdir()
    root.mkdir()
    (root / "restart").symlink_to(outside)
    fetch(store, checkpoint, tmp_path / "got.zip", retry=once, check=nothing)
    with pytest.raises(CheckpointError, match="in the way"):
        lay(tmp_path / "got.zip", checkpoint, root)
    assert not list(outside.iterdir())
