"""How soon a printed line is seen by somebody who follows the log, here and over S3."""

import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from bench import aws
from bench.fleet import Engines, agents, client, task
from bench.report import Result, show

_NOTICED = 8.0
"""Seconds after which the agent knows of a follower, and what it had is shipped."""
_PROGRAM = (
    "import sys, time\n"
    "for _ in range(int(sys.argv[1])):\n"
    "    print(time.time(), flush=True)\n"
    "    time.sleep(float(sys.argv[2]))\n"
)


def run() -> list[Result]:
    """Follow from the start on a folder and on S3, and from amid a task on S3."""
    with tempfile.TemporaryDirectory() as name:
        lags = [lag for lag, _ in _followed(Path(name), 50, 0.11)]
    results = [_result("line written → shown by logs -f", "≤ 1 s", lags, 0.11, 1.0)]
    with tempfile.TemporaryDirectory() as name, aws.engines() as engines:
        seen = list(_followed(Path(name), 120, 0.37, engines))
        results += _remote("from the start", seen, 0.37)
    with tempfile.TemporaryDirectory() as name, aws.engines() as engines:
        seen = list(_followed(Path(name), 120, 0.37, engines, late=25.0))
        results += _remote("from amid it", seen, 0.37)
    return results


def _remote(how: str, seen: list[tuple[float, float]], every: float) -> list[Result]:
    """Judge apart what comes until the agent has noticed that somebody follows."""
    first = min(at for lag, at in seen if lag < at)
    settled = [lag for lag, at in seen if at > first + _NOTICED]
    name = f"S3, followed {how}"
    return [
        _result(f"{name}: first line", "≤ 15 s", [first], every, 15.0),
        _result(f"{name}: then each line", "≤ 3 s", settled, every, 3.0),
    ]


def _followed(
    folder: Path, lines: int, every: float, engines: Engines | None = None, late: float = 0.0
) -> Iterator[tuple[float, float]]:
    """Let a command print the time; yield by how much each line is late, and when it came.

    The latter counts from when the task was submitted, or followed if that was later; so does the
    lateness of lines that were printed before.
    """
    program = folder / "clock.py"
    program.write_text(_PROGRAM)
    with agents(folder, engines=engines):
        follower = client(folder, engines)
        command = f"{sys.executable} {program} {lines} {every}"
        submitted = follower.submit(task(command), base=folder)
        time.sleep(late)
        began = time.time()
        rest = b""
        for piece in follower.logs(submitted, ["stdout"], follow=True):
            now = time.time()
            *complete, rest = (rest + piece.data).split(b"\n")
            for line in complete:
                yield now - max(began, float(line)), now - began


def _result(name: str, budget: str, lags: list[float], every: float, most: float) -> Result:
    worst, median = max(lags), statistics.median(lags)
    said = f"p50 {median:.2f} s, worst {worst:.2f} s"
    return Result(name, budget, said, median / every, worst <= most)


if __name__ == "__main__":
    show(run())
