"""Eight agents and many tasks over S3 and SQS, and agents that are killed: `make thousands`."""

import os
import random
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import pytest

from faults.lab import Measured, Stopwatch
from fleet.lab import FleetLab, Labs

TASKS = int(os.environ.get("SIMAGENT_TEST_FLEET_TASKS") or 60)
SEED = int(os.environ.get("SIMAGENT_TEST_FLEET_SEED") or time.time())
TIMES = {
    "lease_ttl": 40.0,
    "renew_every": 10.0,
    "heartbeat_every": 4.0,
    "bell_visibility": 15.0,
    "bell_extend": 5.0,
    "sweep_every": 20.0,
    "ring_after": 20.0,
}
AGENTS = 8
SLOTS = 2
KILLED = 2
AT_ONCE = 4
LONGEST = 300.0 + 4.0 * TASKS


@pytest.mark.timeout(2 * LONGEST)
def test_each_task_ends_once_though_agents_are_killed(labs: Labs, measured: Measured) -> None:
    """One of those killed comes back to what it had begun, the other when all is over."""
    dice = random.Random(SEED)
    with labs(watch_every=10.0, **TIMES) as lab:
        with ThreadPoolExecutor(AT_ONCE) as pool:
            tasks = list(pool.map(lambda _: lab.task(("quick", 1.0)), range(TASKS)))
        names = [f"agent-{number}" for number in range(AGENTS)]
        ended, watch = Ended(lab), Stopwatch()
        agents = {name: lab.start(name, slots=SLOTS, direct=True) for name in names}
        for number, name in enumerate(dice.sample(names, KILLED), 1):
            share = len(tasks) * number / (KILLED + 2) * dice.uniform(0.7, 1.0)
            lab.until(lambda least=share: ended() >= least, LONGEST)  # type: ignore[misc]
            agents[name].kill()
            agents[name].wait()
            if number == 1:
                lab.start(name, slots=SLOTS, direct=True)
        lab.until(lambda: ended() == len(tasks), LONGEST)
        watch.stop()
        lab.start(
            name, slots=SLOTS, direct=True
        )  # what it was at is another's, and is cleared away
        lab.check(seconds=LONGEST)
        states = Counter(task.state["status"] for task in lab.recorder().tasks())
        assert states == {"succeeded": TASKS}
    rate = TASKS / watch.stop()
    print(f"seed {SEED}: {TASKS} tasks, {rate:.1f} a second")
    what = f"{AGENTS} agents, {TASKS} tasks, {KILLED} agents killed: the first start → all ended"
    measured(what, watch)


class Ended:
    """Counts the tasks that are over, whose markers have gone; asks once a second at most."""

    def __init__(self, lab: FleetLab) -> None:
        self._lab = lab
        self._asked = 0.0
        self._count = 0

    def __call__(self) -> int:
        if time.monotonic() - self._asked > 1.0:
            self._count = TASKS - len(self._lab.engines.markers())
            self._asked = time.monotonic()
        return self._count
