"""Agents are killed at random while many short tasks run: `make chaos`."""

import os
import random
import threading
import time

import pytest

from faults.lab import PATIENCE, Lab, Measured, Stopwatch
from simagent.domain.keys import TaskKeys

SECONDS = float(os.environ.get("SIMAGENT_CHAOS_SECONDS") or 60)
SEED = int(os.environ.get("SIMAGENT_CHAOS_SEED") or time.time())
TASKS = 50
AGENTS = 3
KINDS = (
    (("known", 20.0), ("tick", 0.5)),
    (("tick", 2.0),),
    (("tick", 0.1), ("daemonise", 30.0), ("known", 200.0)),
    (("strange", 1.0),),
)


@pytest.mark.full
@pytest.mark.timeout(SECONDS + 5 * PATIENCE)
def test_random_kills(lab: Lab, measured: Measured) -> None:
    """Each agent is started again a moment later, as by systemd, or much later."""
    print(f"seed {SEED}")
    dice = random.Random(SEED)
    agents = {f"agent-{n}": lab.start(f"agent-{n}", slots=2, files=False) for n in range(AGENTS)}
    tasks: list[TaskKeys] = []
    end = time.monotonic() + SECONDS
    kills = 0
    while time.monotonic() < end:
        if len(tasks) < TASKS and dice.random() < 0.7:
            tasks.append(lab.task(*dice.choice(KINDS), max_attempts=100))
        name = dice.choice(list(agents))
        if agents[name].poll() is None:
            agents[name].kill()
            agents[name].wait()
            kills += 1
        threading.Event().wait(dice.uniform(0.1, 1.5))
        for each, process in agents.items():
            if process.poll() is not None and dice.random() < 0.6:
                agents[each] = lab.start(each, slots=2, files=False)
    watch = Stopwatch()
    for name, process in agents.items():
        if process.poll() is not None:
            lab.start(name, slots=2)
    for task in tasks:
        assert lab.finish(task).status == "succeeded"
    measured(f"chaos: {kills} kills under {len(tasks)} tasks: the last kill → all ended", watch)
    lab.check()
