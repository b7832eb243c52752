"""A cluster in miniature: VMs, S3 and SQS, agents, a client, and what is left on any host."""

import json
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, TypeVar
from uuid import uuid4

from cluster.vms import SSH_PORT, USER, Vm, is_agent
from engines.dockerd import Engine
from engines.hosts import Network
from fakes.aws import KEYS, Moto, moto_server
from fakes.rig import Rig
from fakes.s3 import make_bucket
from simagent.domain.keys import TaskKeys
from simagent.domain.state import State
from simagent.queues.sqs_setup import create_queue

HEAD = "head"
CLUSTER = "lab"
NOTICED = 60.0
"""Seconds within which a fault has ended the task, or given it back; of silence it takes 15."""
_PATIENCE = 180.0
_ROUND = 5.0
_GROUP = "default"

# Short where only waiting would be tested; beats of hosts have their real times.
_TIMES = {
    "lease_ttl": 9.0,
    "renew_every": 2.0,
    "renew_retry": 0.5,
    "heartbeat_every": 1.0,
    "agent_ttl": 10.0,
    "bell_visibility": 4.0,
    "bell_extend": 1.0,
    "hide_submitted": 1.0,
    "hide_refused": 1.0,
    "hide_alive": 4.0,
    "sweep_every": 4.0,
    "ring_after": 4.0,
}

_T = TypeVar("_T")
_SSH_CONFIG = f"Host *\n  Port {SSH_PORT}\n  StrictHostKeyChecking no\n  LogLevel ERROR\n"


class _InVainError(Exception):
    """What is waited for will not come."""


class ClusterLab(Rig):
    """VMs named ``head``, ``m1``, ``m2``, …; nothing runs on them before `up`."""

    def __init__(
        self, engine: Engine, image: str, folder: Path, moto: Moto, network: Network
    ) -> None:
        self._engine, self._image, self._network, self._moto = engine, image, network, moto
        self.uid = os.geteuid() or 1000
        self.shared = folder / "shared"
        self.images = folder / "images"
        for made in (self.shared, self.images):
            made.mkdir()
            os.chown(made, self.uid, -1)
        self.vms: dict[str, Vm] = {}
        self._docker = False
        self._settings_of: dict[str, dict[str, Any]] = {}
        self._agents: set[str] = set()
        self.bucket = bucket = make_bucket(moto.endpoint, moto.name("lab"), moto.region)
        _, _, path = bucket.url.removeprefix("s3://").partition("/")
        self._prefix = f"{path}/"
        queues = moto.name("lab")
        create_queue(f"{queues}-{_GROUP}", region=moto.region, endpoint=moto.endpoint)
        engines = {
            "store": bucket.url,
            "s3_endpoint": moto.endpoint,
            "s3_region": moto.region,
            "queue": f"sqs://{queues}-{{group}}",
            "sqs_endpoint": moto.endpoint,
            "sqs_region": moto.region,
        }
        super().__init__(folder, engines, **_TIMES)

    # --- VMs and agents ------------------------------------------------------------------------

    def boot(self, *names: str, images: Path | None = None) -> None:
        """Start VMs."""
        for name in names:
            vm = Vm(self._engine, name, self._network.name, self.folder / name, self.uid)
            self.vms[name] = vm
            vm.boot(self._image, self.shared, images or self.images, docker=self._docker)

    def up(
        self,
        members: int = 1,
        *,
        docker: bool = False,
        mpi: Mapping[str, Any] | None = None,
        **fields: Any,
    ) -> None:
        """Start a head and members, and their agents; ``mpi`` and ``fields`` are of the head's.

        With ``docker`` each has an engine of its own, else all have Apptainer.
        """
        self._docker = docker
        names = [f"m{number}" for number in range(1, members + 1)]
        self.boot(HEAD, *names)
        for name in names:
            self.start(name)
        self.start(HEAD, mpi={"size": 1 + members, **(mpi or {})}, **fields)

    @property
    def head(self) -> Vm:
        """Where tasks are taken."""
        return self.vms[HEAD]

    def members(self) -> list[Vm]:
        """List the others."""
        return [vm for name, vm in self.vms.items() if name != HEAD]

    def start(self, name: str, mpi: Mapping[str, Any] | None = None, **fields: Any) -> None:
        """Start the agent of a VM; again with what it was started with before."""
        if name not in self._settings_of or mpi or fields:
            self._settings_of[name] = self._settings(name, mpi or {}, fields)
        vm = self.vms[name]
        env = {
            f"SIMAGENT_{setting.upper()}": value if isinstance(value, str) else json.dumps(value)
            for setting, value in self._settings_of[name].items()
        }
        role = ["--cluster", CLUSTER] + ([] if is_head(name) else ["--role", "member"])
        command = " ".join(["simagent", "agent", *role])
        self._agents.add(name)
        vm.spawn(command, "agent.log", **KEYS, AWS_EC2_METADATA_DISABLED="true", **env)

    def _settings(
        self, name: str, mpi: Mapping[str, Any], fields: Mapping[str, Any]
    ) -> dict[str, Any]:
        # A head that tries MPI by itself has its own tests.
        shared = {"shared_dir": "/shared", "slots": 2, "check": False}
        of_all = self._engines | {"times": _TIMES, "sample_every": 1.0, "agent": name}
        if not is_head(name):
            of_all = {k: v for k, v in of_all.items() if not k.startswith(("queue", "sqs_"))}
        return {
            **of_all,
            "state_dir": "/state/agent",
            "runtimes": ["docker" if self._docker else "apptainer"],
            "allow_process": True,
            "log_format": "json",
            "mpi": shared | dict(mpi),
            **fields,
        }

    def agents_of(self, name: str) -> list[int]:
        """Give the process ids, of this host's, of a VM's agent."""
        return [pid for pid, command in self.vms[name].processes() if is_agent(command)]

    def kill_agent(self, name: str) -> None:
        """End a VM's agent as a crash would; nothing else."""
        self._agents.discard(name)
        self.vms[name].run("pkill -KILL -f '[s]imagent agent'", user="root")
        self.until(lambda: not self.agents_of(name))

    def log_of(self, name: str) -> str:
        """Give what an agent has logged, but for the line that it may be writing."""
        file = self.folder / name / "agent.log"
        text = file.read_text(errors="replace") if file.exists() else ""
        return text[: text.rfind("\n") + 1]

    def open_ssh(self) -> None:
        """Let the head reach the others by ssh, as who writes mpirun by hand has to."""
        make = "umask 077; mkdir -p ~/.ssh; ssh-keygen -q -t ed25519 -N '' -f ~/.ssh/"
        public = self.head.run(f"{make}id_ed25519; cat ~/.ssh/id_ed25519.pub").stdout
        self.head.write(f"/home/{USER}/.ssh/config", _SSH_CONFIG)
        for vm in self.members():
            vm.run(f"{make}host_key")
            vm.write(f"/home/{USER}/.ssh/authorized_keys", public)
            where = f"-p {SSH_PORT} -h /home/{USER}/.ssh/host_key -o PidFile=none"
            vm.spawn(f"/usr/sbin/sshd -D -e -f /dev/null {where}", "sshd.log")
            self.until(partial(self._answers, vm))

    def _answers(self, vm: Vm) -> bool:
        return not self.head.run(f"ssh {vm.name} true", check=False).returncode

    def heal(self) -> None:
        """Undo what faults have done to VMs and agents."""
        for name, vm in self.vms.items():
            vm.heal()
            if not self.agents_of(name):
                self.start(name)

    # --- Tasks ---------------------------------------------------------------------------------

    def until(self, look: Callable[[], _T | None], seconds: float = _PATIENCE) -> _T:
        """Look until there is something to see."""
        return super().until(look, seconds)

    def link(self, sif: Path) -> str:
        """Give an image's file to all VMs; give its reference there."""
        (self.images / sif.name).unlink(missing_ok=True)
        os.link(sif, self.images / sif.name)
        return f"file:///images/{sif.name}"

    def link_archive(self, archive: Path) -> str:
        """Give an archive of Docker's to all VMs; give its reference there."""
        self.link(archive)
        return f"docker-archive:/images/{archive.name}"

    def ranks(self, task: TaskKeys, program: str) -> dict[str, list[int]]:
        """List the ranks of a program by host."""
        return {
            name: [pid for pid, command in vm.processes() if is_program(command, program)]
            for name, vm in self.vms.items()
        }

    def running_on(self, task: TaskKeys, program: str, *hosts: str) -> dict[str, list[int]]:
        """Wait until there are ranks of a program on these hosts."""

        def look() -> dict[str, list[int]] | None:
            found = self.ranks(task, program)
            if self.client.state(task).terminal:
                raise _InVainError
            return found if all(found[host] for host in hosts) else None

        return self._watched(task, look, _PATIENCE)

    def met(self, task: TaskKeys) -> None:
        """Wait until the ranks of wait.py have met, and the first has said who is there.

        One that is killed before is not known to mpirun as a rank: it ends without a word.
        """

        def look() -> bool | None:
            if self.client.state(task).terminal:
                raise _InVainError
            said = self.folder.glob(f"{HEAD}/agent/attempts/*{task.id}.*/logs/stdout")
            return any(file.stat().st_size for file in said) or None

        self._watched(task, look, _PATIENCE)

    def told(self, task: TaskKeys) -> str:
        """Tell all that may explain what became of a task."""
        state = self.client.state(task)
        lines = [f"{state.status} {state.reason} {state.message}"]
        lines += [f"attempt {a.epoch}: {a.reason} {a.message} {a.note}" for a in state.attempts]
        for stream in ("stdout", "stderr"):
            lines += [f"--- {stream}", self.log(task, stream)[-2000:].decode(errors="replace")]
        for name, vm in self.vms.items():
            lines += [f"--- {name}", *vm.busy(), self.log_of(name)[-3000:]]
        return "\n".join(lines)

    def succeeds(self, task: TaskKeys, seconds: float = _PATIENCE) -> State:
        """Wait for the task's end, which has to be a good one, with nothing left on any host."""
        state = self.ends(task, seconds)
        assert state.status == "succeeded", self.told(task)
        self.check()
        return state

    def ends(self, task: TaskKeys, seconds: float = _PATIENCE) -> State:
        """Wait for the task's end."""
        return self._watched(task, lambda: self.ended(task), seconds)

    def _watched(self, task: TaskKeys, look: Callable[[], _T | None], seconds: float) -> _T:
        """Look until there is something to see; where there is not, tell why that may be."""
        begun = looked = time.monotonic()
        with suppress(_InVainError):
            while time.monotonic() - begun < seconds:
                if (seen := look()) is not None:
                    return seen
                if time.monotonic() - looked > _ROUND:
                    if not all(self.agents_of(name) for name in self._agents):
                        break
                    looked = time.monotonic()
                threading.Event().wait(0.2)
        raise AssertionError(self.told(task))

    def outputs(self, task: TaskKeys) -> Path:
        """Fetch a task's outputs."""
        into = self.folder / "outputs" / task.id
        self.client.download(task, (), into)
        return into

    def go(self, task: TaskKeys) -> None:
        """Let the ranks of wait.py end."""
        for artifacts in self.shared.glob(f"{CLUSTER}/*{task.id}.*/**/artifacts"):
            (artifacts / "go").touch()

    def sampled_hosts(self, task: TaskKeys) -> set[object]:
        """Tell of which hosts there are live metrics in the store."""
        prefix = f"{self._prefix}{task.attempt(self.client.state(task).epoch).metrics}"
        s3, bucket = self.bucket.client(), self.bucket.name
        keys = [
            o["Key"] for o in s3.list_objects_v2(Bucket=bucket, Prefix=prefix).get("Contents", ())
        ]
        bodies = [s3.get_object(Bucket=bucket, Key=key)["Body"].read() for key in keys]
        return {json.loads(line)["host"] for body in bodies for line in body.splitlines()}

    # --- Leftovers -----------------------------------------------------------------------------

    def left(self, *but: str) -> list[str]:
        """List what is left of tasks, on all hosts ``but`` some."""
        found = [
            f"{name}: {command}"
            for name, vm in self.vms.items()
            for command in (vm.busy() if name not in but else ())
        ]
        if self._docker:
            found += [f"{name}: {it}" for name, vm in self.vms.items() for it in vm.containers()]
        of_attempts = [f for f in self.shared.glob("*/*") if f.is_dir()]
        journals = list(self.folder.glob("*/agent/attempts/*"))
        return found + [str(f.relative_to(self.folder)) for f in (*of_attempts, *journals)]

    def no_ranks(self, *but: str, seconds: float = NOTICED) -> None:
        """See that no process of a task is left on any host ``but`` some."""

        def look() -> bool:
            return not any(vm.busy() for name, vm in self.vms.items() if name not in but)

        with suppress(AssertionError):
            self.until(look, seconds)
            return
        raise AssertionError("\n".join(self.left(*but)))

    def check(self, *but: str, seconds: float = NOTICED) -> None:
        """See that nothing is left of any task."""
        with suppress(AssertionError):
            self.until(lambda: not self.left(*but), seconds)
            return
        raise AssertionError("\n".join(self.left(*but)))

    def close(self) -> None:
        """End all VMs."""
        for vm in self.vms.values():
            vm.remove()


def is_head(name: str) -> bool:
    """Tell whether a VM's agent takes tasks: the head's does, and that of one that stands by."""
    return name.startswith(HEAD)


def is_program(command: str, program: str) -> bool:
    """Tell whether a command line is that of a program itself, not of what starts it."""
    first, *rest = command.split()
    return Path(first).name == program or (
        Path(first).name.startswith("python") and any(Path(r).name == program for r in rest[:1])
    )


@contextmanager
def cluster_lab(engine: Engine, image: str) -> Iterator[ClusterLab]:
    """Make a lab with servers of its own; at the end all of it is removed."""
    # Not in the folder of pytest, which is closed to other users.
    folder = Path(tempfile.mkdtemp(prefix="simagent-cluster-", dir="/tmp"))
    folder.chmod(0o755)
    network = Network(engine, f"simlab-{uuid4().hex[:8]}")
    lab = None
    try:
        with moto_server(network.gateway) as moto:
            lab = ClusterLab(engine, image, folder, moto, network)
            try:
                yield lab
            finally:
                lab.close()
    finally:
        network.remove()
        shutil.rmtree(folder)
