"""What every object store engine does, and every stand-in for one.

To hold a new engine to it, add a line to `OPENERS`.
"""

import hashlib
import os
import threading
from collections.abc import Callable, Iterator
from functools import partial

import pytest

from fakes.actors import Actor, create, increment, overwrite, read_while, together, write_and_delete
from fakes.clock import FakeClock
from fakes.faults import Faults, FaultyStore
from fakes.s3 import ENDPOINT, make_store
from fakes.store import MemoryStore
from simagent.ports.store import (
    NotFoundError,
    PreconditionError,
    Store,
    StoreRefusedError,
)
from simagent.stores.directory import DirectoryStore

Opener = Callable[[], Store]


def _always(store: Store) -> Opener:
    return lambda: store


def _s3(request: pytest.FixtureRequest) -> Opener:
    return partial(make_store, request.getfixturevalue("bucket"))


def _rgw(request: pytest.FixtureRequest) -> Opener:
    return partial(make_store, request.getfixturevalue("rgw_bucket"))


# Each makes, for one test, what opens the same store again and again.
OPENERS: dict[str, Callable[[pytest.FixtureRequest], Opener]] = {
    "memory": lambda request: _always(MemoryStore()),
    "faulty": lambda request: _always(FaultyStore(MemoryStore(), Faults(FakeClock()))),
    "directory": lambda request: partial(
        DirectoryStore, request.getfixturevalue("tmp_path") / "store"
    ),
    "s3": _s3,
    "rgw": _rgw,
}
# Those that other processes can open, too.
SHARED = ["directory", "s3", "rgw"]

MEGABYTE = 1 << 20


@pytest.fixture(params=OPENERS)
def opener(request: pytest.FixtureRequest) -> Opener:
    return OPENERS[request.param](request)


@pytest.fixture(params=SHARED)
def shared(request: pytest.FixtureRequest) -> Opener:
    return OPENERS[request.param](request)


@pytest.fixture
def store(opener: Opener) -> Store:
    return opener()


def keys(store: Store, prefix: str, *, after: str = "", limit: int | None = None) -> list[str]:
    return [entry.key for entry in store.scan(prefix, after=after, limit=limit)]


def threads(*actions: Callable[[], object]) -> None:
    """Do all at the same time; the first failure is raised here."""
    failures: list[BaseException] = []
    barrier = threading.Barrier(len(actions))

    def run(action: Callable[[], object]) -> None:
        try:
            barrier.wait(30)
            action()
        except BaseException as error:  # noqa: BLE001 raised again by the caller
            failures.append(error)

    started = [threading.Thread(target=run, args=(action,)) for action in actions]
    for thread in started:
        thread.start()
    for thread in started:
        thread.join()
    if failures:
        raise failures[0]


# Small objects


def test_an_object_is_read_as_it_was_written(store: Store, opener: Opener) -> None:
    etag = store.put("a/b/c.json", b'{"x": 1}\0\xff')
    blob = opener().get("a/b/c.json")
    assert (blob.data, blob.etag) == (b'{"x": 1}\0\xff', etag)


def test_an_empty_object_is_an_object(store: Store) -> None:
    store.put("empty", b"")
    assert store.get("empty").data == b""
    assert keys(store, "") == ["empty"]


def test_a_missing_object_is_not_found(store: Store) -> None:
    store.put("a/b", b"")
    for key in ("a", "a/c", "a/b/c", "x/y/z"):
        with pytest.raises(NotFoundError):
            store.get(key)
        with pytest.raises(NotFoundError):
            store.head(key)
        with pytest.raises(NotFoundError), store.open(key):
            pass


def test_a_later_write_replaces_the_object_and_its_tag(store: Store) -> None:
    first = store.put("k", b"one")
    second = store.put("k", b"two")
    assert first != second
    assert (store.get("k").data, store.get("k").etag) == (b"two", second)


def test_all_calls_tell_the_same_tag_and_size(store: Store) -> None:
    etag = store.put("k", b"12345")
    (listed,) = store.scan("k")
    assert listed == store.head("k")
    assert (listed.key, listed.size, listed.etag) == ("k", 5, etag)
    uploaded = store.upload("k", lambda: [b"123", b"4567"])
    assert uploaded == store.head("k")
    assert uploaded.size == 7
    assert store.get("k").etag == uploaded.etag


@pytest.mark.parametrize("key", ["", "/a", "a/", "a//b", ".", "..", "a/../b", "a/./b", "a\0b"])
def test_a_key_that_could_lead_elsewhere_is_refused(store: Store, key: str) -> None:
    for call in (
        lambda: store.get(key),
        lambda: store.head(key),
        lambda: store.put(key, b""),
        lambda: store.upload(key, lambda: [b""]),
        lambda: store.delete(key),
        lambda: store.open(key).__enter__(),
    ):
        with pytest.raises(StoreRefusedError):
            call()


def test_a_prefix_cannot_lead_elsewhere(store: Store) -> None:
    with pytest.raises(StoreRefusedError):
        list(store.scan("../"))


def test_keys_may_hold_any_text(store: Store, request: pytest.FixtureRequest) -> None:
    names = ["p/a b", "p/%41", "p/é€𝄞", "p/a'b\"", "p/-rf", "p/.hidden", "p/a\nb", "p/a\\b", "p/~"]
    if request.node.callspec.params["opener"] == "s3" and not os.environ.get(ENDPOINT):
        names.remove("p/a\nb")  # which moto cannot have, other than S3
    for name in names:
        store.put(name, name.encode())
    assert keys(store, "p/") == sorted(names, key=str.encode)
    assert [store.get(name).data for name in names] == [name.encode() for name in names]


# Conditional writes


def test_if_absent_writes_only_the_first_time(store: Store) -> None:
    store.put("k", b"one", if_absent=True)
    with pytest.raises(PreconditionError):
        store.put("k", b"two", if_absent=True)
    assert store.get("k").data == b"one"
    store.delete("k")
    store.put("k", b"three", if_absent=True)
    assert store.get("k").data == b"three"


def test_if_match_writes_only_over_that_version(store: Store) -> None:
    first = store.put("k", b"one")
    second = store.put("k", b"two", if_match=first)
    with pytest.raises(PreconditionError):
        store.put("k", b"three", if_match=first)
    assert store.get("k").data == b"two"
    store.put("k", b"four", if_match=second)
    assert store.get("k").data == b"four"


def test_if_match_on_a_missing_object_fails(store: Store) -> None:
    etag = store.put("k", b"one")
    store.delete("k")
    with pytest.raises(PreconditionError):
        store.put("k", b"two", if_match=etag)
    with pytest.raises(PreconditionError):
        store.put("other", b"two", if_match=etag)
    assert keys(store, "") == []


def test_versions_of_the_same_size_written_at_once_are_told_apart(store: Store) -> None:
    tags = [store.put("k", b"%03d" % number) for number in range(200)]
    assert len(set(tags)) == 200


def test_threads_that_increment_lose_nothing(opener: Opener) -> None:
    opener().put("n", b"0")
    threads(*[partial(increment, opener, "n", 25)] * 4)
    assert opener().get("n").data == b"100"


def test_processes_that_increment_lose_nothing(shared: Opener) -> None:
    shared().put("n", b"0")
    together(*(Actor(increment, shared, "n", 50) for _ in range(4)))
    assert shared().get("n").data == b"200"


def test_each_new_object_has_one_winner_among_processes(shared: Opener) -> None:
    wanted = [f"race/{number:02d}" for number in range(40)]
    won = together(*(Actor(create, shared, wanted, name) for name in "abcd"))
    assert sorted(key for mine in won for key in mine) == wanted
    written = {key: shared().get(key).data.decode() for key in wanted}
    assert written == {key: name for name, mine in zip("abcd", won, strict=True) for key in mine}


def test_readers_never_see_a_part(shared: Opener) -> None:
    assert together(
        Actor(overwrite, shared, "k", b"abcdefghijklmnopqrstuvwxyz", 300_000),
        Actor(read_while, shared, "k", b"z"),
    ) == [[], []]


# Deleting


def test_a_deleted_object_is_gone(store: Store) -> None:
    store.put("a/b", b"")
    store.delete("a/b")
    store.delete("a/b")
    store.delete("never/was")
    with pytest.raises(NotFoundError):
        store.get("a/b")
    assert keys(store, "") == []


def test_a_deleted_name_can_become_a_folder_and_the_reverse(store: Store) -> None:
    store.put("a/b/c", b"1")
    store.delete("a/b/c")
    store.put("a", b"2")
    store.delete("a")
    store.put("a/b", b"3")
    assert keys(store, "") == ["a/b"]


def test_neighbours_may_be_written_and_deleted_at_the_same_time(opener: Opener) -> None:
    threads(*(partial(write_and_delete, opener, f"x/y/{name}", 60) for name in "abcd"))
    assert keys(opener(), "") == []


def test_processes_may_write_and_delete_neighbours(shared: Opener) -> None:
    together(*(Actor(write_and_delete, shared, f"x/y/{name}", 100) for name in "abc"))
    assert keys(shared(), "") == []


# Listing

LISTED = ["a", "b-c", "b.d", "b/1", "b/10", "b/2/x", "b/2/y", "b/2z", "b0", "c/d/e/f", "é", "𝄞"]


@pytest.fixture
def listed(store: Store) -> Store:
    for key in reversed(LISTED):
        store.put(key, key.encode())
    return store


@pytest.mark.parametrize(
    "prefix", ["", "a", "b", "b/", "b/2", "b/2/", "b-", "c/", "c/d/e/f", "c/d/e/f/", "x", "x/y"]
)
@pytest.mark.parametrize("after", ["", "b", "b-c", "b/", "b/1", "b/2/", "b/2/x", "b/2zz", "c", "é"])
def test_a_listing_is_in_byte_order_from_where_it_is_asked(
    listed: Store, prefix: str, after: str
) -> None:
    expected = [key for key in LISTED if key.startswith(prefix) and key > after]
    assert keys(listed, prefix, after=after) == expected
    assert keys(listed, prefix, after=after, limit=2) == expected[:2]


def test_a_listing_can_be_walked_in_pages(listed: Store) -> None:
    found: list[str] = []
    while page := keys(listed, "", after=found[-1] if found else "", limit=5):
        found += page
    assert found == LISTED


def test_no_objects_are_asked_for_and_none_given(listed: Store) -> None:
    assert keys(listed, "", limit=0) == []


def test_a_listing_goes_on_while_objects_vanish(listed: Store) -> None:
    entries = listed.scan("")
    assert next(entries).key == "a"
    for key in LISTED:
        listed.delete(key)
    assert {entry.key for entry in entries} <= set(LISTED[1:])


# Large objects


def chunks_of(megabytes: int) -> Iterator[bytes]:
    for number in range(megabytes):
        yield hashlib.sha256(b"%d" % number).digest() * (MEGABYTE // 32)


def test_a_large_stream_comes_back_whole(store: Store) -> None:
    entry = store.upload("big", lambda: chunks_of(24))
    assert entry.size == 24 * MEGABYTE
    with store.open("big") as stream:
        assert all(stream.read(MEGABYTE) == chunk for chunk in chunks_of(24))
        assert stream.read(1) == b""


def test_an_upload_of_nothing_is_an_empty_object(store: Store) -> None:
    assert store.upload("k", list).size == 0
    with store.open("k") as stream:
        assert stream.read() == b""


def test_an_upload_replaces_the_object(store: Store) -> None:
    etag = store.put("k", b"old")
    assert store.upload("k", lambda: [b"new"]).etag != etag
    with pytest.raises(PreconditionError):
        store.put("k", b"newer", if_match=etag)
    assert store.get("k").data == b"new"


@pytest.mark.parametrize("error", [RuntimeError("stop"), FileNotFoundError(2, "no such input")])
def test_an_upload_whose_source_fails_writes_nothing(store: Store, error: Exception) -> None:
    def body() -> Iterator[bytes]:
        yield b"x" * MEGABYTE
        raise error

    store.put("kept", b"old")
    for key in ("kept", "new"):
        with pytest.raises(type(error)) as raised:
            store.upload(key, body)
        assert raised.value is error
    assert keys(store, "") == ["kept"]
    assert store.get("kept").data == b"old"


@pytest.mark.parametrize(
    ("start", "length", "expected"),
    [
        (0, None, b"0123456789"),
        (4, None, b"456789"),
        (0, 3, b"012"),
        (3, 4, b"3456"),
        (8, 100, b"89"),
        (10, None, b""),
        (11, 5, b""),
        (2, 0, b""),
    ],
)
def test_a_range_is_read(store: Store, start: int, length: int | None, expected: bytes) -> None:
    store.put("k", b"0123456789")
    with store.open("k", start=start, length=length) as stream:
        assert stream.read() == expected


def test_a_stream_goes_on_while_the_object_is_replaced(store: Store) -> None:
    store.upload("k", lambda: [b"a" * MEGABYTE])
    with store.open("k") as stream:
        begin = stream.read(10)
        store.put("k", b"b")
        assert begin + stream.read() == b"a" * MEGABYTE


def test_what_a_reader_raises_is_passed_on_as_it_is(store: Store) -> None:
    store.put("k", b"")
    error = FileNotFoundError(2, "the reader's own")
    with pytest.raises(FileNotFoundError) as raised, store.open("k"):
        raise error
    assert raised.value is error
