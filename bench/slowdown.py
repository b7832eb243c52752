"""What the agent costs a simulation that computes: pairs of runs with and without it."""

import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from bench.fleet import agents, client, task
from bench.report import Result, show

_PAIRS = 7
_LOOP = "sum(i * i for i in range(40_000_000))"


def run() -> list[Result]:
    """Compare the seconds of the same loop, run by hand and as a task."""
    ratios = []
    with tempfile.TemporaryDirectory() as name, agents(Path(name)):
        submitter = client(Path(name))
        spec = task(f"{sys.executable} -c '{_LOOP}'")
        for _ in range(_PAIRS):
            began = time.perf_counter()
            subprocess.run([sys.executable, "-c", _LOOP], check=True)
            plain = time.perf_counter() - began
            state = submitter.wait(submitter.submit(spec, base=Path(name)))
            seconds = state.attempts[-1].steps[0].seconds
            assert seconds is not None
            ratios.append(seconds / plain)
    ratio = statistics.median(ratios)
    return [
        Result(
            "simulator slow-down, CPU-bound",
            "≤ 1 %",
            f"{(ratio - 1) * 100:+.1f} %",
            ratio,
            ratio <= 1.01,
        )
    ]


if __name__ == "__main__":
    show(run())
