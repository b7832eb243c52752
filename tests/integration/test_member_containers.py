"""A member that runs mpirun's daemon in containers, by each engine, as the task's user."""

import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from engines.apptainer import Apptainer
from engines.dockerd import Engine
from fakes.memberlab import MemberLab, wait_for
from simagent.cluster.calls import ask
from simagent.cluster.connection import Connection
from simagent.cluster.messages import (
    TOKEN,
    Checked,
    Enter,
    Exited,
    Fetch,
    Fetched,
    Sampled,
    Started,
)
from simagent.worker.containers import WORKDIR
from simagent.worker.users import task_users

SCRIPT = (
    "id -u >who; pwd >where; echo $SIMAGENT_ENTRY $HOME >env; touch /tmp/own; "
    "trap 'exit 7' TERM; echo up >up; while :; do sleep 0.1; done"
)


@pytest.fixture
def lab() -> Iterator[MemberLab]:
    folder = Path(tempfile.mkdtemp(prefix="simagent-test-"))
    folder.chmod(0o755)  # the task's user has to pass, which it may not in pytest's folders
    lab = MemberLab(folder)
    uid, gid = task_users(uid=None, slots=1, root_programs=None).common
    os.chown(lab.work, uid, gid)
    for path in (lab.shared, lab.work.parent):
        path.chmod(0o755)
    yield lab
    lab.end()
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def archive(docker_engine: Engine, tiny_image: str, lab: MemberLab) -> str:
    path = lab.folder / "tiny.tar"
    docker_engine.run("save", "--output", str(path), tiny_image)
    path.chmod(0o644)
    return f"docker-archive:{path}"


def enter(lab: MemberLab, runtime: str, image: str) -> Enter:
    uid, gid = task_users(uid=None, slots=1, root_programs=None).common
    return lab.enter(
        SCRIPT, "contained", runtime=runtime, image=image, uid=uid, gid=gid, shm_bytes=8 << 20
    )


def goes_on_in_a_container(lab: MemberLab, runtime: str, image: str, **settings: str) -> Connection:
    """Run the script through a crash of the agent."""
    lab.start(RUNTIMES=json.dumps([runtime]), **settings)
    wait_for(lab.record, "the member")
    fetched = ask(lab.relay(), Fetch(runtime=runtime, image=image), timeout=90.0)
    assert isinstance(fetched, Fetched)
    uid, _ = task_users(uid=None, slots=1, root_programs=None).common
    with lab.token():
        (lab.work / TOKEN).chmod(0o644)
        assert isinstance(ask(lab.relay(), lab.check(uid=uid), timeout=30.0), Checked)
    connection = Connection(lab.relay(), enter(lab, runtime, image))
    assert isinstance(connection.next(60.0), Started)
    wait_for((lab.work / "up").exists, "the run")
    assert (lab.work / "who").read_text() == f"{uid}\n"
    assert (lab.work / "who").stat().st_uid == uid
    assert (lab.work / "where").read_text() == f"{WORKDIR}\n"
    assert (lab.work / "env").read_text() == "contained /tmp\n"
    (folder,) = (lab.state / "member" / "entries").iterdir()
    assert (folder / "tmp" / "own").exists()
    lab.kill()
    lab.start(RUNTIMES=json.dumps([runtime]), **settings)
    while not isinstance(event := connection.next(60.0), Started):
        assert isinstance(event, Sampled)
    return connection


def leave(connection: Connection) -> None:
    connection.leave(5.0)
    while not isinstance(event := connection.next(60.0), Exited):
        assert isinstance(event, Sampled)
    assert event.code == 7


def test_in_docker(lab: MemberLab, docker_engine: Engine, archive: str) -> None:
    host = docker_engine.host
    with goes_on_in_a_container(lab, "docker", archive, DOCKER_HOST=host) as connection:
        name = "--filter=label=simagent.entry=contained"
        told = docker_engine.run("ps", "--quiet", name).stdout.split()
        (found,) = json.loads(docker_engine.run("inspect", *told).stdout)
        labels, settings = found["Config"]["Labels"], found["HostConfig"]
        assert (labels["simagent.task"], labels["simagent.epoch"]) == ("melt", "2")
        assert labels["simagent.agent"] == lab.agent
        assert (settings["NetworkMode"], settings["ShmSize"]) == ("host", 8 << 20)
        leave(connection)
    wait_for(
        lambda: docker_engine.run("ps", "--all", "--quiet", name).stdout == "",
        "the end of the container",
    )


def test_in_apptainer(lab: MemberLab, apptainer: Apptainer, archive: str) -> None:
    with goes_on_in_a_container(lab, "apptainer", archive) as connection:
        assert len(lab.left()) > 0
        leave(connection)
    assert lab.left() == []
