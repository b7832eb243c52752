"""How the agent deals with tasks that name an image, whatever runs the containers."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from fakes.containers import DIGEST, FakeContainers, FakeImages
from fakes.rig import Rig
from simagent.domain.reasons import Reason
from simagent.ports.images import ImageError
from simagent.worker.context import Context
from simagent.worker.control import Looks
from simagent.worker.journal import ARTIFACTS
from simagent.worker.orders import Detached

IMAGE = "docker://registry.example/melt:1"


class Containers:
    """A container runtime and its images, to be given to agents."""

    def __init__(self) -> None:
        self.runtime = FakeContainers()
        self.images = FakeImages()

    def given(self, **settings: object) -> Callable[[Context], Context]:
        def change(ctx: Context) -> Context:
            return replace(
                ctx,
                runtimes={**ctx.runtimes, "docker": self.runtime},
                images={"docker": self.images},
                settings=replace(ctx.settings, **settings),  # type: ignore[arg-type]
            )

        return change


@pytest.fixture
def rig(tmp_path: Path) -> Rig:
    return Rig(tmp_path)


@pytest.fixture
def containers() -> Containers:
    return Containers()


def sh(script: str) -> dict[str, object]:
    return {"run": script, "shell": True}


def test_steps_run_where_the_image_expects_them(rig: Rig, containers: Containers) -> None:
    (rig.folder / "in.melt").write_text("units lj")
    task = rig.submit(
        sh("echo $HOME; echo out > result"),
        {"run": ["/bin/cat", "../in.melt"], "workdir": "sub"},
        image=IMAGE,
        inputs=["in.melt", {"source": "in.melt", "destination": "sub/there"}],
        network="host",
        resources={"shm": "1MiB", "gpus": 1, "memory": "1GiB"},
    )
    with rig.agent(change=containers.given()):
        state = rig.finish(task)
    assert (state.status, state.message) == ("succeeded", "")
    assert rig.log(task) == b"/tmp\nunits lj"
    attempt = state.attempts[0]
    assert attempt.image_digest == DIGEST
    assert attempt.timings["pull"].bytes == 1000
    plan = containers.runtime.plans[1]
    assert str(plan.cwd) == "/workdir/output/artifacts/sub"
    assert plan.limits.memory_bytes == 2**30
    box = plan.sandbox
    assert box is not None
    assert (box.image, box.network, box.shm_bytes, box.gpus) == ("an image", "host", 2**20, 1)
    assert box.labels["simagent.task"] == task.id
    assert box.labels["simagent.epoch"] == "1"
    assert {str(mount.target) for mount in box.mounts} == {
        "/workdir/output/artifacts",
        "/tmp",
        "/var/tmp",
    }


def test_nothing_of_the_agents_environment_gets_in(
    rig: Rig, containers: Containers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LD_LIBRARY_PATH", "/opt/of-the-machine")
    task = rig.submit(["/bin/sh", "-c", "env"], image=IMAGE, env={"OMP_NUM_THREADS": "1"})
    with rig.agent(change=containers.given()):
        rig.finish(task)
    plan = containers.runtime.plans[0]
    assert dict(plan.env) == {
        "HOME": "/tmp",
        "OMP_NUM_THREADS": "1",
        "SIMAGENT_TASK_ID": task.id,
        "SIMAGENT_EPOCH": "1",
        "SIMAGENT_RESTART": "0",
    }
    assert plan.sandbox is not None
    assert plan.sandbox.network == "none"


def test_an_image_that_cannot_be_had_ends_the_task(rig: Rig, containers: Containers) -> None:
    why = "registry.example has no melt:1: check the name and the tag"
    containers.images.errors.append(ImageError(Reason.IMAGE_NOT_FOUND, why))
    task = rig.submit("true", image=IMAGE)
    with rig.agent(change=containers.given()):
        state = rig.finish(task)
    assert (state.status, state.reason, state.message) == ("failed", "image_not_found", why)
    assert containers.runtime.plans == []


def test_a_registry_that_is_away_for_a_while_costs_no_attempt(
    rig: Rig, containers: Containers
) -> None:
    away = ImageError(Reason.IMAGE_PULL, "the registry does not answer", retryable=True)
    containers.images.errors += [away, away]
    task = rig.submit(["/bin/true"], image=IMAGE)
    with rig.agent(change=containers.given()):
        state = rig.finish(task)
    assert (state.status, state.epoch, state.counters.errors) == ("succeeded", 1, 0)


def test_a_kill_ends_the_wait_for_a_registry(rig: Rig, containers: Containers) -> None:
    away = ImageError(Reason.IMAGE_PULL, "the registry does not answer", retryable=True)
    containers.images.errors += [away] * 100
    task = rig.submit(["/bin/true"], image=IMAGE)
    with rig.agent(change=containers.given()):
        assert containers.images.asked.wait(60)
        rig.client.kill(task, by="tester")
        state = rig.finish(task)
    assert (state.status, state.epoch) == ("killed", 1)


def test_a_pull_that_failed_is_tried_again(rig: Rig, containers: Containers) -> None:
    away = ImageError(Reason.IMAGE_PULL, "the registry does not answer", retryable=True)
    containers.images.errors += [away, away]
    task = rig.submit(["/bin/true"], image=IMAGE)
    with rig.agent(change=containers.given(pull_patience=0.0)):
        state = rig.finish(task)
    assert (state.status, state.epoch, state.counters.errors) == ("succeeded", 3, 2)
    assert [attempt.reason for attempt in state.attempts] == ["image_pull", "image_pull", None]


def test_a_pull_that_fails_for_ever_is_given_up(rig: Rig, containers: Containers) -> None:
    away = ImageError(Reason.IMAGE_PULL, "the registry does not answer", retryable=True)
    containers.images.errors += [away] * 9
    task = rig.submit("true", image=IMAGE, max_attempts=2)
    with rig.agent(change=containers.given(pull_patience=0.0)):
        state = rig.finish(task)
    assert (state.status, state.reason, state.epoch) == ("error", "image_pull", 2)


def test_a_kill_ends_a_pull(rig: Rig, containers: Containers) -> None:
    containers.images.stalls = True
    task = rig.submit("true", image=IMAGE)
    with rig.agent(change=containers.given()):
        assert containers.images.asked.wait(60)
        rig.client.kill(task, by="tester")
        state = rig.finish(task)
    assert (state.status, state.epoch) == ("killed", 1)


def test_the_next_agent_goes_on_with_a_pull(rig: Rig, containers: Containers) -> None:
    containers.images.stalls = True
    task = rig.submit(["/bin/true"], image=IMAGE)
    with rig.agent(change=containers.given()) as agent:
        assert containers.images.asked.wait(60)
        agent.interrupt(Detached("the agent stops"))
    containers.images.stalls = False
    with rig.agent(change=containers.given()):
        state = rig.finish(task)
    assert (state.status, state.epoch) == ("succeeded", 1)


def test_the_next_agent_attaches_to_a_step_in_a_container(rig: Rig, containers: Containers) -> None:
    task = rig.submit(
        sh("echo $$; while [ ! -e end ]; do /bin/sleep 0.05; done; echo end"), image=IMAGE
    )
    with rig.agent(change=containers.given()) as agent:
        rig.until(lambda: rig.log(task) or None)
        agent.interrupt(Detached("the agent stops"))
    with rig.agent(change=containers.given()):
        (folder,) = (rig.folder / "state" / "attempts").glob(f"*/{ARTIFACTS}")
        (folder / "end").touch()
        state = rig.finish(task)
    assert (state.status, state.epoch) == ("succeeded", 1)
    assert rig.log(task).endswith(b"\nend\n")
    assert len(rig.log(task).splitlines()) == 2


@pytest.mark.parametrize("killed", [False, True], ids=["ends", "killed"])
def test_the_next_agent_waits_for_an_engine_that_is_away(
    rig: Rig, containers: Containers, killed: bool
) -> None:
    task = rig.submit(sh("echo; while [ ! -e end ]; do /bin/sleep 0.05; done"), image=IMAGE)
    with rig.agent(change=containers.given()) as agent:
        rig.until(lambda: rig.log(task) or None)
        agent.interrupt(Detached("the agent stops"))
    containers.runtime.away.set()
    with rig.agent(change=containers.given(looks=Looks(every=0.1, attended=0.1))):
        rig.until(containers.runtime.asked_in_vain.is_set)
        if killed:
            rig.client.kill(task, by="tester")
        else:
            (folder,) = (rig.folder / "state" / "attempts").glob(f"*/{ARTIFACTS}")
            (folder / "end").touch()
        containers.runtime.asked_in_vain.clear()
        rig.until(lambda: containers.runtime.asked_in_vain.is_set() or rig.ended(task))
        containers.runtime.away.clear()
        state = rig.finish(task)
    assert (state.status, state.epoch) == ("killed" if killed else "succeeded", 1)
    assert len(containers.runtime.plans) == 1


def test_a_step_whose_engine_went_away_before_it_told_of_its_start_is_found(
    rig: Rig, containers: Containers
) -> None:
    containers.runtime.loses_answers = True
    task = rig.submit(sh("echo once"), image=IMAGE)
    with rig.agent(change=containers.given()):
        state = rig.finish(task)
    assert (state.status, state.epoch) == ("succeeded", 1)
    assert rig.log(task) == b"once\n"


def test_a_task_that_nothing_here_can_run_is_left_to_others(
    rig: Rig, containers: Containers
) -> None:
    containers.runtime.broken = "the engine does not answer: start docker"
    task = rig.submit(["/bin/true"], image=IMAGE, runtime="docker")
    with capture_logs() as logs, rig.agent(change=containers.given()) as agent:
        told = rig.until(lambda: [x for x in logs if x["event"] == "task_refused"] or None)
        assert told[0]["reason"] == "the engine does not answer: start docker"
        assert rig.client.state(task).status == "queued"
        containers.runtime.broken = None
        agent.poke()
        state = rig.finish(task)
    assert (state.status, state.epoch) == ("succeeded", 1)


@pytest.mark.parametrize("user", ["root", "0", "0:0"])
def test_an_image_that_asks_for_root_is_refused(
    rig: Rig, containers: Containers, user: str
) -> None:
    containers.images.user = user
    task = rig.submit(["/bin/true"], image=IMAGE)
    with rig.agent(change=containers.given()):
        state = rig.finish(task)
    assert (state.status, state.reason) == ("failed", "image_unusable")
    assert "allow_root_images" in state.message


def test_an_image_that_asks_for_root_is_run_where_that_is_allowed(
    rig: Rig, containers: Containers
) -> None:
    containers.images.user = "root"
    task = rig.submit(["/bin/true"], image=IMAGE)
    with rig.agent(change=containers.given(allow_root_images=True)):
        state = rig.finish(task)
    assert state.status == "succeeded"
    box = containers.runtime.plans[0].sandbox
    assert box is not None
    assert (box.uid, box.gid) == (0, 0)
