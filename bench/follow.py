"""How soon a printed line is seen by somebody who follows the log."""

import statistics
import sys
import tempfile
import time
from pathlib import Path

from bench.fleet import agents, client, task
from bench.report import Result, show

_LINES = 50
_EVERY = 0.11
_PROGRAM = (
    "import time\n"
    f"for _ in range({_LINES}):\n"
    "    print(time.time(), flush=True)\n"
    f"    time.sleep({_EVERY})\n"
)


def run() -> list[Result]:
    """Let a command print the time, and compare it with the time at which each line arrives."""
    lags = []
    with tempfile.TemporaryDirectory() as name, agents(Path(name)):
        follower = client(Path(name))
        program = Path(name) / "clock.py"
        program.write_text(_PROGRAM)
        submitted = follower.submit(task(f"{sys.executable} {program}"), base=Path(name))
        rest = b""
        for piece in follower.logs(submitted, ["stdout"], follow=True):
            now = time.time()
            *lines, rest = (rest + piece.data).split(b"\n")
            lags += [now - float(line) for line in lines]
    worst, median = max(lags), statistics.median(lags)
    return [
        Result(
            "line written → shown by logs -f",
            "≤ 1 s",
            f"p50 {median * 1e3:.0f} ms, worst {worst * 1e3:.0f} ms",
            median / _EVERY,
            worst <= 1.0,
        )
    ]


if __name__ == "__main__":
    show(run())
