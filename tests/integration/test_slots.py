"""Tasks side by side on one agent."""

import os
import sys
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from fakes.aws import Moto
from fakes.rig import Rig, kill9
from fakes.s3 import Bucket
from simagent.domain.keys import TaskKeys
from simagent.ledger import Ledger
from simagent.ports.clock import Wake
from simagent.ports.store import Body, Entry
from simagent.queues.sqs_setup import create_queue
from simagent.stores.directory import DirectoryStore
from simagent.wiring.agent import open_context
from simagent.worker.context import Context
from simagent.worker.identity import alone_on
from simagent.worker.journal import Journal
from simagent.worker.orders import Detached
from simagent.worker.slots import Slots
from simagent.worker.threads import Threads

CORES = len(os.sched_getaffinity(0))
SHORT = {"hide_refused": 0.2}


@pytest.fixture
def rig(tmp_path: Path) -> Rig:
    return Rig(tmp_path, **SHORT)


def until_there(path: Path) -> str:
    """A command that says its pid and its cores, and runs until a file is there."""
    code = (
        "import os, pathlib, time\n"
        "print(os.getpid(), *sorted(os.sched_getaffinity(0)), flush=True)\n"
        f"while not pathlib.Path({str(path)!r}).exists(): time.sleep(0.02)"
    )
    return f'{sys.executable} -c "{code}"'


def said(rig: Rig, task: TaskKeys) -> list[int]:
    """Give the pid and the cores of a task, as soon as it has said them."""
    return [int(word) for word in rig.until(lambda: rig.log(task) or None).split()]


def how_many(rig: Rig, tasks: list[TaskKeys], status: str) -> int:
    return sum(rig.client.state(task).status == status for task in tasks)


class HeldStore(DirectoryStore):
    """A store that takes no outputs before it may."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.may = threading.Event()

    def upload(self, key: str, body: Body) -> Entry:
        assert self.may.wait(60)
        return super().upload(key, body)


def held(store: HeldStore) -> Callable[[Context], Context]:
    return lambda ctx: replace(ctx, ledger=Ledger(store))


def test_as_many_tasks_run_as_there_are_slots(rig: Rig, tmp_path: Path) -> None:
    go = tmp_path / "go"
    with rig.agent(slots=3):
        tasks = [rig.submit(until_there(go)) for _ in range(4)]
        rig.until(lambda: how_many(rig, tasks, "running") == 3)
        assert how_many(rig, tasks, "queued") == 1
        go.touch()
        states = [rig.finish(task) for task in tasks]
    assert {state.status for state in states} == {"succeeded"}
    assert {state.epoch for state in states} == {1}


def test_tasks_have_the_cores_that_they_asked_for_to_themselves(rig: Rig, tmp_path: Path) -> None:
    go = tmp_path / "go"
    with rig.agent(slots=CORES + 2):
        asked = {"cpus": 1, "memory": "100MB"}
        tasks = [rig.submit(until_there(go), resources=asked) for _ in range(CORES + 1)]
        rig.until(lambda: how_many(rig, tasks, "running") == CORES)
        running = [task for task in tasks if rig.running(task)]
        cores = [core for task in running for core in said(rig, task)[1:]]
        assert len(cores) == len(set(cores)) == CORES
        assert how_many(rig, tasks, "queued") == 1
        go.touch()
        assert {rig.finish(task).status for task in tasks} == {"succeeded"}


def test_a_task_that_did_not_fit_begins_as_soon_as_it_does(tmp_path: Path) -> None:
    rig = Rig(tmp_path, hide_refused=600.0, sweep_every=600.0)  # no bell comes again in this test
    small, large = tmp_path / "small", tmp_path / "large"
    with rig.agent(slots=3):
        first = rig.submit(until_there(small))
        rig.until(lambda: rig.running(first))
        second = rig.submit(until_there(large), resources={"cpus": CORES})
        third = rig.submit("true")
        assert rig.finish(third).status == "succeeded"  # it goes before one that does not fit
        assert rig.client.state(second).status == "queued"
        small.touch()
        rig.finish(first)
        rig.until(lambda: rig.running(second))
        large.touch()
        assert rig.finish(second).status == "succeeded"


def test_a_large_task_does_not_wait_behind_small_ones_for_ever(rig: Rig) -> None:
    with rig.agent(slots=2):
        wait = "sleep 0.3"
        small = [rig.submit(wait, resources={"cpus": 1}) for _ in range(4)]
        rig.until(lambda: how_many(rig, small, "running"))
        large = rig.submit("true", resources={"cpus": CORES})
        for _ in range(200):
            if rig.ended(large):
                break
            while how_many(rig, small, "queued") < 3:  # there are always more
                small.append(rig.submit(wait, resources={"cpus": 1}))
            rig.until(lambda: how_many(rig, small, "queued") < 3 or rig.ended(large))
        assert rig.finish(large).status == "succeeded"
        for task in small:
            rig.client.kill(task, by="the test")


def test_a_slot_is_free_while_outputs_are_packed_but_not_for_ever_more(rig: Rig) -> None:
    store = HeldStore(rig.folder / "store")
    with rig.agent(change=held(store)):
        tasks = [rig.submit("true") for _ in range(3)]
        rig.until(lambda: how_many(rig, tasks, "finalizing") == 2)
        # Two wait for their outputs: no more is begun, however long that takes.
        assert not any(rig.running(task) for task in tasks)
        assert how_many(rig, tasks, "queued") == 1
        store.may.set()
        assert {rig.finish(task).status for task in tasks} == {"succeeded"}


def test_after_a_kill_all_that_ran_is_counted_before_anything_is_begun(tmp_path: Path) -> None:
    rig = Rig(tmp_path, {"slots": "3"}, **SHORT)
    go = tmp_path / "go"
    agent = rig.process()
    tasks = [rig.submit(until_there(go)) for _ in range(5)]
    rig.until(lambda: how_many(rig, tasks, "running") == 3)
    before = {task: said(rig, task) for task in tasks if rig.running(task)}
    kill9(agent)
    agent = rig.process()
    try:
        incarnation = {rig.client.state(task).lease for task in before}
        rig.until(lambda: not incarnation & {rig.client.state(task).lease for task in before})
        assert how_many(rig, tasks, "running") == 3
        assert how_many(rig, tasks, "queued") == 2
        go.touch()
        states = [rig.finish(task) for task in tasks]
    finally:
        agent.terminate()
        agent.wait(60)
    assert {(state.status, state.epoch) for state in states} == {("succeeded", 1)}
    assert all(said(rig, task) == what for task, what in before.items())  # not begun anew


def test_what_may_still_run_takes_its_share(rig: Rig, tmp_path: Path) -> None:
    """Also of journals whose fate the store has not told yet."""
    go = tmp_path / "go"
    with rig.agent(slots=2) as agent:
        task = rig.submit(until_there(go), resources={"cpus": CORES})
        rig.until(lambda: rig.running(task))
        agent.interrupt(Detached("the test"))
    config = rig.config()
    with alone_on(config.state_dir):
        ctx = open_context(config)
        left: list[Journal] = list(ctx.journals.all())
        slots = Slots(ctx, Threads(Wake()), 2, left, lambda: None)
        assert slots.free
        assert slots.busy == 1
        spec = rig.client.spec(task)
        why = slots.lacks(spec)
        assert why is not None
        assert why.startswith("cpus: ")
        assert not Slots(ctx, Threads(Wake()), 1, left, lambda: None).free
        over = [Journal(each.folder, each.entry.with_(outcome="succeeded")) for each in left]
        assert slots.lacks(spec) is not None
        assert Slots(ctx, Threads(Wake()), 2, over, lambda: None).lacks(spec) is None
    go.touch()
    with rig.agent():
        assert rig.finish(task).status == "succeeded"


def test_a_task_runs_where_an_agent_has_the_tags_it_requires(rig: Rig) -> None:
    plain = rig.submit("true")
    tagged = rig.submit("true", require=["gpu-a100", "zone=a"])
    with rig.agent("other", tags=("zone=a", "gpu-h100")):
        assert rig.finish(plain).status == "succeeded"
        refused = rig.until(lambda: rig.client.refusals(tagged) or None)
        assert rig.client.state(tagged).status == "queued"
    assert refused[0].why == ("require: the agent has not gpu-a100: it has only zone=a, gpu-h100")
    with rig.agent(tags=("zone=a", "gpu-a100", "more")):
        assert rig.finish(tagged).status == "succeeded"


def test_a_task_ends_that_requires_what_no_live_agent_has(tmp_path: Path) -> None:
    rig = Rig(tmp_path, heartbeat_every=0.2, agent_ttl=1.5, hide_refused=0.2)
    task = rig.submit("true", require=["gpu-a100"])
    with rig.agent():
        state = rig.finish(task)
    assert (state.status, state.reason) == ("error", "unsupported")
    assert "require: the agent has not gpu-a100: it has no tags" in state.message


def test_tasks_run_side_by_side_from_sqs_and_s3(tmp_path: Path, moto: Moto, bucket: Bucket) -> None:
    go = tmp_path / "go"
    queue = moto.name()
    create_queue(f"{queue}-default", region=moto.region, endpoint=moto.endpoint)
    settings = {
        "queue": f"sqs://{queue}-{{group}}",
        "sqs_endpoint": moto.endpoint,
        "sqs_region": moto.region,
        "store": bucket.url,
        "s3_endpoint": bucket.endpoint,
        "s3_region": bucket.region or "",
        "allow_process": "true",
    }
    rig = Rig(tmp_path, settings)
    with rig.agent(slots=2):
        tasks = [rig.submit(until_there(go)) for _ in range(3)]
        rig.until(lambda: how_many(rig, tasks, "running") == 2)
        assert how_many(rig, tasks, "queued") == 1
        go.touch()
        assert {rig.finish(task, 60).status for task in tasks} == {"succeeded"}
