"""What log shipping and sampling cost a program that prints a million lines.

The same program, its output appended to a file, runs with and without a telemetry pump beside
it, in pairs and in turns; medians count.
"""

import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

from bench.report import Result, show
from simagent.domain.keys import AttemptKeys
from simagent.ports.clock import SystemClock
from simagent.stores.directory import DirectoryStore
from simagent.telemetry.log_reader import log_size
from simagent.telemetry.logs import LogShipper
from simagent.telemetry.metrics import Sampler
from simagent.telemetry.pump import LOCAL_PACE, TelemetryPump
from simagent.telemetry.segments import MetricsLog

PAIRS = 15
SAMPLES = 200
LINES = 1_000_000
PROGRAM = f"""
for step in range({LINES}):
    print(step, step * 0.001, 300.0 + step % 7, -1.5 * step, 0.25)
"""
KEYS = AttemptKeys("p/default/tasks/bench/a/1/")


@dataclass(frozen=True, slots=True)
class Cost:
    """What one run of the program took, in seconds; ``beside`` is the CPU used beside it."""

    wall: float
    cpu: float
    beside: float


def print_lines(log: Path) -> float:
    """Run the program, its output to a file, and return its CPU seconds."""
    with log.open("ab") as file:
        child = subprocess.Popen([sys.executable, "-I", "-c", PROGRAM], stdout=file)
        _, status, usage = os.wait4(child.pid, 0)
    assert status == 0
    return usage.ru_utime + usage.ru_stime


@contextmanager
def shipping(folder: Path) -> Iterator[None]:
    """Ship the folder's log to a local store meanwhile; what is left when it ends, too."""
    clock, crashes = SystemClock(), list[Exception]()
    store = DirectoryStore(folder / "store")
    pump = TelemetryPump(
        logs=LogShipper(store, KEYS, {"stdout": folder / "stdout"}),
        metrics=MetricsLog(store, KEYS, folder / "metrics.jsonl"),
        sampler=Sampler(pids=lambda: [os.getpid()], workdir=folder, host="bench", clock=clock),
        clock=clock,
        on_crash=crashes.append,
        pace=LOCAL_PACE,
    )
    pump.start()
    yield
    assert pump.stop(clock.now() + 60), crashes
    assert log_size(store, KEYS, "stdout") == (folder / "stdout").stat().st_size


def nothing(_folder: Path) -> AbstractContextManager[None]:
    return nullcontext()


def measure(beside: Callable[[Path], AbstractContextManager[None]]) -> Cost:
    with tempfile.TemporaryDirectory() as name:
        own = time.process_time()
        with beside(Path(name)):
            begin = time.perf_counter()
            cpu = print_lines(Path(name) / "stdout")
            wall = time.perf_counter() - begin
        return Cost(wall, cpu, time.process_time() - own)


def sample_milliseconds() -> float:
    clock = SystemClock()
    sampler = Sampler(pids=lambda: [os.getpid()], workdir=Path.cwd(), host="bench", clock=clock)
    times = []
    for _ in range(SAMPLES):
        begin = time.perf_counter()
        sampler.sample()
        times.append(time.perf_counter() - begin)
    return 1000 * statistics.median(times)


def run() -> list[Result]:
    measure(nothing)
    pairs = []
    for number in range(PAIRS):
        if number % 2:
            shipped, plain = measure(shipping), measure(nothing)
        else:
            plain, shipped = measure(nothing), measure(shipping)
        pairs.append((plain, shipped))
    plain_wall = statistics.median(plain.wall for plain, _ in pairs)
    shipped_wall = statistics.median(shipped.wall for _, shipped in pairs)
    slower = statistics.median(shipped.wall / plain.wall for plain, shipped in pairs)
    beside = statistics.median(
        (shipped.beside - plain.beside) / shipped.cpu for plain, shipped in pairs
    )
    sample = sample_milliseconds()
    return [
        Result(
            "1M lines printed, wall time",
            "<= 3 % over output to a file",
            f"{shipped_wall:.3f} s, plain {plain_wall:.3f} s",
            slower,
            slower <= 1.03,
        ),
        Result(
            "1M lines printed, CPU of shipping",
            "no budget: share of the program's CPU",
            f"{100 * beside:.1f} %",
            beside,
            True,
        ),
        Result("one sample", "<= 5 ms", f"{sample:.2f} ms", sample / 5, sample <= 5),
    ]


if __name__ == "__main__":
    show(run())
