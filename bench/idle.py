"""What an idle agent costs."""

import tempfile
import time
from pathlib import Path

import psutil

from bench.fleet import agents, client, task
from bench.report import Result, show

_SECONDS = 30.0


def run() -> list[Result]:
    """Watch an agent that has run a task and has nothing more to do."""
    with tempfile.TemporaryDirectory() as name, agents(Path(name)) as processes:
        submitter = client(Path(name))
        submitter.wait(submitter.submit(task("true"), base=Path(name)))
        time.sleep(2)  # what the task left to do is not idleness
        agent = psutil.Process(processes[0].pid)
        before = sum(agent.cpu_times()[:2])
        time.sleep(_SECONDS)
        share = (sum(agent.cpu_times()[:2]) - before) / _SECONDS
        rss = agent.memory_info().rss / 1e6
    return [
        Result(
            "idle agent, CPU (ratio to the budget)",
            "≤ 0.3 % of a core",
            f"{share * 100:.2f} %",
            share / 0.003,
            share <= 0.003,
        ),
        Result(
            "idle agent, memory (ratio to the budget)",
            "≤ 80 MB",
            f"{rss:.0f} MB",
            rss / 80,
            rss <= 80,
        ),
    ]


if __name__ == "__main__":
    show(run())
