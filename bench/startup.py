"""How long `simagent --help` takes."""

import statistics
import subprocess
import sys
import time

from bench.report import Result, show

_RUNS = 15


def run() -> list[Result]:
    """Compare it with a Python that does nothing."""
    helps = _median([sys.executable, "-m", "simagent", "--help"])
    nothing = _median([sys.executable, "-c", "pass"])
    return [
        Result(
            "simagent --help", "≤ 250 ms", f"{helps * 1e3:.0f} ms", helps / nothing, helps <= 0.25
        )
    ]


def _median(argv: list[str]) -> float:
    times = []
    for _ in range(_RUNS):
        began = time.perf_counter()
        subprocess.run(argv, check=True, stdout=subprocess.DEVNULL)
        times.append(time.perf_counter() - began)
    return statistics.median(times)


if __name__ == "__main__":
    show(run())
