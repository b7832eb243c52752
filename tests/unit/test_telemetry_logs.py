"""Every byte of a log reaches its reader, whatever the store does."""

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import BinaryIO

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fakes.clock import FakeClock
from fakes.faults import CUT, DROP, LOST_ANSWER, UNAVAILABLE, Fault, Faults, FaultyStore, late
from fakes.store import MemoryStore
from simagent.domain.keys import AttemptKeys
from simagent.ports.store import Entry, NotFoundError, Store, StoreError, StoreUnavailableError
from simagent.telemetry.chunks import MAX_CHUNK_BYTES
from simagent.telemetry.log_reader import log_size, read_log, tail
from simagent.telemetry.logs import LogShipper

KEYS = AttemptKeys("p/default/tasks/t/a/1/")


class PagedStore(MemoryStore):
    """Lists two objects at a time, as S3 lists a thousand: between pages anything may change."""

    def __init__(self) -> None:
        super().__init__()
        self.written = 0
        self.before: Callable[[str, str], object] = lambda call, key: None
        self.after_put: Callable[[str], object] = lambda key: None

    def put(
        self, key: str, data: bytes, *, if_match: str | None = None, if_absent: bool = False
    ) -> str:
        self.written += len(data)
        etag = super().put(key, data, if_match=if_match, if_absent=if_absent)
        self.after_put(key)
        return etag

    def scan(self, prefix: str, *, after: str = "", limit: int | None = None) -> Iterator[Entry]:
        while True:
            self.before("scan", after)
            page = list(super().scan(prefix, after=after, limit=2))
            yield from page
            if len(page) < 2:
                return
            after = page[-1].key

    @contextmanager
    def open(self, key: str, *, start: int = 0, length: int | None = None) -> Iterator[BinaryIO]:
        self.before("open", key)
        with super().open(key, start=start, length=length) as body:
            yield body


@pytest.fixture
def store() -> PagedStore:
    return PagedStore()


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "stdout"


def shipper(
    store: Store, log: Path, *, chunk_bytes: int = 64, max_bytes: int = 10**9
) -> LogShipper:
    return LogShipper(store, KEYS, {"stdout": log}, chunk_bytes=chunk_bytes, max_bytes=max_bytes)


def append(log: Path, data: bytes) -> None:
    with log.open("ab") as file:
        file.write(data)


def read(store: Store, start: int = 0, *, final: bool = False) -> bytes:
    return b"".join(read_log(store, KEYS, "stdout", start=start, final=final))


def sizes(store: Store) -> list[int]:
    return [entry.size for entry in store.scan(KEYS.logs("stdout"))]


def test_without_flush_only_full_chunks_are_shipped(store: PagedStore, log: Path) -> None:
    append(log, b"x" * 150)
    ships = shipper(store, log)
    assert ships.ship(flush=False) == 128
    assert sizes(store) == [64, 64]
    assert ships.ship(flush=True) == 22
    assert read(store) == log.read_bytes()


def test_a_log_that_does_not_exist_yet_is_empty(store: PagedStore, log: Path) -> None:
    ships = shipper(store, log)
    assert ships.ship(flush=True) == 0
    assert ships.finish() == {"stdout": 0}
    assert read(store) == b""
    assert tail(store, KEYS, "stdout", 100) == b""


def test_many_small_flushes_leave_few_chunks_and_write_each_byte_a_few_times(
    store: PagedStore, log: Path
) -> None:
    ships = shipper(store, log, chunk_bytes=4096)
    most = 0
    for number in range(2000):
        append(log, f"line {number}\n".encode())
        ships.ship(flush=True)
        if number % 100 == 0:
            most = max(most, len(sizes(store)))
    total = log.stat().st_size
    assert read(store) == log.read_bytes()
    assert most < 60
    assert store.written < 8 * total
    ships.finish()
    assert sizes(store) == [4096] * (total // 4096) + [total % 4096]


def test_a_restarted_shipper_goes_on_where_the_last_one_was(store: PagedStore, log: Path) -> None:
    append(log, b"a" * 100)
    shipper(store, log).ship(flush=True)
    before = store.written
    append(log, b"b" * 10)
    ships = shipper(store, log)
    assert ships.resume() == {"stdout": 100}
    assert ships.ship(flush=True) == 10
    assert store.written - before <= 10
    assert read(store) == log.read_bytes()


def test_finish_ships_again_what_somebody_removed(store: PagedStore, log: Path) -> None:
    append(log, random.Random(1).randbytes(500))
    ships = shipper(store, log)
    ships.ship(flush=True)
    store.delete(KEYS.log_chunk("stdout", 64))
    assert ships.finish() == {"stdout": 500}
    assert read(store) == log.read_bytes()


def test_finish_says_so_when_the_store_keeps_losing_bytes(store: PagedStore, log: Path) -> None:
    append(log, b"x" * 10)
    store.after_put = store.delete
    with pytest.raises(StoreUnavailableError, match="0 of 10 bytes"):
        shipper(store, log).finish()


def test_what_exceeds_the_cap_is_left_out_and_counted(store: PagedStore, log: Path) -> None:
    append(log, b"x" * 300)
    ships = shipper(store, log, max_bytes=200)
    ships.ship(flush=True)
    assert read(store) == b"x" * 200 + b"\n[simagent: the log is cut here, after 200 bytes]\n"
    append(log, b"y" * 50)
    size = ships.finish()["stdout"]
    text = read(store)
    assert text.endswith(b"after 200 bytes]\n[simagent: 150 bytes are left out]\n")
    assert size == len(text) == log_size(store, KEYS, "stdout")
    assert shipper(store, log, max_bytes=200).finish() == {"stdout": size}
    assert read(store) == text


def test_a_log_of_just_the_cap_is_whole(store: PagedStore, log: Path) -> None:
    append(log, b"x" * 200)
    assert shipper(store, log, max_bytes=200).finish() == {"stdout": 200}
    assert read(store) == b"x" * 200


def test_a_program_that_truncates_its_output_starts_the_log_anew(
    store: PagedStore, log: Path
) -> None:
    append(log, b"old " * 50)
    ships = shipper(store, log)
    ships.ship(flush=True)
    log.write_bytes(b"new")
    ships.ship(flush=True)
    assert read(store) == b"new"


@pytest.mark.parametrize("size", [100, 250, 1000])
def test_a_log_that_was_truncated_and_grew_again_between_two_looks_starts_anew(
    store: PagedStore, log: Path, size: int
) -> None:
    log.write_bytes(b"OLD " * 25)
    ships = shipper(store, log)
    ships.ship(flush=True)
    log.write_bytes((b"NEW " * size)[:size])
    ships.ship(flush=True)
    ships.finish()
    assert read(store) == log.read_bytes()


def test_starting_a_log_anew_is_tried_until_it_worked(store: PagedStore, log: Path) -> None:
    faults = Faults(FakeClock(), plan=lambda call, _key: UNAVAILABLE if call == "delete" else None)
    log.write_bytes(b"OLD " * 25)
    ships = shipper(FaultyStore(store, faults), log)
    ships.ship(flush=True)
    log.write_bytes(b"NEW " * 50)
    for _ in range(3):
        with pytest.raises(StoreUnavailableError):
            ships.ship(flush=True)
    faults.plan = lambda _call, _key: None
    ships.finish()
    assert read(store) == log.read_bytes()


def test_a_log_that_is_truncated_while_it_is_shipped_starts_anew(
    store: PagedStore, log: Path
) -> None:
    log.write_bytes(b"OLD " * 50)
    ships = shipper(store, log)

    def rewrite(_key: str) -> None:
        store.after_put = lambda _key: None
        log.write_bytes(b"NEW " * 100)

    store.after_put = rewrite
    ships.ship(flush=True)
    ships.finish()
    assert read(store) == log.read_bytes()


def test_what_a_power_cut_took_from_the_disk_stays_in_the_store(
    store: PagedStore, log: Path
) -> None:
    append(log, b"0123456789")
    shipper(store, log).ship(flush=True)
    log.write_bytes(b"01234")
    assert shipper(store, log).finish() == {"stdout": 10}
    assert read(store) == b"0123456789"


def test_a_link_in_the_place_of_the_log_is_not_followed(
    store: PagedStore, log: Path, tmp_path: Path
) -> None:
    secret = tmp_path / "secret"
    secret.write_bytes(b"key")
    log.symlink_to(secret)
    assert shipper(store, log).finish() == {"stdout": 0}
    assert read(store) == b""


def test_a_chunk_that_arrives_late_takes_nothing_back(store: PagedStore, log: Path) -> None:
    """One that was given up on, and was made longer meanwhile: the log had a gap then."""
    clock = FakeClock()
    faults = Faults(clock, plan=lambda call, key: late(5.0) if call == "put" else None)
    ships = shipper(FaultyStore(store, faults), log)
    append(log, b"first ")
    with pytest.raises(StoreUnavailableError):
        ships.ship(flush=True)
    faults.plan = lambda call, key: None
    append(log, b"and second")
    assert ships.finish() == {"stdout": 16}
    clock.advance(10.0)
    faults.arrive()
    assert read(store) == b"first and second"


def test_a_chunk_that_came_after_all_is_written_over(store: PagedStore, log: Path) -> None:
    """Between the look at what is there and the write."""
    ships = shipper(store, log)
    append(log, b"first ")
    ships.resume()
    store.put(KEYS.log_chunk("stdout", 0), b"fir")
    ships.ship(flush=True)
    assert read(store) == b"first "


def test_a_long_backlog_is_shipped_in_passes(store: PagedStore, log: Path) -> None:
    append(log, b"x" * 64 * 100)
    ships = shipper(store, log)
    first = ships.ship(flush=True)
    assert 0 < first < 6400
    assert ships.behind
    assert first + ships.ship(flush=True) == 6400
    assert not ships.behind


def test_reading_starts_anywhere(store: PagedStore, log: Path) -> None:
    data = random.Random(2).randbytes(300)
    append(log, data)
    shipper(store, log).ship(flush=True)
    for start in (0, 1, 63, 64, 65, 200, 299, 300, 400):
        assert read(store, start) == data[start:]
    assert tail(store, KEYS, "stdout", 70) == data[-70:]


def test_a_reader_stops_at_a_gap_or_says_what_is_missing(store: PagedStore, log: Path) -> None:
    append(log, b"a" * 64 + b"b" * 64 + b"c" * 64)
    shipper(store, log).ship(flush=True)
    store.delete(KEYS.log_chunk("stdout", 64))
    assert read(store) == b"a" * 64
    assert read(store, final=True) == (
        b"a" * 64 + b"\n[simagent: bytes 64 to 127 are missing]\n" + b"c" * 64
    )


def test_chunks_joined_under_a_reader_are_found_again(store: PagedStore, log: Path) -> None:
    ships = shipper(store, log, chunk_bytes=1000)
    for number in range(6):
        append(log, bytes([65 + number]) * 10)
        ships.ship(flush=True)
    opened: list[str] = []

    def join(call: str, key: str) -> None:
        if call == "open":
            opened.append(key)
            if len(opened) == 3:
                ships.finish()

    store.before = join
    assert read(store) == log.read_bytes()
    assert sizes(store) == [60]


def test_chunks_joined_while_they_are_listed_are_no_gap(store: PagedStore, log: Path) -> None:
    ships = shipper(store, log)
    for number in range(6):
        append(log, bytes([65 + number]) * 10)
        ships.ship(flush=True)
    pages: list[str] = []

    def join(call: str, key: str) -> None:
        if call == "scan":
            pages.append(key)
            if len(pages) == 2:
                append(log, b"z" * 100)
                ships.ship(flush=True)

    store.before = join
    assert read(store, 20) == log.read_bytes()[20:]


def test_a_follower_lists_only_what_may_be_new(store: PagedStore, log: Path) -> None:
    append(log, b"x" * (3 * MAX_CHUNK_BYTES))
    shipper(store, log, chunk_bytes=2**20).ship(flush=True)
    listed: list[str] = []
    store.before = lambda call, key: listed.append(key) if call == "scan" else None
    assert len(read(store, 3 * MAX_CHUNK_BYTES - 5)) == 5
    assert min(listed) > KEYS.log_chunk("stdout", MAX_CHUNK_BYTES)


def test_a_chunk_that_is_listed_but_never_found_is_an_error(store: PagedStore, log: Path) -> None:
    append(log, b"x")
    shipper(store, log).ship(flush=True)

    def vanish(call: str, key: str) -> None:
        if call == "open":
            raise NotFoundError(key)

    store.before = vanish
    with pytest.raises(NotFoundError):
        read(store)


Move = tuple[str, int]
MOVES = st.lists(
    st.one_of(
        st.tuples(st.just("append"), st.integers(0, 200)),
        st.tuples(st.sampled_from(["flush", "ship", "restart", "finish"]), st.just(0)),
    ),
    max_size=60,
)


@settings(max_examples=250, deadline=None)
@given(moves=MOVES, seed=st.integers(0, 2**32), fault_rate=st.sampled_from([0.0, 0.05, 0.3]))
def test_whatever_happens_the_reader_gets_the_bytes_of_the_file(
    moves: list[Move], seed: int, fault_rate: float
) -> None:
    chance = random.Random(seed)
    kinds = [DROP, LOST_ANSWER, UNAVAILABLE, CUT, late(1.0), late(40.0)]

    def plan(call: str, key: str) -> Fault | None:
        return chance.choice(kinds) if chance.random() < fault_rate else None

    with TemporaryDirectory() as folder:
        store = PagedStore()
        clock = FakeClock()
        faults = Faults(clock, plan=plan)
        faulty = FaultyStore(store, faults)
        log = Path(folder) / "stdout"
        log.touch()
        ships = shipper(faulty, log)
        for move, size in moves:
            with suppress(StoreError):
                if move == "append":
                    append(log, chance.randbytes(size))
                elif move == "restart":
                    ships = shipper(faulty, log)
                elif move == "finish":
                    ships.finish()
                else:
                    ships.ship(flush=move == "flush")
            assert log.read_bytes().startswith(read(store))
            assert_right_until_it_fails(faulty, log)
        written = log.read_bytes()
        assert shipper(store, log).finish() == {"stdout": len(written)}
        clock.advance(100.0)
        faults.arrive()
        assert read(store) == written
        assert all(0 < size <= 64 for size in sizes(store))
        assert len(sizes(store)) <= len(written) // 64 + 8


def assert_right_until_it_fails(store: Store, log: Path) -> None:
    seen = b""
    with suppress(StoreError):
        for data in read_log(store, KEYS, "stdout"):
            seen += data
    assert log.read_bytes().startswith(seen)
