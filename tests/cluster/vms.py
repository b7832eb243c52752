"""Containers that stand for VMs: an own network, a shared folder, faults as clouds have them."""

import json
import os
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path

from engines.dockerd import Engine

USER = "sim"
SSH_PORT = 2200
"""Of the ssh servers that tests start for mpirun by hand; agents of members have their own."""

_PATH = "/opt/simagent/bin:/usr/local/bin:/usr/bin:/bin"
# What may be there while nothing runs for a task: the VM itself, and the members' ssh servers, with
# connections to hosts that vanished: they are given up after a minute.
_AT_REST = ("/sbin/docker-init ", "sleep infinity", "/usr/sbin/sshd ", "sshd: ", "sshd-session: ")


class Vm:
    """One VM; what is beneath ``folder``, on the host, it has in /state."""

    def __init__(self, engine: Engine, name: str, container: str, folder: Path, uid: int) -> None:
        self.name = name
        self.container = container
        self.folder = folder
        self._engine = engine
        self._uid = uid
        self._network = container.removesuffix(f"-{name}")

    def boot(self, image: str, shared: Path, images: Path) -> None:
        """Start it, with a user who is the same one on all VMs."""
        self.folder.mkdir(parents=True)
        os.chown(self.folder, self._uid, -1)
        options = ["--init", "--name", self.container, "--hostname", self.name]
        options += ["--network", self._network, "--network-alias", self.name]
        options += ["--volume", f"{shared}:/shared", "--volume", f"{images}:/images:ro"]
        options += ["--volume", f"{self.folder}:/state", "--shm-size", "1g"]
        # Apptainer makes user namespaces, and mounts by FUSE.
        options += ["--device", "/dev/fuse", "--cap-add", "NET_ADMIN"]
        for allowed in ("seccomp", "systempaths", "apparmor"):
            options += ["--security-opt", f"{allowed}=unconfined"]
        self._engine.run("run", "--detach", "--user", "root", *options, image)
        add = f"useradd --uid {self._uid} --create-home --shell /bin/sh {USER}"
        # An image's own user may have that number.
        rename = f"usermod --login {USER} --home /home/{USER} --move-home $(id -nu {self._uid})"
        self.run(f"if id {self._uid} >/dev/null 2>&1; then {rename}; else {add}; fi", user="root")

    @property
    def address(self) -> str:
        """Where it is in the network."""
        form = f'{{{{(index .NetworkSettings.Networks "{self._network}").IPAddress}}}}'
        return self._engine.run("inspect", "--format", form, self.container).stdout.strip()

    def run(
        self,
        command: str,
        *,
        user: str = USER,
        check: bool = True,
        seconds: float = 120,
        **env: str,
    ) -> subprocess.CompletedProcess[str]:
        """Run a line of shell there."""
        argv = ["exec", *self._as(user, env), self.container, "sh", "-c", command]
        return self._engine.run(*argv, check=check, seconds=seconds)

    def spawn(self, command: str, log: str, **env: str) -> None:
        """Start a program there, which nobody waits for; what it prints goes to /state."""
        line = f"exec {command} >>/state/{log} 2>&1"
        argv = ["exec", "--detach", *self._as(USER, env), self.container, "sh", "-c", line]
        self._engine.run(*argv)

    def _as(self, user: str, env: dict[str, str]) -> Iterator[str]:
        of_root = user == "root"
        path = f"{_PATH}:/usr/sbin:/sbin" if of_root else _PATH
        home = "/root" if of_root else f"/home/{user}"
        yield from ("--user", user, "--workdir", "/")
        for name, value in {"PATH": path, "HOME": home, "USER": user, **env}.items():
            yield from ("--env", f"{name}={value}")

    def write(self, path: str, text: str) -> None:
        """Write a file there, as its user."""
        self.run(f"umask 077; mkdir -p {shlex.quote(str(Path(path).parent))}")
        self.run(f"umask 077; printf %s {shlex.quote(text)} >{shlex.quote(path)}")

    def processes(self) -> list[tuple[int, str]]:
        """List what runs there: process ids of this host's, command lines; frozen ones, too."""
        done = self._engine.run("top", self.container, "-eo", "pid,stat,args", check=False)
        if done.returncode:
            return []  # it does not run
        rows = (line.split(None, 2) for line in done.stdout.splitlines()[1:])
        return [(int(row[0]), row[2]) for row in rows if not row[1].startswith("Z")]

    def busy(self) -> list[str]:
        """List what runs there for a task: all that is neither the VM's own nor an agent."""
        commands = (command for _, command in self.processes())
        return [c for c in commands if not c.startswith(_AT_REST) and not is_agent(c)]

    # --- Faults --------------------------------------------------------------------------------

    def die(self) -> None:
        """Lose power."""
        self._engine.run("kill", self.container)

    def freeze(self) -> None:
        """Stand still: nothing answers, and nothing ends."""
        self._engine.run("pause", self.container)

    def thaw(self) -> None:
        """Go on."""
        self._engine.run("unpause", self.container)

    def cut_off(self) -> None:
        """Lose the network, without a word to whoever is connected."""
        self._engine.run("network", "disconnect", self._network, self.container)

    def join(self) -> None:
        """Be in the network again, perhaps with another address."""
        self._engine.run("network", "connect", "--alias", self.name, self._network, self.container)

    def start_again(self) -> None:
        """Come back after `die`: what ran is gone, the files are there."""
        self._engine.run("start", self.container)

    def heal(self) -> None:
        """Undo any of these."""
        (told,) = json.loads(self._engine.run("inspect", self.container).stdout)
        if told["State"]["Paused"]:
            self.thaw()
        if not told["State"]["Running"]:
            self.start_again()
        if self._network not in told["NetworkSettings"]["Networks"]:
            self.join()


def is_agent(command: str) -> bool:
    """Tell whether a command line is that of an agent."""
    words = command.split()
    return any(word.endswith("/simagent") for word in words[:2]) and "agent" in words[2:4]


class Network:
    """What the VMs are connected by, and this host."""

    def __init__(self, engine: Engine, name: str) -> None:
        self._engine = engine
        self.name = name
        engine.run("network", "create", name)
        (told,) = json.loads(engine.run("network", "inspect", name).stdout)
        subnet = told["IPAM"]["Config"][0]
        self.gateway: str = subnet["Gateway"]
        self.subnet: str = subnet["Subnet"]

    def remove(self) -> None:
        """Remove it."""
        self._engine.run("network", "rm", self.name, check=False)
