"""Samples of what the host and the task use. One flat JSON object a sample.

Rates are means since the sample before, None in the first one. What this host does not tell is
None, too.
"""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import psutil

from simagent.ports.clock import Clock
from simagent.ports.owners import as_owner

FORMAT = 1
Sample = dict[str, int | float | str | list[float] | None]
_PID_LIMIT = 4096

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class _ProcessTotals:
    """What one process has used since it began. Seconds and bytes."""

    cpu_seconds: float
    read_bytes: int
    write_bytes: int


@dataclass(frozen=True, slots=True)
class _HostTotals:
    """What the host has counted since it booted. Seconds and bytes; cores are (busy, all)."""

    cores: tuple[tuple[float, float], ...]
    disk_read: int | None
    disk_write: int | None
    net_received: int | None
    net_sent: int | None


@dataclass(frozen=True, slots=True)
class _Reading:
    """The counters at one time (seconds of the clock)."""

    at: float
    host: _HostTotals
    processes: Mapping[tuple[int, float], _ProcessTotals]


class Sampler:
    """Samples the host and the processes that ``pids`` lists.

    ``workdir`` is the folder whose file system's free space is told. A sample takes about a
    millisecond and 0.1 ms for each process. Not thread-safe.
    """

    def __init__(
        self, *, pids: Callable[[], list[int]], workdir: Path, host: str, clock: Clock
    ) -> None:
        self._pids = pids
        self._workdir = workdir
        self._host = host
        self._clock = clock
        self._before: _Reading | None = None
        self._processes: dict[int, psutil.Process] = {}

    def sample(self) -> Sample:
        """Take a sample. Processes that end meanwhile are left out."""
        usage, totals = self._read_processes()
        now = _Reading(self._clock.now(), _read_host(), totals)
        before, self._before = self._before, now
        memory = psutil.virtual_memory()
        load = os.getloadavg()
        return {
            "format": FORMAT,
            "time": round(self._clock.wall(), 3),
            "host": self._host,
            "cpu_percent": _core_percents(before, now),
            "load_1": round(load[0], 2),
            "load_5": round(load[1], 2),
            "load_15": round(load[2], 2),
            "memory_used_bytes": memory.total - memory.available,
            "memory_available_bytes": memory.available,
            "disk_free_bytes": _disk_free(self._workdir),
            **_host_rates(before, now),
            **_task_rates(before, now),
            **usage,
        }

    def _read_processes(
        self,
    ) -> tuple[dict[str, int], dict[tuple[int, float], _ProcessTotals]]:
        totals: dict[tuple[int, float], _ProcessTotals] = {}
        rss = threads = 0
        pids = self._pids()[:_PID_LIMIT]
        self._processes = {pid: self._processes[pid] for pid in pids if pid in self._processes}
        for pid in pids:
            try:
                process = self._process(pid)
                with process.oneshot():
                    cpu = process.cpu_times()
                    process_rss = process.memory_info().rss
                    process_threads = process.num_threads()
                    read, written = _io_bytes(process)
            except psutil.Error:
                self._processes.pop(pid, None)
                continue
            rss += process_rss
            threads += process_threads
            totals[pid, process.create_time()] = _ProcessTotals(
                cpu.user + cpu.system, read, written
            )
        usage = {
            "task_memory_bytes": rss,
            "task_threads": threads,
            "task_processes": len(totals),
        }
        return usage, totals

    def _process(self, pid: int) -> psutil.Process:
        known = self._processes.get(pid)
        if known is None or not known.is_running():
            known = self._processes[pid] = psutil.Process(pid)
        return known


def _io_bytes(process: psutil.Process) -> tuple[int, int]:
    """Give what a process read and wrote; 0 where we may not know."""
    try:
        with as_owner(Path(f"/proc/{process.pid}")):
            counters = process.io_counters()
    except (psutil.AccessDenied, NotImplementedError, OSError):
        return 0, 0
    return counters.read_bytes, counters.write_bytes


def _told(read: Callable[[], T]) -> T | None:
    """Give what the host tells; None where it has no such file, as in some containers."""
    try:
        return read()
    except (NotImplementedError, OSError):
        return None


def _read_host() -> _HostTotals:
    disk = _told(lambda: psutil.disk_io_counters(nowrap=False))
    networks = _told(lambda: psutil.net_io_counters(pernic=True, nowrap=False)) or {}
    outside = [counters for name, counters in networks.items() if name != "lo"]
    return _HostTotals(
        cores=tuple(
            (sum(core[:8]) - core.idle - getattr(core, "iowait", 0.0), sum(core[:8]))
            for core in psutil.cpu_times(percpu=True)
        ),
        disk_read=disk.read_bytes if disk else None,
        disk_write=disk.write_bytes if disk else None,
        net_received=sum(counters.bytes_recv for counters in outside) if outside else None,
        net_sent=sum(counters.bytes_sent for counters in outside) if outside else None,
    )


def _disk_free(folder: Path) -> int | None:
    try:
        status = os.statvfs(folder)
    except OSError:
        return None
    return status.f_bavail * status.f_frsize


def _core_percents(before: _Reading | None, now: _Reading) -> list[float] | None:
    if before is None or len(before.host.cores) != len(now.host.cores):
        return None
    percents = []
    for (busy_then, all_then), (busy, all_) in zip(before.host.cores, now.host.cores, strict=True):
        share = (busy - busy_then) / (all_ - all_then) if all_ > all_then else 0.0
        percents.append(round(100 * min(max(share, 0.0), 1.0), 1))
    return percents


def _rate(then: float | None, now: float | None, seconds: float) -> float | None:
    if then is None or now is None or seconds <= 0:
        return None
    return round(max(0.0, now - then) / seconds, 1)


def _host_rates(before: _Reading | None, now: _Reading) -> dict[str, float | None]:
    seconds = now.at - before.at if before else 0.0
    then = before.host if before else now.host
    host = now.host
    return {
        "disk_read_bytes_per_second": _rate(then.disk_read, host.disk_read, seconds),
        "disk_write_bytes_per_second": _rate(then.disk_write, host.disk_write, seconds),
        "network_received_bytes_per_second": _rate(then.net_received, host.net_received, seconds),
        "network_sent_bytes_per_second": _rate(then.net_sent, host.net_sent, seconds),
    }


def _task_rates(before: _Reading | None, now: _Reading) -> dict[str, float | None]:
    """Give the rates of the whole tree: what began since the sample before counts from 0."""
    nothing = _ProcessTotals(0.0, 0, 0)
    cpu = 0.0
    read = written = 0
    for key, totals in now.processes.items():
        then = before.processes.get(key, nothing) if before else totals
        cpu += totals.cpu_seconds - then.cpu_seconds
        read += totals.read_bytes - then.read_bytes
        written += totals.write_bytes - then.write_bytes
    seconds = now.at - before.at if before else 0.0
    return {
        "task_cpu_percent": _rate(0, 100 * cpu, seconds),
        "task_read_bytes_per_second": _rate(0, read, seconds),
        "task_write_bytes_per_second": _rate(0, written, seconds),
    }
