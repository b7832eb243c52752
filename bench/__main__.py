"""Run all benchmarks, or those named, and print the budget table."""

import importlib
import sys

from bench.report import Result, show

NAMES = (
    "startup",
    "latency",
    "follow",
    "list",
    "slowdown",
    "logs",
    "archive",
    "idle",
    "fleet_throughput",
    "apptainer",
    "docker_steps",
    "mpi",
    "preempt",
    "s3",
)


def main() -> int:
    results: list[Result] = []
    for name in sys.argv[1:] or NAMES:
        print(f"{name} …", file=sys.stderr, flush=True)
        results += importlib.import_module(f"bench.{name}").run()
    show(results)
    return 0 if all(result.ok for result in results) else 1


if __name__ == "__main__":
    sys.exit(main())
