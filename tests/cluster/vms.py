"""Hosts of clusters: with a user and a folder that they share."""

import os
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path

from engines.dockerd import Engine
from engines.hosts import Host

USER = "sim"
SSH_PORT = 2200
"""Of the ssh servers that tests start for mpirun by hand; agents of members have their own."""

_PATH = "/opt/simagent/bin:/usr/local/bin:/usr/bin:/bin"
# What may be there while nothing runs for a task: the VM itself, its Docker Engine, and members'
# ssh servers, with connections to hosts that vanished: they are given up after a minute.
_AT_REST = (
    *("/sbin/docker-init ", "sleep infinity", "dockerd ", "containerd "),
    *("/usr/sbin/sshd ", "sshd: ", "sshd-session: "),
)
_DATA = "/var/lib/docker"
# Writable cgroups; those of version 2 are handed on to other groups than that of who is here. No
# bridge and no firewall rules: ranks have the network of the VM.
_DOCKERD = f"""\
for mount in /sys/fs/cgroup $(ls -d /sys/fs/cgroup/*/); do
    mount -o remount,rw,bind $mount 2>/dev/null || true
done
if [ -e /sys/fs/cgroup/cgroup.controllers ]; then
    mkdir -p /sys/fs/cgroup/vm
    for pid in $(cat /sys/fs/cgroup/cgroup.procs); do
        echo $pid >/sys/fs/cgroup/vm/cgroup.procs || true
    done
    sed 's/[^ ]* */+&/g' /sys/fs/cgroup/cgroup.controllers >/sys/fs/cgroup/cgroup.subtree_control
fi
dockerd --bridge none --iptables=false --ip6tables=false --data-root {_DATA} \\
    --group "$(id -gn {USER})" >/state/dockerd.log 2>&1 &
for _ in $(seq 900); do docker info >/dev/null 2>&1 && exit; sleep 0.1; done
tail -n 5 /state/dockerd.log >&2
exit 1
"""


class Vm(Host):
    """One VM; what is beneath ``folder``, on the host, it has in /state."""

    def __init__(self, engine: Engine, name: str, network: str, folder: Path, uid: int) -> None:
        super().__init__(engine, name, network)
        self.folder = folder
        self._uid = uid

    def boot(self, image: str, shared: Path, images: Path, *, docker: bool = False) -> None:
        """Start it, with a user who is the same one on all VMs, and may use its Docker Engine."""
        self.folder.mkdir(parents=True)
        os.chown(self.folder, self._uid, -1)
        options = ["--init", "--user", "root", "--cap-add", "NET_ADMIN", "--shm-size", "1g"]
        options += ["--volume", f"{shared}:/shared", "--volume", f"{images}:/images:ro"]
        if docker:  # all but what not every machine has to give
            options += ["--cap-add", "ALL", "--cap-drop", "SYS_RESOURCE", "--volume", _DATA]
        self.start(image, *options, "--volume", f"{self.folder}:/state")
        add = f"useradd --uid {self._uid} --create-home --shell /bin/sh {USER}"
        # An image's own user may have that number.
        rename = f"usermod --login {USER} --home /home/{USER} --move-home $(id -nu {self._uid})"
        self.run(f"if id {self._uid} >/dev/null 2>&1; then {rename}; else {add}; fi", user="root")
        if docker:
            self.run(_DOCKERD, user="root")

    def containers(self) -> list[str]:
        """List the containers of its own engine, whether they run or not; none without one."""
        listed = self.run("docker ps --all --format '{{.Names}}'", user="root", check=False)
        return listed.stdout.split()

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

    def busy(self) -> list[str]:
        """List what runs there for a task: all that is neither the VM's own nor an agent."""
        commands = (command for _, command in self.processes())
        return [c for c in commands if not c.startswith(_AT_REST) and not is_agent(c)]


def is_agent(command: str) -> bool:
    """Tell whether a command line is that of an agent."""
    words = command.split()
    return any(word.endswith("/simagent") for word in words[:2]) and "agent" in words[2:4]
