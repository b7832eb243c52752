"""How soon a submitted task runs, and how long a task takes that does nothing."""

import statistics
import tempfile
import time
from pathlib import Path

from bench.fleet import agents, client, task
from bench.report import Result, show

_TASKS = 100


def run() -> list[Result]:
    """Submit tasks one after the other to an idle agent."""
    starts, wholes = [], []
    with tempfile.TemporaryDirectory() as name, agents(Path(name)):
        submitter = client(Path(name))
        for number in range(_TASKS + 5):
            began = time.time()
            submitted = submitter.submit(task("true"), base=Path(name))
            returned = time.time()
            state = submitter.wait(submitted)
            started = state.attempts[-1].steps[0].started
            assert started is not None
            assert state.ended_at is not None
            if number >= 5:  # the first ones wake a cold agent
                starts.append(started - returned)
                wholes.append(state.ended_at - began)
    shell = _plain()
    start50, start99 = _percentiles(starts)
    whole50, whole99 = _percentiles(wholes)
    return [
        Result(
            "submit returned → command starts",
            "p50 ≤ 50 ms, p99 ≤ 200 ms",
            f"p50 {start50 * 1e3:.0f} ms, p99 {start99 * 1e3:.0f} ms",
            start50 / shell,
            start50 <= 0.050 and start99 <= 0.200,
        ),
        Result(
            "whole task `true`",
            "≤ 150 ms",
            f"p50 {whole50 * 1e3:.0f} ms, p99 {whole99 * 1e3:.0f} ms",
            whole50 / shell,
            whole50 <= 0.150,
        ),
    ]


def _plain() -> float:
    """Time `true` started by hand: what the ratio is against."""
    import subprocess

    times = []
    for _ in range(50):
        began = time.perf_counter()
        subprocess.run(["true"], check=True)
        times.append(time.perf_counter() - began)
    return statistics.median(times)


def _percentiles(values: list[float]) -> tuple[float, float]:
    ordered = sorted(values)
    return statistics.median(ordered), ordered[int(len(ordered) * 0.99) - 1]


if __name__ == "__main__":
    show(run())
