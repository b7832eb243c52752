"""Ten agents on one queue and store finish a thousand tiny tasks, each published exactly once."""

import subprocess
import tempfile
import time
from pathlib import Path

from bench.fleet import agents, client, task
from bench.report import Result, show

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
        once = sum(
            state.status == "succeeded" and state.epoch == 1 and len(state.attempts) == 1
            for state in states
        )
    began = time.perf_counter()
    for _ in range(100):
        subprocess.run(["sh", "-c", "echo"], check=True, stdout=subprocess.DEVNULL)
    plain = (time.perf_counter() - began) / 100
    return [
        Result(
            f"{_AGENTS} agents, {_TASKS} tiny tasks",
            "each published exactly once",
            f"{once} of {_TASKS} at epoch 1, {_TASKS / seconds:.0f} tasks/s",
            seconds / _TASKS / plain,
            once == _TASKS,
        )
    ]


if __name__ == "__main__":
    show(run())
