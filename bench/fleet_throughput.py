"""Ten agents on one queue and store finish a thousand tiny tasks, each published exactly once."""

import re
import subprocess
import tempfile
import time
from collections import Counter
from pathlib import Path

from bench.fleet import agents, client, config, task
from bench.report import Result, show
from simagent.engines import open_store

_AGENTS = 10
_TASKS = 1000


def run() -> list[Result]:
    """Submit everything first, then let the agents loose."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        submitter = client(folder)
        spec = task("sh -c 'echo $SIMAGENT_TASK_ID'")
        tasks = [submitter.submit(spec, base=folder) for _ in range(_TASKS)]
        began = time.perf_counter()
        with agents(folder, _AGENTS):
            states = [submitter.wait(submitted) for submitted in tasks]
        seconds = time.perf_counter() - began
        first = sum(
            state.status == "succeeded" and state.epoch == 1 and len(state.attempts) == 1
            for state in states
        )
        once = sum(count == 1 for count in _published(folder).values())
    began = time.perf_counter()
    for _ in range(100):
        subprocess.run(["sh", "-c", "echo"], check=True, stdout=subprocess.DEVNULL)
    plain = (time.perf_counter() - began) / 100
    return [
        Result(
            f"{_AGENTS} agents, {_TASKS} tiny tasks",
            "each published exactly once",
            f"{once} of {_TASKS}, {first} at epoch 1, {_TASKS / seconds:.0f} tasks/s",
            seconds / _TASKS / plain,
            once == first == _TASKS,
        )
    ]


def _published(folder: Path) -> Counter[str]:
    """Count the manifests of each task, whatever its state says: one an attempt that published."""
    keys = (entry.key for entry in open_store(config(folder)).scan("p/"))
    found = (re.fullmatch(r"p/[^/]+/tasks/([^/]+)/a/[0-9]+/manifest\.json", key) for key in keys)
    return Counter(match[1] for match in found if match)


if __name__ == "__main__":
    show(run())
