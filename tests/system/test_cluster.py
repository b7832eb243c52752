"""A cluster of agents in their units' sandboxes: root's, ranks in containers on two hosts."""

import json
import shutil
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from engines.apptainer import Apptainer
from engines.dockerd import Engine
from fakes.aws import KEYS
from fakes.s3 import make_bucket
from shelf.images import build, image_file
from shelf.model import ROOT as SHELF
from shelf.model import load
from simagent.queues.sqs_setup import create_queue
from system.machines import Lab, Machine

IMAGES = "/srv/images"
SHARED = "/srv/shared"
NAMES = ("head", "m1")
SPREAD = {"np": 2, "hosts": 2, "ranks_per_host": 1}
WAIT = Path(__file__).parents[1] / "cluster" / "ranks" / "wait.py"
RANK = "^python3 wait.py"


@pytest.fixture
def image(docker_engine: Engine, apptainer: Apptainer, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An image of Apptainer's with the probe, and an MPI of its own."""
    monkeypatch.setenv("DOCKER_HOST", docker_engine.host)
    probe = load("mpi-probe")
    build(probe)
    made = image_file(probe, "apptainer", SHELF.parent / "build" / "images")
    return Path(made.removeprefix("file://"))


@pytest.fixture
def shared() -> Iterator[Path]:
    """The folder that the hosts share."""
    folder = Path(tempfile.mkdtemp(prefix="simagent-shared-"))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


class Cluster:
    """A head and a member, each with the package installed and its own unit started."""

    def __init__(self, lab: Lab, package: Path, shared: Path, image: Path) -> None:
        self.image = f"file://{IMAGES}/{image.name}"
        aws = lab.aws
        queue = aws.name("cluster")
        create_queue(f"{queue}-default", region=aws.region, endpoint=aws.endpoint)
        self._settings: dict[str, object] = {
            "store": make_bucket(aws.endpoint, aws.name("cluster"), aws.region).url,
            "s3_endpoint": aws.endpoint,
            "s3_region": aws.region,
            "queue": f"sqs://{queue}-{{group}}",
            "sqs_endpoint": aws.endpoint,
            "sqs_region": aws.region,
            "runtimes": ["apptainer"],
            "cluster": "blue",
        }
        self.head, self.member = (
            lab.boot(
                name=name,
                package=package,
                equipped=True,
                folders={image.parent: IMAGES},
                shared={shared: SHARED},
            )
            for name in NAMES
        )
        keys = "".join(f"{name.lower()} = {value}\n" for name, value in KEYS.items())
        for machine in (self.head, self.member):
            machine.write("/etc/credstore/simagent.aws", f"[default]\n{keys}", 0o600)

    def start(self) -> None:
        """Start the agents, as docs/mpi.md has it."""
        mpi = {"shared_dir": SHARED, "slots": 2}
        self.member.configure(**self._settings, mpi=mpi, role="member")
        self.member.systemctl("disable", "simagent")
        self.member.systemctl("enable", "--now", "simagent-member")
        self.head.configure(**self._settings, mpi=mpi | {"size": 2})
        self.head.systemctl("start", "simagent")

    def simagent(self, *argv: str, seconds: float = 300, check: bool = True) -> str:
        """Run a command on the head as a client."""
        command = ("env", *(f"{name}={value}" for name, value in KEYS.items()), "simagent")
        return self.head.run(*command, *argv, check=check, seconds=seconds).stdout

    def submit(self, **fields: object) -> str:
        """Submit a task in the image; give its id."""
        self.head.write("/srv/task.json", json.dumps({"image": self.image, **fields}))
        return self.simagent("submit", "/srv/task.json").split()[-1]

    def succeeds(self, task: str) -> dict[str, Any]:
        """Wait for a good end, with nothing left on any host."""
        self.simagent("wait", task, check=False)
        state: dict[str, Any] = json.loads(self.simagent("show", task, "--json"))
        told = (state["status"], state["reason"])
        assert told == ("succeeded", None), f"{state}\n{self.told()}"
        for machine in (self.head, self.member):
            machine.until(partial(_rests, machine))
        return state

    def told(self) -> str:
        """Tell what the hosts say."""
        return f"{self.head.told()}\n--- member\n{self.member.told()}"


def ranks(machine: Machine, program: str = ".") -> list[str]:
    """List the processes on a host that are a task's user's."""
    found = machine.run("pgrep", "--uid=simtask-0", "--full", program, check=False)
    return found.stdout.split()


def _waiting(machine: Machine) -> list[str] | None:
    return ranks(machine, RANK) or None


def _rests(machine: Machine) -> bool:
    return not ranks(machine)


def server(machine: Machine) -> str:
    """Give the process id of the member's own ssh server, if it runs."""
    argv = ("pgrep", "--uid=simagent-mpi", "--full", "sshd: .*[[]listener[]]")
    return machine.run(*argv, check=False).stdout.strip()


@pytest.fixture
def cluster(shared: Path, machines: Lab, package: Callable[[str], Path], image: Path) -> Cluster:
    made = Cluster(machines, package("trixie"), shared, image)
    made.start()
    return made


def test_ranks_on_two_hosts_outlive_the_agents_and_mpi_check_tries_both(cluster: Cluster) -> None:
    head, member = cluster.head, cluster.member
    head.copy_in(WAIT, "/srv/wait.py")
    task = cluster.submit(
        commands=[{"run": "python3 wait.py", "mpi": SPREAD}], inputs=["wait.py"], grace="2s"
    )
    before = [it.until(partial(_waiting, it)) for it in (head, member)]
    assert [len(pids) for pids in before] == [1, 1]
    listens = server(member)
    assert listens

    member.systemctl("restart", "simagent-member")
    head.systemctl("restart", "simagent")
    assert [ranks(it, RANK) for it in (head, member)] == before
    head.run("touch", f"/proc/{before[0][0]}/cwd/go")
    state = cluster.succeeds(task)
    assert state["epoch"] == 1
    assert cluster.simagent("logs", task) == "2 head m1\nsum 3\n"
    assert server(member) == listens

    # An agent may die before it has written down which one it started.
    member.systemctl("stop", "simagent-member")
    member.run("rm", "/var/lib/simagent/member/sshd/sshd.json")
    member.systemctl("start", "simagent-member")
    member.until(lambda: server(member) not in ("", listens))
    argv = ("--np", "2", "--hosts", "2", "--image", cluster.image, "--json", "--timeout", "240")
    told = json.loads(cluster.simagent("mpi", "check", *argv, check=False))
    assert told["troubles"] == []
    assert told["hosts"] == dict.fromkeys(NAMES, 1)
    assert {rank["mpi"] for rank in told["ranks"]} == {"Open MPI 5.0.7"}
