"""What the directory store does with a real folder, beyond the contract of all stores."""

import fcntl
import io
import os
import resource
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from fakes.actors import Actor, put_limited, together
from simagent.ports.store import NotFoundError, StoreRefusedError, StoreUnavailableError
from simagent.stores.directory import DirectoryStore
from simagent.stores.filesystem import FilePart, filesystem_type, is_known_local, self_test

HOUR = 3600


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "store"


@pytest.fixture
def store(root: Path) -> DirectoryStore:
    return DirectoryStore(root)


def temporaries(root: Path) -> list[str]:
    return sorted(path.name for path in (root / ".simagent" / "tmp").iterdir())


def test_making_and_reading_a_store_writes_nothing(root: Path) -> None:
    store = DirectoryStore(root)
    assert list(store.scan("")) == []
    with pytest.raises(NotFoundError):
        store.get("a")
    store.delete("a")
    assert not root.exists()


def test_objects_are_plain_files(store: DirectoryStore, root: Path) -> None:
    store.put("a/b.txt", b"hello")
    assert (root / "a" / "b.txt").read_bytes() == b"hello"


def test_a_name_cannot_be_an_object_and_a_folder(store: DirectoryStore) -> None:
    store.put("a/b", b"1")
    with pytest.raises(StoreRefusedError, match="objects beneath"):
        store.put("a", b"2")
    for key in ("a/b/c", "a/b/c/d"):
        with pytest.raises(StoreRefusedError, match=r"a/b is an object"):
            store.put(key, b"2")
    assert [entry.key for entry in store.scan("")] == ["a/b"]


def test_the_stores_own_folder_is_no_place_for_objects(store: DirectoryStore) -> None:
    store.put("a", b"")
    for key in (".simagent", ".simagent/tmp/x"):
        with pytest.raises(StoreRefusedError):
            store.put(key, b"")
    assert [entry.key for entry in store.scan("")] == ["a"]
    assert list(store.scan(".sim")) == []


def test_a_name_that_is_too_long_is_refused(store: DirectoryStore) -> None:
    with pytest.raises(StoreRefusedError, match="too long"):
        store.put("x" * 300, b"")


def test_empty_folders_left_by_a_crash_do_not_block_a_name(
    store: DirectoryStore, root: Path
) -> None:
    (root / "a").mkdir(parents=True)
    store.put("a", b"1")
    assert store.get("a").data == b"1"


def test_deleting_leaves_no_empty_folders(store: DirectoryStore, root: Path) -> None:
    store.put("a/b/c/d", b"")
    store.put("a/x", b"")
    store.delete("a/b/c/d")
    assert sorted(path.name for path in (root / "a").iterdir()) == ["x"]
    store.delete("a/x")
    assert [path.name for path in root.iterdir()] == [".simagent"]


def test_links_and_pipes_are_no_objects(store: DirectoryStore, root: Path, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_bytes(b"secret")
    store.put("a", b"")
    (root / "link").symlink_to(secret)
    os.mkfifo(root / "pipe")
    assert [entry.key for entry in store.scan("")] == ["a"]
    with pytest.raises(StoreRefusedError):
        store.get("link")
    with pytest.raises(NotFoundError):
        store.get("pipe")


def test_a_version_is_later_than_the_one_replaced_though_the_clock_was_set_back(
    store: DirectoryStore, root: Path
) -> None:
    store.put("k", b"1")
    ahead = time.time() + HOUR
    os.utime(root / "k", (ahead, ahead))
    tags, times = [store.get("k").etag], [(root / "k").stat().st_mtime_ns]
    for number in range(3):
        tags.append(store.put("k", b"%d" % number))
        times.append((root / "k").stat().st_mtime_ns)
    assert len(set(tags)) == 4
    assert times == sorted(set(times))
    assert store.get("k").etag == tags[-1]


def test_what_a_crashed_writer_left_is_removed_and_a_living_ones_kept(root: Path) -> None:
    DirectoryStore(root).put("a", b"")
    folder = root / ".simagent" / "tmp"
    for name in ("young", "abandoned", "alive"):
        (folder / name).write_bytes(b"x")
    for name in ("abandoned", "alive"):
        os.utime(folder / name, (time.time() - 2 * HOUR,) * 2)
    with (folder / "alive").open("rb") as alive:
        fcntl.flock(alive, fcntl.LOCK_EX)
        DirectoryStore(root).put("b", b"")
    assert temporaries(root) == ["alive", "young"]


def test_failed_writes_leave_no_temporary_files(store: DirectoryStore, root: Path) -> None:
    store.put("a/b", b"")
    with pytest.raises(StoreRefusedError):
        store.put("a", b"x")
    assert temporaries(root) == []


def test_a_file_limit_is_refused_and_too_many_open_files_may_pass(root: Path) -> None:
    opener = partial(DirectoryStore, root)
    assert together(
        Actor(put_limited, opener, "big", resource.RLIMIT_FSIZE, 50_000),
        Actor(put_limited, opener, "any", resource.RLIMIT_NOFILE, 3),
    ) == [["StoreRefusedError"], ["StoreUnavailableError"]]
    assert [entry.key for entry in opener().scan("")] == ["before"]
    assert temporaries(root) == []


def test_the_body_of_an_upload_that_fails_is_closed(store: DirectoryStore) -> None:
    closed = []

    def body() -> Iterator[bytes]:
        try:
            yield b"a" * 1000
            yield b"a" * 100_000
            yield b"never asked for"
        finally:
            closed.append(True)

    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, limits[1]))
    try:
        with pytest.raises(StoreRefusedError) as error:
            store.upload("big", body)
        assert closed == [True], error.type  # though the error is held, and what it points at
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_errors_while_reading_are_the_stores() -> None:
    # Reading a process's memory at address 0 is an EIO, as a bad disk's is.
    path = Path("/proc/self/mem")
    with io.FileIO(path) as file, pytest.raises(StoreUnavailableError, match="/proc/self/mem"):
        FilePart(file, 100, path).read(10)


def test_file_systems_are_recognised(tmp_path: Path) -> None:
    assert filesystem_type(Path("/proc/self/status")) == "proc"
    assert not is_known_local(Path("/proc"))
    assert filesystem_type(tmp_path / "not" / "there") == filesystem_type(tmp_path) != ""


def test_locks_that_work_pass_the_self_test(store: DirectoryStore) -> None:
    store.self_test()


def test_locks_that_exclude_nobody_fail_the_self_test(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The other process says that it holds the lock, and on such a file system that means nothing.
    pretender = tmp_path / "python"
    pretender.write_text("#!/bin/sh\nprintf held\nread line\n")
    pretender.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(pretender))
    with pytest.raises(StoreRefusedError, match="locks do not work"):
        self_test(tmp_path / "store")


def test_a_store_that_is_gone_does_not_look_empty(tmp_path: Path) -> None:
    """An unmounted or replaced folder is an outage: no task in it has ceased to be."""
    root = tmp_path / "store"
    store = DirectoryStore(root)
    etag = store.put("a/b", b"1")
    root.rename(tmp_path / "away")
    for place, remove in ((None, None), (Path.touch, Path.unlink), (Path.mkdir, Path.rmdir)):
        if place is not None:
            place(root)
        for call in (
            lambda: store.get("a/b"),
            lambda: store.head("a/b"),
            lambda: list(store.scan("a/")),
            lambda: store.delete("a/b"),
            lambda: store.put("a/c", b"2"),
            lambda: store.put("a/b", b"2", if_match=etag),
            lambda: store.upload("a/c", lambda: [b"2"]),
        ):
            with pytest.raises(StoreUnavailableError):
                call()
        if remove is not None:
            remove(root)
    (tmp_path / "away").rename(root)
    assert store.get("a/b").data == b"1"


def test_a_store_that_was_there_before_is_missed_from_the_start(tmp_path: Path) -> None:
    store = DirectoryStore(tmp_path / "store", existing=True)
    with pytest.raises(StoreUnavailableError):
        store.get("a")
    with pytest.raises(StoreUnavailableError):
        store.put("a", b"")


def test_a_store_that_was_only_read_is_missed_as_well(tmp_path: Path) -> None:
    root = tmp_path / "store"
    DirectoryStore(root).put("a", b"1")
    reader = DirectoryStore(root)
    assert reader.get("a").data == b"1"
    root.rename(tmp_path / "away")
    with pytest.raises(StoreUnavailableError):
        reader.get("a")


def test_what_is_no_folder_is_no_empty_store(tmp_path: Path) -> None:
    (tmp_path / "store").touch()
    with pytest.raises(StoreUnavailableError):
        list(DirectoryStore(tmp_path / "store").scan("open/"))
