"""A cluster in miniature: VMs, S3 and SQS, agents, a client, and what is left on any host."""

import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any
from uuid import uuid4

from cluster.vms import SSH_PORT, USER, Network, Vm, is_agent
from engines.dockerd import Engine
from fakes.aws import KEYS, Moto, moto_server
from fakes.rig import Rig
from fakes.s3 import make_bucket
from simagent.domain.keys import TaskKeys
from simagent.domain.state import State
from simagent.queues.sqs_setup import create_queue

HEAD = "head"
CLUSTER = "lab"
NOTICED = 30.0
"""Seconds within which a fault has ended the task, or given it back."""
_PATIENCE = 60.0
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

_SSH_CONFIG = f"Host *\n  Port {SSH_PORT}\n  StrictHostKeyChecking no\n  LogLevel ERROR\n"


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
        self._settings_of: dict[str, dict[str, Any]] = {}
        bucket = make_bucket(moto.endpoint, moto.name("lab"), moto.region)
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
            vm = Vm(
                self._engine, name, f"{self._network.name}-{name}", self.folder / name, self.uid
            )
            self.vms[name] = vm
            vm.boot(self._image, self.shared, images or self.images)

    def up(self, members: int = 1, *, mpi: Mapping[str, Any] | None = None, **fields: Any) -> None:
        """Start a head and members, and their agents; ``mpi`` and ``fields`` are of the head's."""
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
        role = ["--cluster", CLUSTER] + ([] if name == HEAD else ["--role", "member"])
        command = " ".join(["simagent", "agent", *role])
        vm.spawn(command, "agent.log", **KEYS, AWS_EC2_METADATA_DISABLED="true", **env)

    def _settings(
        self, name: str, mpi: Mapping[str, Any], fields: Mapping[str, Any]
    ) -> dict[str, Any]:
        shared = {"shared_dir": "/shared", "slots": 2}
        of_all = self._engines | {"times": _TIMES, "sample_every": 1.0, "agent": name}
        if name != HEAD:
            of_all = {k: v for k, v in of_all.items() if not k.startswith(("queue", "sqs_"))}
        return {
            **of_all,
            "state_dir": "/state/agent",
            "runtimes": ["apptainer"],
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
        self.vms[name].run("pkill -KILL -f 'simagent agent'", user="root")
        self.until(lambda: not self.agents_of(name))

    def log_of(self, name: str) -> str:
        """Give what an agent has logged."""
        file = self.folder / name / "agent.log"
        return file.read_text(errors="replace") if file.exists() else ""

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

    # --- Tasks ---------------------------------------------------------------------------------

    def link(self, sif: Path) -> str:
        """Give an image's file to all VMs; give its reference there."""
        (self.images / sif.name).unlink(missing_ok=True)
        os.link(sif, self.images / sif.name)
        return f"file:///images/{sif.name}"

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
            state = self.client.state(task)
            assert not state.terminal, self.told(task)
            return found if all(found[host] for host in hosts) else None

        return self.until(look, _PATIENCE)

    def told(self, task: TaskKeys) -> str:
        """Tell all that may explain what became of a task."""
        state = self.client.state(task)
        logs = {name: self.log_of(name)[-3000:] for name in self.vms}
        streams = {
            s: self.log(task, s)[-2000:].decode(errors="replace") for s in ("stdout", "stderr")
        }
        told = {"state": state.model_dump(mode="json"), **streams}
        return json.dumps(told, indent=1) + "".join(f"\n--- {n}\n{t}" for n, t in logs.items())

    def succeeds(self, task: TaskKeys, seconds: float = _PATIENCE) -> State:
        """Wait for the task's end, which has to be a good one, with nothing left on any host."""
        state = self.ends(task, seconds)
        assert state.status == "succeeded", self.told(task)
        self.check()
        return state

    def ends(self, task: TaskKeys, seconds: float = _PATIENCE) -> State:
        """Wait for the task's end."""
        with suppress(AssertionError):
            return self.finish(task, seconds)
        raise AssertionError(self.told(task))

    def outputs(self, task: TaskKeys) -> Path:
        """Fetch a task's outputs."""
        into = self.folder / "outputs" / task.id
        self.client.download(task, (), into)
        return into

    # --- Leftovers -----------------------------------------------------------------------------

    def left(self, *but: str) -> list[str]:
        """List what is left of tasks, on all hosts ``but`` some."""
        found = [
            f"{name}: {command}"
            for name, vm in self.vms.items()
            for command in (vm.busy() if name not in but else ())
        ]
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
            self._engine.run("rm", "--force", "--volumes", vm.container, check=False)


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
