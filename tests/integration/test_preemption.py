"""A cloud takes the machine away: what runs there is given back in time."""

import time
from pathlib import Path

import psutil
import pytest

from fakes import clouds
from fakes.clouds import Metadata
from fakes.rig import Rig
from simagent.worker.journal import ARTIFACTS

PID = f"first/attempts/*/{ARTIFACTS}/pid"
STUBBORN = "trap '' TERM; echo $$ > new; mv new pid; while :; do sleep 0.2; done"


@pytest.fixture
def rig(tmp_path: Path) -> Rig:
    return Rig(tmp_path)


def asked(server: Metadata, path: str) -> bool:
    return any(path in question for question in server.asked)


def goes(cloud: str, at: float) -> dict[str, str]:
    match cloud:
        case "aws":
            return clouds.aws_interruption(at)
        case "gcp":
            return clouds.gcp_preempted()
    return clouds.azure_events(clouds.azure_event("Preempt", at, "vm-7"))


def pid_of(rig: Rig) -> int:
    """Tell the process of the command, once it has written that down."""
    return rig.until(lambda: next((int(file.read_text()) for file in rig.folder.glob(PID)), None))


@pytest.mark.parametrize(
    ("cloud", "question"),
    [("gcp", "preempted"), ("aws", "instance-action"), ("azure", "scheduledevents")],
)
def test_a_task_is_given_back_though_its_command_ignores_sigterm(
    rig: Rig, cloud: str, question: str
) -> None:
    facts = {"gcp": clouds.gcp, "aws": clouds.aws, "azure": clouds.azure}[cloud]()
    with (
        Metadata(facts) as server,
        rig.agent("first", cloud=cloud, cloud_endpoint=server.endpoint),
    ):
        task = rig.submit({"run": STUBBORN, "shell": True}, grace=100.0)
        rig.until(lambda: rig.running(task) and asked(server, question))
        pid = pid_of(rig)
        server.answers.update(goes(cloud, time.time() + 30))
        rig.until(lambda: rig.client.state(task).status == "queued", 60.0)
    state = rig.client.state(task)
    assert (state.counters.preemptions, state.lease) == (1, None)
    assert state.attempts[0].reason == "preempted"
    assert state.attempts[0].machine["cloud"] == cloud
    assert state.attempts[0].machine["price"] == "spot"
    assert not psutil.pid_exists(pid)
    with rig.agent("second"):
        rig.until(lambda: rig.running(task))
        rig.client.kill(task, by="tester", grace=0.1)
        assert rig.finish(task).epoch == 2


def test_a_metadata_server_that_hangs_keeps_nothing_from_running(rig: Rig) -> None:
    with Metadata(hangs=True) as server, rig.agent(cloud="aws", cloud_endpoint=server.endpoint):
        task = rig.submit("true")
        state = rig.finish(task)
    assert state.status == "succeeded"
    assert state.attempts[0].machine["cloud"] == "aws"
