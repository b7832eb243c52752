"""Whole tasks rung by a queue of SQS, with the store in a folder."""

import threading
from dataclasses import replace
from pathlib import Path

import pytest

from fakes.aws import Moto
from fakes.rig import Rig
from fakes.sqs import client, count
from simagent.domain import bell
from simagent.engines import open_queue
from simagent.ports.clock import SystemClock, Waitable
from simagent.ports.queue import Message
from simagent.queues.sqs import DEAD, SqsQueue
from simagent.queues.sqs_setup import create_queue
from simagent.worker.context import Context

CLOCK = SystemClock()


@pytest.fixture
def name(moto: Moto) -> str:
    """The queue of the group `default`."""
    name = moto.name() + "-default"
    create_queue(name, region=moto.region, endpoint=moto.endpoint)
    return name


def rig_of(folder: Path, moto: Moto, name: str, **times: float) -> Rig:
    settings = {
        "queue": f"sqs://{name.removesuffix('default')}{{group}}",
        "sqs_endpoint": moto.endpoint,
        "sqs_region": moto.region,
        "allow_process": "true",
    }
    return Rig(folder, settings, **times)


def test_a_task_runs_and_leaves_no_bell(tmp_path: Path, moto: Moto, name: str) -> None:
    rig = rig_of(tmp_path, moto, name)
    with rig.agent():
        task = rig.submit("echo hello")
        assert rig.finish(task).status == "succeeded"
        rig.until(lambda: count(moto, name) == 0)
    assert rig.log(task) == b"hello\n"
    assert count(moto, name + DEAD) == 0


def test_a_bell_that_comes_twice_runs_its_task_once(tmp_path: Path, moto: Moto, name: str) -> None:
    # Long beside what a busy machine lets a lease's thread wait: the other would take it.
    rig = rig_of(tmp_path, moto, name, lease_ttl=15.0)
    task = rig.submit({"run": "echo ran >> ran.txt; sleep 1", "shell": True})
    open_queue(rig.config(), "default").send(bell.encode(task))
    assert count(moto, name) == 2
    with rig.agent("one"), rig.agent("other"):
        state = rig.finish(task)
        rig.until(lambda: count(moto, name) == 0)
    assert (state.status, state.epoch, len(state.attempts)) == ("succeeded", 1, 1)
    rig.client.download(task, [], tmp_path / "got")
    assert (tmp_path / "got" / "ran.txt").read_text() == "ran\n"


def test_a_malformed_bell_is_a_dead_letter(tmp_path: Path, moto: Moto, name: str) -> None:
    rig = rig_of(tmp_path, moto, name)
    open_queue(rig.config(), "default").send("no bell at all")
    with rig.agent():
        rig.until(lambda: count(moto, name + DEAD) == 1)
        rig.until(lambda: count(moto, name) == 0)


def test_a_queue_that_was_deleted_with_its_bells_costs_no_task(
    tmp_path: Path, moto: Moto, name: str
) -> None:
    rig = rig_of(tmp_path, moto, name)
    go = tmp_path / "go"
    runs = rig.submit({"run": f"until [ -e {go} ]; do sleep 0.1; done", "shell": True})
    with rig.agent():
        rig.until(lambda: rig.running(runs))
        waits = rig.submit("true")
        sqs = client(moto)
        sqs.delete_queue(QueueUrl=sqs.get_queue_url(QueueName=name)["QueueUrl"])
        unheard = rig.submit("true")
        go.touch()
        assert rig.finish(runs).status == "succeeded"
        create_queue(name, region=moto.region, endpoint=moto.endpoint)
        for task in (waits, unheard):
            assert rig.finish(task).status == "succeeded"
        rig.until(lambda: count(moto, name) == 0)


def test_a_drain_does_not_wait_for_the_poll(tmp_path: Path, moto: Moto, name: str) -> None:
    rig = rig_of(tmp_path, moto, name, renew_every=20.0, lease_ttl=60.0)
    polling = threading.Event()

    class Noted(SqsQueue):
        def receive(self, *, visibility: float, wait: float, wake: Waitable) -> Message | None:
            polling.set()
            return super().receive(visibility=visibility, wait=wait, wake=wake)

    def noted(ctx: Context) -> Context:
        queue = Noted(name, "default", ctx.clock, region=moto.region, endpoint=moto.endpoint)
        return replace(ctx, queue=queue)

    with rig.agent(change=noted) as agent:
        assert polling.wait(30)
        began = CLOCK.now()
        agent.drain()
    assert CLOCK.now() - began < 15


def test_an_agent_ends_at_once_in_the_middle_of_a_poll(
    tmp_path: Path, moto: Moto, name: str
) -> None:
    rig = rig_of(tmp_path, moto, name, renew_every=20.0, lease_ttl=60.0)
    process = rig.process()
    try:
        task = rig.submit("true")
        assert rig.finish(task).status == "succeeded"
        rig.until(lambda: count(moto, name) == 0)
        process.terminate()
        assert process.wait(15) == 0
    finally:
        process.kill()
        process.wait()


def test_a_task_outlasts_what_sqs_hides_a_bell(tmp_path: Path, moto: Moto, name: str) -> None:
    """The 12 hours of SQS and the 10 of the agent, each some thousand times shorter."""
    sqs = client(moto)
    sqs.tag_queue(QueueUrl=sqs.get_queue_url(QueueName=name)["QueueUrl"], Tags={"longest": "10"})
    rig = rig_of(tmp_path, moto, name, bell_visibility=3.0, bell_extend=0.5, bell_renew=3.5)
    go = tmp_path / "go"
    heard, refused = list[str](), list[Exception]()

    class Watched(SqsQueue):
        def hide(self, receipt: str, seconds: float) -> None:
            try:
                super().hide(receipt, seconds)
            except Exception as error:
                refused.append(error)
                raise

        def send(self, body: str, *, delay: float = 0.0) -> None:
            heard.append(body)
            super().send(body, delay=delay)

    def watched(ctx: Context) -> Context:
        queue = Watched(name, "default", ctx.clock, region=moto.region, endpoint=moto.endpoint)
        return replace(ctx, queue=queue)

    with rig.agent(change=watched):
        task = rig.submit({"run": f"until [ -e {go} ]; do sleep 0.1; done", "shell": True})
        began = CLOCK.now()
        rig.until(lambda: CLOCK.now() - began > 12)
        go.touch()
        state = rig.finish(task)
        rig.until(lambda: count(moto, name) == 0)
    assert (state.status, state.epoch) == ("succeeded", 1)
    assert refused == []
    assert heard == [bell.encode(task)]
