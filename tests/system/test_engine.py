"""Containers of a Docker Engine, for an agent in its unit's sandbox: over the engine's socket."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from engines.dockerd import Engine
from shelf.images import build, image_file
from shelf.model import ROOT as SHELF
from shelf.model import load
from system.machines import Lab, Machine

IMAGES = "/srv/images"
CONTAINERS = "/var/lib/docker/containers"
LOOP = (
    "id -u; cat given; i=0; while [ ! -e go ]; do i=$((i + 1)); echo line $i; sleep 0.2; done; "
    "echo made >result; echo end $i"
)


@pytest.fixture
def image(docker_engine: Engine, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The archive of an image with a shell."""
    monkeypatch.setenv("DOCKER_HOST", docker_engine.host)
    echo = load("echo")
    build(echo)
    made = image_file(echo, "docker", SHELF.parent / "build" / "images")
    return Path(made.removeprefix("docker-archive:"))


def loops(machine: Machine) -> int:
    """Give the process id of the task's shell, which is its slot's user's."""
    found = machine.run("pgrep", "--uid=simtask-0", "--full", "^/bin/sh -c id -u;").stdout
    return int(found)


def test_a_container_outlives_the_agent_and_its_outputs_come(
    machines: Lab, package: Callable[[str], Path], image: Path
) -> None:
    folders = {image.parent: IMAGES}
    machine = machines.boot(package=package("trixie"), equipped=True, folders=folders)
    machine.systemctl("start", "docker")
    machine.configure(runtimes=["docker"])
    machine.systemctl("start", "simagent")
    machine.write("/srv/given", "good day\n")
    task = {
        "image": f"docker-archive:{IMAGES}/{image.name}",
        "inputs": ["given"],
        "commands": [{"run": LOOP, "shell": True}],
    }
    machine.write("/srv/task.json", json.dumps(task))
    name = machine.simagent("submit", "/srv/task.json").split()[-1]
    machine.until(lambda: "line 3\n" in machine.simagent("logs", name))
    pid = loops(machine)
    container = machine.run("ls", CONTAINERS).stdout
    assert container.strip() in machine.read(f"/proc/{pid}/cgroup")

    machine.systemctl("restart", "simagent")
    seen = machine.simagent("logs", name).count("\n")
    machine.until(lambda: machine.simagent("logs", name).count("\n") > seen + 3)
    assert loops(machine) == pid
    machine.run("touch", f"/proc/{pid}/cwd/go")
    machine.simagent("wait", name)

    uid, given, *lines, end = machine.simagent("logs", name).splitlines()
    assert uid == machine.run("id", "-u", "simtask-0").stdout.strip()
    assert given == "good day"
    assert lines == [f"line {number}" for number in range(1, len(lines) + 1)]
    assert end == f"end {len(lines)}"
    state = json.loads(machine.simagent("show", name, "--json"))
    assert (state["status"], state["epoch"]) == ("succeeded", 1)
    machine.simagent("download", name, "-o", "/srv/out")
    assert machine.read("/srv/out/result") == "made\n"
    machine.until(lambda: not machine.run("ls", CONTAINERS).stdout)
