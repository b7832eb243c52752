"""Machines with systemd: containers with it as their first process, in a network of their own."""

import fcntl
import json
import os
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TypeVar
from uuid import uuid4

import pytest

from engines.dockerd import Engine
from engines.hosts import Host, Network
from fakes.aws import Moto, moto_server
from shelf.images import make_debian

SUITES = ("trixie", "bookworm")
"""Releases of Debian: systemd 257 and Python 3.13, or 252 and 3.11. Apptainer is in the first."""
BOOTED = 180.0
"""Seconds within which a machine has booted, or is down, where others boot beside it."""
PATIENCE = 120.0
"""Seconds to wait for what has to happen in the end. Of use only where it does not."""
SETTINGS = "/etc/simagent/agent.toml"

_DOCKERFILE = Path(__file__).parent / "machine" / "Dockerfile"
_EQUIPPED = _DOCKERFILE.with_name("equipped.Dockerfile")
_TRIES_EVERY = 0.3  # seconds; each is a program that Docker starts there
_T = TypeVar("_T")

_OPTIONS = (
    "--cgroupns=private",
    "--cap-add=ALL",
    "--cap-drop=SYS_RESOURCE",  # there are hosts that cannot give it
    "--tmpfs=/run:exec",
    "--tmpfs=/run/lock",
    "--tmpfs=/tmp:exec",
)


class Machine(Host):
    """One machine; what it writes outlives reboots, but for /run and /tmp."""

    def boot(
        self,
        image: str,
        *,
        disk_mb: int | None = None,
        folders: Mapping[Path, str] | None = None,
        shared: Mapping[Path, str] | None = None,
    ) -> None:
        """Switch it on for the first time, and wait until it is up.

        Args:
            image: Of `Images`.
            disk_mb: The size of an own disk at /var/lib/simagent, which a reboot empties.
            folders: Of this host's, and where the machine has them, for reading alone.
            shared: The same, for writing, too.
        """
        options = [*_OPTIONS]
        for source, target in (shared or {}).items():
            options.append(f"--volume={source}:{target}")
        if disk_mb is not None:
            options.append(f"--tmpfs=/var/lib/simagent:exec,mode=711,size={disk_mb}m")
        for source, target in (folders or {}).items():
            options.append(f"--volume={source}:{target}:ro")
        self.start(image, *options)
        self.is_up()

    def run(
        self,
        *argv: str,
        user: str = "root",
        check: bool = True,
        stdin: bytes = b"",
        seconds: float = 300,
        **env: str,
    ) -> subprocess.CompletedProcess[str]:
        """Run a command there, from /, and give what it prints."""
        options = [f"--env={name}={value}" for name, value in env.items()]
        options += ["--interactive"] if stdin else []
        words = ["exec", f"--user={user}", "--workdir=/", *options, self.container, *argv]
        return self._engine.run(*words, check=check, stdin=stdin, seconds=seconds)

    def simagent(self, *argv: str, check: bool = True) -> str:
        """Run the package's command as root; give what it prints to stdout."""
        return self.run("simagent", *argv, check=check).stdout

    def write(self, path: str, text: str, mode: int = 0o644) -> None:
        """Write a file there, as root; its folder is made."""
        script = 'umask 022; mkdir -p "$(dirname "$1")" && cat >"$1" && chmod "$2" "$1"'
        self.run("sh", "-c", script, "sh", path, f"{mode:o}", stdin=text.encode() or b"\n")

    def read(self, path: str) -> str:
        """Read a file of the machine's."""
        return self.run("cat", path).stdout

    def configure(self, **settings: object) -> None:
        """Write the agent's settings, in place of those that it had."""
        lines = [f"{name} = {_toml(value)}\n" for name, value in settings.items()]
        self.write(SETTINGS, "".join(lines))

    # --- systemd -------------------------------------------------------------------------------

    def systemctl(self, *argv: str, check: bool = True) -> str:
        """Run systemctl; give what it prints, without a blank at the end."""
        return self.run("systemctl", *argv, check=check).stdout.strip()

    def shows(self, unit: str, what: str) -> str:
        """Give a property of a unit, as ``MainPID``, ``ActiveState`` or ``StatusText``."""
        return self.systemctl("show", "--value", f"--property={what}", unit)

    def is_active(self, unit: str = "simagent.service") -> bool:
        """Tell whether a unit runs."""
        return self.shows(unit, "ActiveState") == "active"

    def journal(self, unit: str = "simagent.service") -> str:
        """Give what a unit has logged, since the first boot."""
        return self.run("journalctl", "--no-pager", "--output=cat", f"--unit={unit}").stdout

    def until(self, look: Callable[[], _T | None], seconds: float = PATIENCE) -> _T:
        """Look until there is something to see; where there is not, tell what the agent says."""
        deadline = time.monotonic() + seconds
        while (seen := look()) is None or seen is False:
            if time.monotonic() > deadline:
                raise AssertionError(f"waited in vain for {seconds:g} s:\n{self.told()}")
            threading.Event().wait(_TRIES_EVERY)
        return seen

    def told(self) -> str:
        """Tell all that may explain why something did not happen."""
        if not self.is_on:
            return "the machine is off"
        asked = [
            ("systemctl", "--no-pager", "--failed"),
            ("systemctl", "--no-pager", "status", "simagent*"),
            ("journalctl", "--no-pager", "--lines=80", "--output=short-monotonic"),
        ]
        return "\n".join(self.run(*argv, check=False).stdout for argv in asked)

    # --- Being on and off ----------------------------------------------------------------------

    def is_up(self, seconds: float = BOOTED) -> str:
        """Wait until it has booted; give what it says of itself: ``running`` or ``degraded``."""
        deadline = time.monotonic() + seconds
        while True:
            done = self.run("systemctl", "is-system-running", check=False)
            if (word := done.stdout.strip()) in ("running", "degraded"):
                return word
            if time.monotonic() > deadline or not self.is_on:
                log = self._engine.run("logs", "--tail=50", self.container, check=False)
                raise AssertionError(f"{self.name} does not boot: {word}\n{log.stdout}{log.stderr}")
            threading.Event().wait(_TRIES_EVERY)

    def reboot(self, seconds: float = BOOTED) -> None:
        """Shut it down in order, units and all, and let it boot again."""
        self._engine.run("restart", "-t", str(int(seconds)), self.container, seconds=seconds + 30)
        self.is_up()

    def shut_down(self, seconds: float = BOOTED) -> None:
        """Shut it down in order; `start_again` and `is_up` bring it back."""
        self._engine.run("stop", "-t", str(int(seconds)), self.container, seconds=seconds + 30)

    def crash(self) -> None:
        """Lose power in the midst of all, and boot again."""
        self.die()
        self.start_again()
        self.is_up()


def _toml(value: object) -> str:
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{name} = {_toml(each)}" for name, each in value.items()) + "}"
    return json.dumps(value)


class Images:
    """Images of machines, made once, of layers that the engine keeps from run to run."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._made: dict[tuple[str, Path | None, bool], str] = {}

    def of(self, suite: str, package: Path | None = None, *, equipped: bool = False) -> str:
        """Give the image of a machine with a release of Debian; with a package installed, too.

        One that is ``equipped`` has docker.io and openssh-server, which are not enabled.
        """
        key = (suite, package, equipped)
        if key not in self._made:
            with _alone():
                made = self._equipped(suite) if equipped else self._bare(suite)
                self._made[key] = self._installed(made, package) if package else made
        return self._made[key]

    def _bare(self, suite: str) -> str:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("DOCKER_HOST", self._engine.host)
            make_debian(suite)
        return self._build(_DOCKERFILE, "machine", suite)

    def _equipped(self, suite: str) -> str:
        self._bare(suite)
        return self._build(_EQUIPPED, "machine-equipped", suite)

    def _build(self, file: Path, name: str, suite: str) -> str:
        tag = f"simagent/{name}:{suite}"
        # Packages are fetched the way the host does.
        options = ["--network=host", f"--build-arg=SUITE={suite}", f"--file={file}", f"--tag={tag}"]
        self._engine.run("build", *options, str(file.parent), seconds=900)
        return tag

    def _installed(self, machine: str, package: Path) -> str:
        name = machine.replace(":", "-installed:")
        # Without any network: the package brings all that it needs.
        script = f"FROM {machine}\nCOPY {package.name} /\n"
        script += f"RUN dpkg --force-unsafe-io --install /{package.name}\n"
        options = ["--network=none", f"--tag={name}", "--file=-"]
        with tempfile.TemporaryDirectory(dir=package.parent) as folder:
            os.link(package, Path(folder) / package.name)
            self._engine.run("build", *options, folder, stdin=script.encode(), seconds=600)
        return name


@contextmanager
def _alone() -> Iterator[None]:
    """Wait for others who test: they would make the same things twice."""
    with _DOCKERFILE.open() as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


class Lab:
    """Machines in one network, and servers of S3 and SQS that they reach there."""

    def __init__(self, engine: Engine, images: Images, folder: Path, end: ExitStack) -> None:
        self.folder = folder
        self.images = images
        self.machines: list[Machine] = []
        self._engine = engine
        self._end = end
        self._aws: Moto | None = None
        self.network = Network(engine, f"simlab-{uuid4().hex[:8]}")
        end.callback(self.network.remove)

    def boot(
        self,
        suite: str = "trixie",
        *,
        name: str = "vm",
        package: Path | None = None,
        equipped: bool = False,
        disk_mb: int | None = None,
        folders: Mapping[Path, str] | None = None,
        shared: Mapping[Path, str] | None = None,
    ) -> Machine:
        """Boot a machine, with a package of simagent's installed or none."""
        machine = Machine(self._engine, name, self.network.name)
        self.machines.append(machine)
        self._end.callback(machine.remove)
        image = self.images.of(suite, package, equipped=equipped)
        machine.boot(image, disk_mb=disk_mb, folders=folders, shared=shared)
        return machine

    @property
    def aws(self) -> Moto:
        """S3 and SQS, which machines and this host reach at the same address."""
        if self._aws is None:
            self._aws = self._end.enter_context(moto_server(self.network.gateway))
        return self._aws


@contextmanager
def machine_lab(engine: Engine, images: Images, folder: Path) -> Iterator[Lab]:
    """Make a lab; at the end its machines are removed."""
    with ExitStack() as end:
        yield Lab(engine, images, folder, end)
