"""Containers that stand for hosts: a network of their own, and faults as clouds have them."""

import json
from pathlib import Path

from engines.dockerd import Engine

PRIVILEGES = (
    "--security-opt=seccomp=unconfined",
    "--security-opt=systempaths=unconfined",
    "--security-opt=apparmor=unconfined",
    "--device=/dev/fuse",
)
"""What Apptainer needs in a container: it makes user namespaces, and mounts by FUSE."""


class Host:
    """One host in one network, which is known there by its name."""

    def __init__(self, engine: Engine, name: str, network: str) -> None:
        self.name = name
        self.container = f"{network}-{name}"
        self._engine = engine
        self._network = network

    def start(self, image: str, *options: str, command: tuple[str, ...] = ()) -> None:
        """Start its container in the network; as often as faults end it, it comes back."""
        named = ["--name", self.container, "--hostname", self.name]
        named += ["--network", self._network, "--network-alias", self.name]
        self._engine.run("run", "--detach", *named, *PRIVILEGES, *options, image, *command)

    @property
    def address(self) -> str:
        """Where it is in the network."""
        form = f'{{{{(index .NetworkSettings.Networks "{self._network}").IPAddress}}}}'
        return self._engine.run("inspect", "--format", form, self.container).stdout.strip()

    def processes(self) -> list[tuple[int, str]]:
        """List what runs there: process ids of this host's, command lines; frozen ones, too."""
        done = self._engine.run("top", self.container, "-eo", "pid,stat,args", check=False)
        if done.returncode:
            return []  # it does not run
        rows = (line.split(None, 2) for line in done.stdout.splitlines()[1:])
        return [(int(row[0]), row[2]) for row in rows if not row[1].startswith("Z")]

    def copy_in(self, source: Path, target: str) -> None:
        """Copy a file or a folder to its disk: not to what is in memory there, as /tmp."""
        self._engine.run("cp", "--archive", str(source), f"{self.container}:{target}")

    def remove(self) -> None:
        """Remove it, and all that it has written."""
        self._engine.run("rm", "--force", "--volumes", self.container, check=False)

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

    @property
    def is_on(self) -> bool:
        """Whether it runs, be it frozen."""
        form = "{{.State.Running}}"
        return (
            self._engine.run("inspect", "--format", form, self.container).stdout.strip() == "true"
        )

    def heal(self) -> None:
        """Undo any of these."""
        (told,) = json.loads(self._engine.run("inspect", self.container).stdout)
        if told["State"]["Paused"]:
            self.thaw()
        if not told["State"]["Running"]:
            self.start_again()
        if self._network not in told["NetworkSettings"]["Networks"]:
            self.join()


class Network:
    """What hosts are connected by, and this host."""

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
