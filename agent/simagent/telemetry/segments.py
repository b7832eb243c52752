"""Samples on disk first, then in the store as segments, at the end as a table."""

import csv
import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from simagent.domain.keys import AttemptKeys
from simagent.ports.store import PreconditionError, Store, StoreUnavailableError
from simagent.telemetry.metrics import Sample

_PASS_SEGMENTS = 16
_CORES = "cpu_percent"

COLUMNS = (
    "time",
    "host",
    "load_1",
    "load_5",
    "load_15",
    "memory_used_bytes",
    "memory_available_bytes",
    "disk_free_bytes",
    "disk_read_bytes_per_second",
    "disk_write_bytes_per_second",
    "network_received_bytes_per_second",
    "network_sent_bytes_per_second",
    "task_cpu_percent",
    "task_memory_bytes",
    "task_threads",
    "task_processes",
    "task_read_bytes_per_second",
    "task_write_bytes_per_second",
)
"""The columns of system_metrics.csv; ``cpu_<core>_percent`` of each core follow."""


class MetricsLog:
    """The attempt's samples: a line each in the file ``path``, shipped in segments.

    The segments together are the file, so the sum of their sizes is where shipping goes on.
    Samples beyond ``max_bytes`` are left out. Calls raise `StoreError` or OSError and can then
    simply be repeated. Not thread-safe.
    """

    def __init__(
        self,
        store: Store,
        keys: AttemptKeys,
        path: Path,
        *,
        segment_bytes: int = 2**20,
        max_bytes: int = 2**30,
    ) -> None:
        self._store = store
        self._keys = keys
        self._path = path
        self._segment_bytes = segment_bytes
        self._max_bytes = max_bytes
        self._shipped: tuple[int, int] | None = None
        self._torn = True

    def append(self, sample: Sample) -> bool:
        """Write a sample to disk. False: there is no room for more."""
        line = json.dumps(sample, separators=(",", ":")).encode() + b"\n"
        with self._path.open("ab") as file:
            if self._torn:
                self._cut_torn_line()
            if file.seek(0, os.SEEK_END) + len(line) > self._max_bytes:
                return False
            self._torn = True
            file.write(line)
        self._torn = False
        return True

    def ship(self) -> int:
        """Upload the samples that are not in the store yet; return their bytes."""
        if not self._path.exists():
            return 0
        moved = 0
        with self._path.open("rb") as file:
            for _ in range(_PASS_SEGMENTS):
                sequence, offset = self._position(file.seek(0, os.SEEK_END))
                file.seek(offset)
                data = file.read(self._segment_bytes)
                data = data[: data.rfind(b"\n") + 1]
                if not data:
                    break
                self._shipped = None
                self._put(self._keys.metrics_segment(sequence), data)
                self._shipped = (sequence + 1, offset + len(data))
                moved += len(data)
        return moved

    def _put(self, key: str, data: bytes) -> None:
        try:
            self._store.put(key, data, if_absent=True)
        except PreconditionError as error:
            # One that was given up on has arrived, perhaps with fewer samples: it counts.
            raise StoreUnavailableError(f"{key} is there already") from error

    def _position(self, size: int) -> tuple[int, int]:
        """Tell the next segment's number and where in the file it begins.

        A file shorter than its segments lost its end in a power cut: the segments are kept.
        """
        if self._shipped is None:
            sequence, offset = 0, 0
            for entry in self._store.scan(self._keys.metrics):
                sequence += 1
                offset += entry.size
            self._shipped = (sequence, min(offset, size))
        return self._shipped

    def _cut_torn_line(self) -> None:
        """Remove an unfinished last line, which a crash or a full disk left and nobody shipped."""
        with self._path.open("r+b") as file:
            end = file.seek(0, os.SEEK_END)
            begin = max(0, end - 2**20)
            file.seek(begin)
            file.truncate(begin + file.read(end - begin).rfind(b"\n") + 1)


def read_samples(store: Store, keys: AttemptKeys, *, first: int = 0) -> Iterator[Sample]:
    """Yield an attempt's samples from the store, from segment number ``first`` on.

    Raises `StoreError`.
    """
    after = keys.metrics_segment(first - 1) if first > 0 else ""
    for entry in store.scan(keys.metrics, after=after):
        yield from parse_samples(store.get(entry.key).data.splitlines())


def parse_samples(lines: Iterable[bytes]) -> Iterator[Sample]:
    """Yield the samples of JSON lines, without those that cannot be read."""
    for line in lines:
        try:
            sample = json.loads(line)
        except ValueError:
            continue
        if isinstance(sample, dict):
            yield sample


def write_csv(source: Path, target: Path) -> int:
    """Write the samples of the file ``source`` as a table and return the number of its rows.

    The header is `COLUMNS`, then a column for each core. Raises OSError; ``target`` is then
    as it was.
    """
    temporary = target.with_name(target.name + ".tmp")
    with source.open("rb") as lines:
        cores = max((len(_cores(sample)) for sample in parse_samples(lines)), default=0)
        lines.seek(0)
        with temporary.open("w", newline="", encoding="utf-8") as file:
            table = csv.writer(file, lineterminator="\n")
            table.writerow([*COLUMNS, *(f"cpu_{core}_percent" for core in range(cores))])
            rows = 0
            for sample in parse_samples(lines):
                percents: list[float | None] = [*_cores(sample)]
                percents += [None] * (cores - len(percents))
                table.writerow([*(sample.get(name) for name in COLUMNS), *percents])
                rows += 1
    temporary.replace(target)
    return rows


def _cores(sample: Sample) -> list[float]:
    percents = sample.get(_CORES)
    return percents if isinstance(percents, list) else []
