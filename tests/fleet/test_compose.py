"""Two agents in containers with an S3 and an SQS for trying: what `make up` starts."""

import fcntl
import json
import os
import shutil
import subprocess
import sysconfig
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from engines.dockerd import Engine
from engines.ports import free_port
from engines.shared import STATE
from shelf.images import make_debian

pytestmark = pytest.mark.timeout(1800)  # the first one builds the image

ROOT = Path(__file__).parents[2]
COMPOSE = ROOT / "containers" / "compose.sh"
STRANGER = 12345
"""Whom the fleet belongs to where the tests are root's: a user that no image knows."""
CLOSED = not all(folder.stat().st_mode & 0o001 for folder in (ROOT, *ROOT.parents))
"""Whether that user cannot get to this checkout, as in /root."""

HELLO = """
inputs: [given.txt]
commands:
  - run: cat given.txt; hostname; id -u; echo made > made.txt
    shell: true
"""
# It says that it runs, and goes on until it is let go.
WAITS = """
commands:
  - run: echo runs | tee -a /fleet/runs; until [ -e /fleet/go ]; do sleep 0.05; done; echo went on
    shell: true
"""


def call(
    *argv: str | Path, env: dict[str, str], cwd: Path = ROOT, check: bool = True, stdin: str = ""
) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        argv,
        cwd=cwd,
        env=env,
        input=stdin,
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    assert done.returncode == 0 or not check, done.stdout + done.stderr
    return done


class Fleet:
    """A fleet of this test's own; ``engine`` runs its containers."""

    def __init__(self, engine: Engine, folder: Path, **env: str) -> None:
        self.engine = engine
        self.folder = folder / "fleet"
        self.name = folder.name
        self.user = os.geteuid() or (0 if CLOSED else STRANGER)
        self._as_user: tuple[str, ...] = ()
        if self.user != os.geteuid():
            # The engine's socket is open to the group of who started it, which is kept.
            self._as_user = ("setpriv", f"--reuid={self.user}", "--clear-groups")
            os.chown(folder, self.user, -1)
        self.home = folder
        self.env = {
            name: value for name, value in engine.env.items() if not name.startswith("SIMAGENT_")
        } | {
            "HOME": str(folder),
            "DOCKER_CONFIG": str(folder),
            "FLEET_DIR": str(self.folder),
            "FLEET_NAME": self.name,
            "FLEET_PORT": str(free_port()),
            "SIMAGENT_STATE_DIR": str(folder / "client"),
            **env,
        }

    def up(self) -> None:
        """Start it, and do as its output says."""
        told = self.compose("up")
        settings = self.folder / "client.env"
        assert f". {settings}\n" in told
        for line in settings.read_text().splitlines():
            for setting in line.removeprefix("export ").split():
                name, _, value = setting.partition("=")
                self.env[name] = value

    def compose(self, *args: str) -> str:
        return self.try_compose(*args, check=True).stdout

    def try_compose(self, *args: str, check: bool = False) -> subprocess.CompletedProcess[str]:
        return call(*self._as_user, COMPOSE, *args, env=self.env, check=check)

    def simagent(self, *args: str | Path, stdin: str = "", check: bool = True) -> str:
        command = Path(sysconfig.get_path("scripts")) / "simagent"
        argv = (*self._as_user, command, *args)
        return call(*argv, env=self.env, cwd=self.home, stdin=stdin, check=check).stdout

    def submit(self, spec: str) -> str:
        return self.simagent("submit", "-", stdin=spec).strip()

    def shown(self, task: str) -> dict[str, Any]:
        shown: dict[str, Any] = json.loads(self.simagent("show", task, "--json"))
        return shown

    def holder(self, task: str) -> str:
        """Give the service whose agent has a task."""
        name = str(self.shown(task)["lease"]["agent"])
        return "agent-" + name.removeprefix("fleet-").partition("-")[0]

    def container(self, service: str) -> str:
        """Give the ID of a container."""
        return self.compose("ps", "--quiet", service).strip()

    def of_others(self) -> list[Path]:
        """Give the files in the folder that are not the user's, but for what tests put there."""
        found = []
        for folder, _, names in os.walk(self.folder):  # which passes over folders that vanish
            for path in (Path(folder), *(Path(folder, name) for name in names if name != "go")):
                with suppress(FileNotFoundError):  # an agent tidies up
                    if path.lstat().st_uid != self.user:
                        found.append(path)
        return found

    def left(self) -> list[str]:
        """Give what the engine has of the fleet."""
        ours = f"label=com.docker.compose.project={self.name}"
        kinds = (("ps", "--all"), ("network", "ls"), ("volume", "ls"))
        return [
            line
            for kind in kinds
            for line in self.engine.run(*kind, "--quiet", "--filter", ours).stdout.split()
        ]


def until(met: Callable[[], object], seconds: float = 180) -> None:
    deadline = time.monotonic() + seconds
    while not met():
        assert time.monotonic() < deadline, "it did not come about in time"
        time.sleep(0.05)


def compose_is_here() -> bool:
    plugin = subprocess.run(["docker", "compose", "version"], capture_output=True, check=False)
    return plugin.returncode == 0 or shutil.which("docker-compose") is not None


@pytest.fixture(scope="module")
def agent_image(docker_engine: Engine) -> str:
    """The images, built once: the workers wait for each other."""
    if not compose_is_here():
        pytest.skip("docker-compose is missing (make engines installs it)")
    env = dict(docker_engine.env) | {"FLEET_DIR": str(STATE / "fleet")}
    with (STATE / "agent-image").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("DOCKER_HOST", docker_engine.host)
            make_debian("trixie")
        call(COMPOSE, "build", env=env)
    return "simagent/agent"


@contextmanager
def folder_of_a_fleet() -> Iterator[Path]:
    # Not in the folder of pytest, which is closed to other users.
    folder = Path(tempfile.mkdtemp(prefix="simagent-fleet-", dir="/tmp"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


@contextmanager
def up(engine: Engine, **env: str) -> Iterator[Fleet]:
    with folder_of_a_fleet() as folder:
        made = Fleet(engine, folder, **env)
        try:
            made.up()
            yield made
        finally:
            made.compose("down")


@pytest.fixture
def fleet(docker_engine: Engine, agent_image: str) -> Iterator[Fleet]:
    with up(docker_engine) as fleet:
        yield fleet


@pytest.fixture
def fleet_with_docker(docker_engine: Engine, agent_image: str) -> Iterator[Fleet]:
    with up(docker_engine, FLEET_DOCKER="1") as fleet:
        yield fleet


def runs(fleet: Fleet, times: int = 1) -> Callable[[], bool]:
    """Tell whether the command of `WAITS` was begun so often."""
    file = fleet.folder / "runs"
    return lambda: file.exists() and file.read_text() == "runs\n" * times


def let_go(fleet: Fleet, task: str) -> None:
    """Let the command of `WAITS` end, and see that it ended once."""
    (fleet.folder / "go").touch()
    fleet.simagent("wait", task)
    state = fleet.shown(task)
    assert (state["status"], state["epoch"]) == ("succeeded", 2)
    assert fleet.simagent("logs", task) == "runs\nwent on\n"
    listed = json.loads(fleet.simagent("list", "--json"))
    assert [each["id"] for each in listed] == [task]
    assert (fleet.folder / "runs").read_text() == "runs\n" * 2


def test_tasks_of_the_host_run_in_both_containers(fleet: Fleet) -> None:
    (fleet.home / "given.txt").write_text("given\n")
    first, second = fleet.submit(WAITS), fleet.submit(WAITS)
    until(runs(fleet, times=2))
    assert {fleet.holder(first), fleet.holder(second)} == {"agent-1", "agent-2"}
    until(lambda: fleet.simagent("agents").count(" busy ") == 2)
    (fleet.folder / "go").touch()
    fleet.simagent("wait", first, second)
    task = fleet.submit(HELLO)
    given, host, user = fleet.simagent("logs", "--follow", task).splitlines()
    assert (given, user) == ("given", str(fleet.user))
    assert host in ("fleet-1", "fleet-2")
    fleet.simagent("wait", task)
    fleet.simagent("download", task, "-o", "got")
    assert (fleet.home / "got" / "made.txt").read_text() == "made\n"
    assert fleet.of_others() == []


def test_the_containers_can_do_little(fleet: Fleet) -> None:
    by_itself = fleet.engine.run("run", "--rm", "--network", "none", "simagent/agent", "id", "-un")
    assert by_itself.stdout == "simagent\n"
    for service in ("agent-1", "agent-2", "aws-for-trying"):
        status = fleet.compose("exec", "-T", service, "cat", "/proc/self/status")
        assert "CapBnd:\t0000000000000000" in status
        assert "NoNewPrivs:\t1" in status
        assert f"Uid:\t{fleet.user}\t" in status


def test_an_agent_that_crashed_comes_back_and_the_task_ends_once(fleet: Fleet) -> None:
    task = fleet.submit(WAITS)
    until(runs(fleet))
    service = fleet.holder(task)
    lock = fleet.folder / "agents" / service.removeprefix("agent-") / "lock"
    pid = json.loads(lock.read_text())["pid"]
    fleet.compose("exec", "-T", service, "sh", "-c", f"kill -KILL {pid}")
    until(runs(fleet, times=2))
    restarts = ("inspect", "--format", "{{.RestartCount}}", fleet.container(service))
    assert fleet.engine.run(*restarts).stdout == "1\n"
    let_go(fleet, task)
    assert [a["reason"] for a in fleet.shown(task)["attempts"]] == ["shim_lost", None]


def test_a_container_that_was_killed_is_started_and_the_task_ends_once(fleet: Fleet) -> None:
    task = fleet.submit(WAITS)
    until(runs(fleet))
    fleet.engine.run("kill", fleet.container(fleet.holder(task)))
    fleet.up()
    until(runs(fleet, times=2))
    let_go(fleet, task)


def test_a_task_of_an_agent_that_is_interrupted_goes_to_the_other(fleet: Fleet) -> None:
    task = fleet.submit(WAITS)
    until(runs(fleet))
    service = fleet.holder(task)
    container = fleet.container(service)
    fleet.engine.run("kill", "--signal", "INT", container)
    until(lambda: " draining " in fleet.simagent("agents"))
    fleet.engine.run("kill", "--signal", "INT", container)
    until(runs(fleet, times=2))
    assert fleet.holder(task) != service
    let_go(fleet, task)
    assert fleet.shown(task)["attempts"][0]["reason"] == "preempted"


def test_down_leaves_nothing(fleet: Fleet) -> None:
    fleet.submit(WAITS)
    until(runs(fleet))
    fleet.compose("down")
    assert fleet.left() == []
    assert not (fleet.folder / "client.env").exists()
    fleet.compose("down")  # once more does no harm
    fleet.up()
    assert json.loads(fleet.simagent("list", "--json")) == []


def test_an_image_runs_beside_the_agents_and_outlives_its_own(
    fleet_with_docker: Fleet, tiny_image: str
) -> None:
    fleet = fleet_with_docker
    (fleet.home / "given.txt").write_text("given\n")
    waits = "cat given.txt; id -u; until [ -e /tmp/go ]; do sleep 0.1; done; echo made > made.txt"
    spec = {
        "image": tiny_image,
        "inputs": ["given.txt"],
        "commands": [{"run": waits, "shell": True}],
    }
    task = fleet.submit(json.dumps(spec))
    until(lambda: fleet.simagent("logs", task) == f"given\n{fleet.user}\n")
    fleet.engine.run("kill", fleet.container(fleet.holder(task)))
    ours = ("ps", "--quiet", "--filter", f"label=simagent.task={task}")
    (container,) = fleet.engine.run(*ours).stdout.split()
    fleet.up()
    fleet.engine.run("exec", container, "touch", "/tmp/go")
    fleet.simagent("wait", task)
    state = fleet.shown(task)
    assert (state["status"], state["epoch"]) == ("succeeded", 1)
    fleet.simagent("download", task, "-o", "got")
    assert (fleet.home / "got" / "made.txt").read_text() == "made\n"
    assert fleet.of_others() == []
    assert fleet.engine.run(*ours, "--all").stdout == ""

    runs_on = fleet.submit(json.dumps(spec))
    until(lambda: fleet.simagent("logs", runs_on))
    fleet.compose("down")
    ours = ("ps", "--quiet", "--filter", f"label=simagent.task={runs_on}")
    assert fleet.engine.run(*ours, "--all").stdout == ""


def test_no_command_runs_beside_the_socket(fleet_with_docker: Fleet) -> None:
    fleet = fleet_with_docker
    task = fleet.submit(WAITS)
    until(lambda: "name an image" in fleet.simagent("show", task))
    assert not (fleet.folder / "runs").exists()


def test_an_agent_that_cannot_start_says_why(docker_engine: Engine, agent_image: str) -> None:
    with folder_of_a_fleet() as folder:
        fleet = Fleet(docker_engine, folder)
        obstacle = fleet.folder / "agents" / "1" / "lock"
        for path in (fleet.folder, obstacle.parents[1], obstacle.parent, obstacle):
            path.mkdir()
            os.chown(path, fleet.user, -1)
        try:
            done = fleet.try_compose("up")
        finally:
            fleet.compose("down")
    assert done.returncode == 1
    assert "/fleet/agents/1/lock: Is a directory: mend that" in done.stderr
    assert done.stderr.endswith("agent-1 does not start: above is its log\n")


# --- What is missing ---------------------------------------------------------------------------

TOOLS = ("bash", "dirname", "env", "id", "timeout")


@pytest.fixture
def bare(tmp_path: Path) -> Path:
    """A folder of programs as PATH, where there is no Docker."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for tool in TOOLS:
        (folder / tool).symlink_to(shutil.which(tool) or "")
    return folder


def refused(folder: Path, **env: str) -> str:
    done = call(COMPOSE, "up", env={"PATH": str(folder), **env}, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    (line,) = done.stderr.splitlines()
    return line


def test_that_docker_is_missing_is_told(bare: Path) -> None:
    assert "docker is missing: install Docker Engine and Compose" in refused(bare)


def docker_with(folder: Path, script: str) -> None:
    program = folder / "docker"
    program.write_text(f"#!/usr/bin/env bash\n{script}\n")
    program.chmod(0o755)


def test_that_compose_is_missing_is_told(bare: Path) -> None:
    docker_with(bare, 'echo "docker: unknown command: docker $1" >&2; exit 1')
    assert "Docker Compose is missing: install it (on Debian" in refused(bare)


def test_that_no_engine_answers_is_told(bare: Path, tmp_path: Path) -> None:
    docker = shutil.which("docker")
    if docker is None:
        pytest.skip("docker is missing (make engines installs it)")
    docker_with(bare, f'[ "$1" = compose ] || exec {docker} "$@"')
    line = refused(bare, HOME=str(tmp_path), DOCKER_HOST=f"unix://{tmp_path}/none.sock")
    assert line.startswith("no Docker Engine can be used: ")
    assert f"{tmp_path}/none.sock" in line
    assert "systemctl start docker" in line
