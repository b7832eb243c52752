"""Ranks of real MPIs over two hosts: network namespaces, entered by a script in place of ssh."""

import os
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from engines import mpi
from engines.mpi import Hosts, Mpi
from simagent.launchers.hydra import HydraLauncher
from simagent.launchers.inside import InsideLauncher
from simagent.launchers.openmpi import OpenMpiLauncher
from simagent.ports.launcher import GUARD_CODE, Host, Launcher, Ranks, Span, guard_said

# Each rank tells who it is, and which memory it shares with others, once it has spoken to them.
_RANK = """
import json, os, socket, sys
from mpi4py import MPI
world = MPI.COMM_WORLD
world.allgather(bytes(100_000))
right, left = (world.rank + 1) % world.size, (world.rank - 1) % world.size
world.sendrecv(bytearray(1 << 20), right, source=left)
shared = {
    f[3] + f[4]
    for f in (line.split(None, 5) for line in open("/proc/self/maps"))
    if f[1].startswith("rw") and f[1].endswith("s") and len(f) > 5 and f[5].startswith("/dev/shm/")
}
world.Barrier()
sys.stdout.write(json.dumps({
    "rank": world.rank, "size": world.size, "host": socket.gethostname(),
    "said": os.environ.get("SAID"), "shared": sorted(shared),
}) + "\\n")
sys.stdout.flush()
world.Barrier()
"""
_SLEEP = """
from mpi4py import MPI
import time
MPI.COMM_WORLD.Barrier()
if MPI.COMM_WORLD.rank == 0:
    print("ready", flush=True)
time.sleep(600)
"""
_SAID = """two words; $HOME "quoted' é"""
_LIMIT = 120.0


@pytest.fixture(scope="session", params=["openmpi-4", "openmpi-5", "mpich"])
def installed(request: pytest.FixtureRequest) -> Mpi:
    """A real MPI."""
    match request.param:
        case "openmpi-4":
            found = mpi.open_mpi_4()
        case "openmpi-5":
            found = mpi.open_mpi_5(request.config.cache.mkdir("open-mpi-5"))
        case _:
            found = mpi.mpich()
    if isinstance(found, str):
        pytest.skip(found)
    return found


@pytest.fixture
def hosts(tmp_path: Path) -> Iterator[Hosts]:
    """Two hosts."""
    why_not = mpi.missing_hosts()
    if why_not is not None:
        pytest.skip(why_not)
    with Hosts(tmp_path) as hosts:
        yield hosts


def _launcher(installed: Mpi, way: str) -> Launcher:
    if way == "inside":
        return InsideLauncher()
    if installed.name == "mpich":
        return HydraLauncher(str(installed.mpirun))
    return OpenMpiLauncher(str(installed.mpirun), version=installed.name[-1], root=True)


def _command(
    installed: Mpi, hosts: Hosts, script: str, way: str, *, env: dict[str, str]
) -> tuple[list[str], dict[str, str]]:
    """Give the command that runs a script as two ranks on each host, and its environment."""
    env = {"MPICH_ASYNC_PROGRESS": "0", **installed.env, **env}
    first, second = hosts.addresses
    span = Span(
        hosts=(Host(address=first, slots=2), Host(address=second, slots=2)),
        agent=str(hosts.agent),
        network=hosts.network,
    )
    ranks = Ranks(np=4, env=tuple(env), bind="none", span=span, guard=True)
    launcher = _launcher(installed, way)
    for name, text in launcher.files(ranks).items():
        (hosts.folder / name).write_text(text)
    program = hosts.folder / "ranks.py"
    program.write_text(script)
    # All ranks of both hosts are on the few cores of one machine.
    calm = {"OMPI_MCA_mpi_yield_when_idle": "1"}
    whole = {
        "HOME": str(hosts.folder),
        "PATH": f"{installed.mpirun.parent}:{os.environ['PATH']}",
        **calm,
        **launcher.environment(ranks),
        **env,
    }
    return list(launcher.command(ranks, [str(installed.python), str(program)])), whole


@pytest.mark.parametrize("way", ["host", "inside"])
def test_ranks_find_each_other_and_share_memory(installed: Mpi, hosts: Hosts, way: str) -> None:
    command, env = _command(installed, hosts, _RANK, way, env={"SAID": _SAID})
    ran = subprocess.run(
        hosts.on_first(*command),
        env=env,
        capture_output=True,
        text=True,
        timeout=_LIMIT,
        check=False,
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    ranks = sorted(mpi.rank_lines(ran.stdout), key=lambda rank: str(rank["rank"]))
    assert [(rank["rank"], rank["size"], rank["host"]) for rank in ranks] == [
        *((0, 4, "vm1"), (1, 4, "vm1"), (2, 4, "vm2"), (3, 4, "vm2")),
    ]
    assert {rank["said"] for rank in ranks} == {_SAID}
    for host in ("vm1", "vm2"):
        segments = Counter(
            segment
            for rank in ranks
            if rank["host"] == host
            for segment in (rank["shared"] if isinstance(rank["shared"], list) else [])
        )
        assert max(segments.values(), default=0) == 2, f"ranks on {host} share no memory: {ranks}"
    entered = hosts.entered()
    assert [line.split()[:2] for line in entered] == [
        ["begin", hosts.addresses[1]],
        ["end", hosts.addresses[1]],
    ]
    assert entered[-1].endswith(" 0")


def test_a_killed_mpirun_leaves_nothing_on_the_other_host(installed: Mpi, hosts: Hosts) -> None:
    """The daemon that is attached to the agent sees that its mpirun is gone, and ends its ranks."""
    command, env = _command(installed, hosts, _SLEEP, "host", env={})
    job = subprocess.Popen(
        hosts.on_first(*command), env=env, stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        assert job.stdout is not None
        assert job.stdout.readline() == "ready\n"
        assert [line.split()[0] for line in hosts.entered()] == ["begin"]
        job.kill()
        job.wait()
        deadline = time.monotonic() + 60
        while len(hosts.entered()) < 2 or hosts.pids(2):
            assert time.monotonic() < deadline, hosts.pids(2)
            time.sleep(0.1)
    finally:
        for pid in (*hosts.pids(1), *hosts.pids(2)):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def test_a_program_of_another_mpi_is_refused() -> None:
    """Each of its processes would be a job of one rank, and all of them succeed."""
    four, other = mpi.open_mpi_4(), mpi.mpich()
    if isinstance(four, str) or isinstance(other, str):
        pytest.skip(four if isinstance(four, str) else str(other))
    command = HydraLauncher(str(other.mpirun)).command(Ranks(np=2, guard=True), ["ompi_info"])
    ran = subprocess.run(command, capture_output=True, text=True, timeout=_LIMIT, check=False)
    assert ran.returncode == GUARD_CODE, ran.stdout + ran.stderr
    said = guard_said(ran.stderr)
    assert said is not None
    assert said[0].value == "mpi_mismatch"
    assert "ompi_info is linked with an Open MPI" in said[1]
