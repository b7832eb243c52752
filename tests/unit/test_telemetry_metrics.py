"""Samples of a real host, on disk, in the store and as a table."""

import csv
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from fakes.clock import FakeClock
from fakes.faults import LOST_ANSWER, Faults, FaultyStore
from fakes.store import MemoryStore
from simagent.domain.keys import AttemptKeys
from simagent.ports.store import StoreUnavailableError
from simagent.telemetry.metrics import Sample, Sampler
from simagent.telemetry.segments import COLUMNS, MetricsLog, read_samples, write_csv

KEYS = AttemptKeys("p/default/tasks/t/a/1/")


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def store() -> MemoryStore:
    return MemoryStore()


@pytest.fixture
def child() -> Iterator["subprocess.Popen[bytes]"]:
    """A process that uses CPU and memory once told to, and then waits."""
    program = "import sys; input(); x = bytes(50_000_000); [i * i for i in range(2_000_000)]"
    program += "; print(flush=True); input()"
    with subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        yield process
        process.kill()


def number(sample: Sample, name: str) -> float:
    value = sample[name]
    assert isinstance(value, int | float), name
    return value


def test_samples_tell_what_the_processes_use(
    tmp_path: Path, clock: FakeClock, child: "subprocess.Popen[bytes]"
) -> None:
    assert child.stdin is not None
    assert child.stdout is not None
    sampler = Sampler(pids=lambda: [child.pid], workdir=tmp_path, host="h", clock=clock)
    first = sampler.sample()
    child.stdin.write(b"\n")
    child.stdin.flush()
    child.stdout.readline()
    clock.advance(1)
    second = sampler.sample()
    assert first["task_cpu_percent"] is None
    assert first["cpu_percent"] is None
    assert number(second, "task_cpu_percent") > 1
    assert number(second, "task_memory_bytes") > number(first, "task_memory_bytes") + 10**6
    assert number(second, "task_processes") == 1
    assert number(second, "task_threads") >= 1
    cores = second["cpu_percent"]
    assert isinstance(cores, list)
    assert len(cores) == os.cpu_count()
    assert all(0 <= percent <= 100 for percent in cores)
    assert number(second, "disk_free_bytes") > 0
    assert number(second, "memory_available_bytes") > 0


@pytest.mark.parametrize("missing", ["disk_io_counters", "net_io_counters"])
def test_what_a_host_does_not_tell_is_none(
    tmp_path: Path, clock: FakeClock, monkeypatch: pytest.MonkeyPatch, missing: str
) -> None:
    def read(**_options: object) -> None:
        error = NotImplementedError if missing.startswith("disk") else FileNotFoundError
        raise error("not in this container")

    monkeypatch.setattr(psutil, missing, read)
    sampler = Sampler(pids=lambda: [os.getpid()], workdir=tmp_path, host="h", clock=clock)
    sampler.sample()
    clock.advance(1)
    sample = sampler.sample()
    name = "disk_read" if missing.startswith("disk") else "network_received"
    assert sample[f"{name}_bytes_per_second"] is None
    assert number(sample, "task_memory_bytes") > 0


def test_processes_that_are_gone_are_left_out(tmp_path: Path, clock: FakeClock) -> None:
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    pids = [gone.pid, os.getpid()]
    sampler = Sampler(pids=lambda: pids, workdir=tmp_path / "gone", host="h", clock=clock)
    sample = sampler.sample()
    assert sample["task_processes"] == 1
    assert sample["disk_free_bytes"] is None


def test_a_process_that_began_since_the_last_sample_counts_whole(
    tmp_path: Path, clock: FakeClock, child: "subprocess.Popen[bytes]"
) -> None:
    assert child.stdin is not None
    assert child.stdout is not None
    pids: list[int] = []
    sampler = Sampler(pids=lambda: pids, workdir=tmp_path, host="h", clock=clock)
    sampler.sample()
    child.stdin.write(b"\n")
    child.stdin.flush()
    child.stdout.readline()
    clock.advance(1)
    pids.append(child.pid)
    assert number(sampler.sample(), "task_cpu_percent") > 1
    pids.clear()
    clock.advance(1)
    assert sampler.sample()["task_cpu_percent"] == 0


def sample_of(index: int) -> Sample:
    return {"format": 1, "time": index, "host": "h", "cpu_percent": [1.5, 2.5]}


def times(store: MemoryStore) -> list[object]:
    return [sample["time"] for sample in read_samples(store, KEYS)]


def test_segments_hold_each_sample_once_also_when_answers_are_lost(
    store: MemoryStore, tmp_path: Path
) -> None:
    path = tmp_path / "metrics.jsonl"
    faults = Faults(FakeClock())
    faulty = FaultyStore(store, faults)
    log = MetricsLog(faulty, KEYS, path, segment_bytes=200)
    for index in range(10):
        log.append(sample_of(index))
        if index == 3:
            faults.plan = lambda call, key: LOST_ANSWER if call == "put" else None
            with pytest.raises(StoreUnavailableError):
                log.ship()
            faults.plan = lambda call, key: None
        if index == 5:
            log.ship()
        if index == 7:
            log = MetricsLog(faulty, KEYS, path, segment_bytes=200)
    log.ship()
    assert log.ship() == 0
    assert times(store) == list(range(10))
    assert all(entry.size <= 200 for entry in store.scan(KEYS.metrics))
    assert len(list(read_samples(store, KEYS, first=1))) < 10


def test_a_line_that_a_crash_tore_is_removed_and_never_shipped(
    store: MemoryStore, tmp_path: Path
) -> None:
    path = tmp_path / "metrics.jsonl"
    log = MetricsLog(store, KEYS, path)
    log.append(sample_of(0))
    with path.open("ab") as file:
        file.write(b'{"time":1,"ho')
    log.ship()
    log = MetricsLog(store, KEYS, path)
    log.append(sample_of(2))
    log.ship()
    assert times(store) == [0, 2]
    assert b"ho{" not in path.read_bytes()


def test_samples_after_a_power_cut_are_shipped(store: MemoryStore, tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    log = MetricsLog(store, KEYS, path)
    for index in range(4):
        log.append(sample_of(index))
    log.ship()
    path.write_bytes(path.read_bytes().splitlines(keepends=True)[0])
    log = MetricsLog(store, KEYS, path)
    log.ship()
    log.append(sample_of(4))
    log.ship()
    assert times(store) == [0, 1, 2, 3, 4]


def test_there_is_an_end_to_how_much_is_kept(store: MemoryStore, tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    log = MetricsLog(store, KEYS, path, max_bytes=100)
    assert [log.append(sample_of(0)) for _ in range(3)] == [True, False, False]
    assert path.stat().st_size <= 100


def test_the_table_has_a_stable_header_and_a_column_for_each_core(
    tmp_path: Path, clock: FakeClock
) -> None:
    path, table = tmp_path / "metrics.jsonl", tmp_path / "system_metrics.csv"
    sampler = Sampler(pids=lambda: [os.getpid()], workdir=tmp_path, host="h,1", clock=clock)
    log = MetricsLog(MemoryStore(), KEYS, path)
    log.append(sampler.sample())
    with path.open("ab") as file:
        file.write(b"garbage\n")
    clock.advance(1)
    log.append(sampler.sample())
    assert write_csv(path, table) == 2
    with table.open(newline="") as file:
        rows = list(csv.DictReader(file))
    cores = [f"cpu_{core}_percent" for core in range(os.cpu_count() or 1)]
    assert list(rows[0]) == [*COLUMNS, *cores]
    assert rows[0]["host"] == "h,1"
    assert rows[0]["cpu_0_percent"] == ""
    assert 0 <= float(rows[1]["cpu_0_percent"]) <= 100
    # Every column but the cores' is a field of the samples.
    assert set(COLUMNS) == set(sampler.sample()) - {"format", "cpu_percent"}
