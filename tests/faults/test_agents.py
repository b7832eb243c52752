"""Agents that die, freeze, differ about the time, or are two where one was meant."""

import os
import signal
import sqlite3
import time
from contextlib import closing
from pathlib import Path

import pytest

from faults.lab import FULL, LONG, Lab, Measured, Stopwatch
from simagent.domain import bell
from simagent.domain.times import Times
from simagent.engines import open_queue
from simagent.queues.sqlite import SqliteQueue

TRANSITIONS = ("preparing", "running", "running again", "finalizing", "succeeded")


def test_kill_9_ten_times_in_one_run(lab: Lab, measured: Measured) -> None:
    task = lab.task(("until", LONG))
    process = lab.start()
    pid = lab.pid(task)
    times = []
    for _ in range(10):
        process.kill()
        process.wait()
        before = lab.client.state(task).lease
        watch = Stopwatch()
        process = lab.start()
        lab.until(lambda old=before: lab.client.state(task).lease != old)  # type: ignore[misc]
        watch.stop()
        times.append(watch)
        os.kill(pid, 0)
    lab.go()
    state = lab.finish(task)
    assert (state.status, state.epoch) == ("succeeded", 1)
    lab.check(calm=True)
    measured("`kill -9` of the agent while a command runs: started again → re-attached", *times)


@pytest.mark.parametrize("transition", TRANSITIONS if FULL else TRANSITIONS[3:4])
def test_an_agent_frozen_before_a_write_wakes_up_to_find_another_at_work(
    lab: Lab, measured: Measured, transition: str
) -> None:
    task = lab.task(("until", LONG))
    if transition != "running again":  # the command ends only after that
        lab.go()
    frozen = lab.start("frozen", point=f"store.put state.json:{transition} before", act="stop")
    lab.stopped(frozen)
    lab.go()
    before = lab.client.state(task).epoch
    watch = Stopwatch()
    lab.start("other")
    lab.until(lambda: lab.client.state(task).epoch > before)
    watch.stop()
    measured("an agent freezes or dies with its machine → another has its task", watch, scaled=True)
    frozen.send_signal(signal.SIGCONT)
    state = lab.finish(task)
    assert state.status == "succeeded"
    assert state.attempts[-1].agent == "other"
    lab.check()


def test_a_task_whose_bell_rings_twice_is_run_once(lab: Lab) -> None:
    task = lab.task(("tick", 1.0))
    for _ in range(3):
        open_queue(lab.config(), "default").send(bell.encode(task))
    for name in ("first", "second"):
        lab.start(name)
    assert lab.finish(task).epoch == 1
    lab.check(calm=True)


@pytest.mark.parametrize("hours", [pytest.param(-1, marks=pytest.mark.full), 1])
def test_an_agent_whose_clock_is_an_hour_off_takes_nothing_from_the_living(
    lab: Lab, hours: int
) -> None:
    tasks = [lab.task(("until", LONG)) for _ in range(2)]
    lab.start("right", slots=2)
    lab.start("wrong", slots=2, wall=hours * 3600.0)
    for task in tasks:
        lab.pid(task)
    more = [lab.task(("known", 1.0)) for _ in range(4)]
    for task in tasks:
        lab.until(lambda t=task: (s := lab.client.state(t)).lease and s.lease.beat >= 6)  # type: ignore[misc]
    lab.go()
    for task in tasks + more:
        assert lab.finish(task).status == "succeeded"
    lab.check(calm=True)


def test_the_only_agent_dies_and_its_bell_rings_again_for_the_next(
    lab: Lab, tmp_path: Path
) -> None:
    """With the real times; the queue's file tells when the bell is to ring."""
    with Lab(tmp_path / "real", **Times().model_dump()) as real:
        task = real.task(("until", LONG))
        process = real.start()
        real.pid(task)
        process.kill()
        process.wait()
        with closing(sqlite3.connect(real.folder / "queue.db")) as queue:
            ((visible_at,),) = queue.execute("SELECT visible_at FROM messages").fetchall()
        left = visible_at - time.clock_gettime(time.CLOCK_BOOTTIME)
        assert 0 < left <= 120.0
        real.go()
        real.start()
        real.finish(task)
        real.check(calm=True)


@pytest.mark.full
def test_a_task_that_kills_its_agents_ends_as_lost_and_lies_with_the_dead_letters(
    lab: Lab, measured: Measured
) -> None:
    task = lab.task(("assassin", LONG), max_attempts=2)
    watch = Stopwatch()
    victims = 0
    while True:
        victims += 1
        agent = lab.start(f"victim-{victims}")
        lab.until(lambda a=agent: lab.ended(task) or a.poll() is not None)  # type: ignore[misc]
        if lab.ended(task):
            break
        lab.forget(f"victim-{victims}")
    measured("poison: two agents killed by their task → `error: agent_lost`", watch, scaled=True)
    state = lab.finish(task)
    assert (state.status, state.reason) == ("error", "agent_lost")
    assert (state.counters.losses, victims) == (2, 3)
    queue = open_queue(lab.config(), "default")
    assert isinstance(queue, SqliteQueue)
    ((body, reason),) = lab.until(lambda: queue.dead_letters() or None)
    assert bell.parse(body) == task
    assert "agent_lost" in reason
    for name in ("victim-1", "victim-2"):  # the machines come back: what is left there is ended
        lab.start(name)
    lab.check()
