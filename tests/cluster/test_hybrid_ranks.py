"""Ranks in containers of an image, started by the host's own mpirun: real MPIs on both sides."""

import os
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from cluster.images import MPICH, OPENMPI_4
from engines import mpi
from engines.mpi import Mpi, rank_lines
from fakes.capsules import NOBODY, Capsule, capsule_of_a_test
from simagent.domain.reasons import Reason
from simagent.launchers.hydra import HydraLauncher
from simagent.launchers.installed import detect
from simagent.launchers.openmpi import OpenMpiLauncher
from simagent.ports.launcher import GUARD_CODE, Ranks, guard_said
from simagent.ports.runtime import RANK, Launch
from simagent.runtimes.apptainer_ranks import shared_memory

ROOT = os.geteuid() == 0
USER = (NOBODY, NOBODY) if ROOT else (os.geteuid(), os.getegid())
OPENMPI_5 = "mpi-probe"

# The ranks of one host have a part of /dev/shm in common where they share memory.
_PROBE = """
import json, os, sys
from mpi4py import MPI
world = MPI.COMM_WORLD
world.allgather(bytes(100_000))
right, left = (world.rank + 1) % world.size, (world.rank - 1) % world.size
world.sendrecv(bytearray(1 << 20), right, source=left)
maps = [line.split(None, 5) for line in open("/proc/self/maps")]
shared = {f[4] for f in maps if f[1].endswith("s") and "segment" in f[-1]}
world.Barrier()
sys.stdout.write(json.dumps({
    "rank": world.rank, "size": world.size, "said": os.environ.get("SAID"),
    "shared": sorted(shared),
}) + "\\n")
sys.stdout.flush()
world.Barrier()
"""


@pytest.fixture(scope="session")
def open_mpi_5(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Mpi:
    """PyPI's Open MPI 5, where any user can run it."""
    return _there(mpi.open_mpi_5(request.config.cache.mkdir("open-mpi-5")))


def _there(found: Mpi | str) -> Mpi:
    if isinstance(found, str):
        pytest.skip(found)
    return found


@contextmanager
def _box(image: Path) -> Iterator[Capsule]:
    with capsule_of_a_test(image, USER) as made:
        yield made
    assert not shared_memory(made.plan("sh")).exists()


def _launch(installed: Mpi, np: int = 2, *, force: bool = False) -> Launch:
    path = str(installed.mpirun)
    found = detect(path)
    assert found is not None
    ranks = Ranks(np=np, bind="none", oversubscribe=True)
    launcher: HydraLauncher | OpenMpiLauncher
    if found.flavour == "hydra":
        launcher = HydraLauncher(path, version=found.version)
    else:
        launcher = OpenMpiLauncher(path, version=found.version, root=not os.geteuid())
    return Launch(
        argv=launcher.command(ranks, RANK),
        np=np,
        env={"OMPI_MCA_mpi_yield_when_idle": "1"},
        mpi="" if force else launcher.mpi,
    )


def _probe(box: Capsule) -> tuple[str, ...]:
    program = box.artifacts / "probe.py"
    program.write_text(_PROBE)
    program.chmod(0o644)
    return ("python3", "probe.py")


def _run_probe(box: Capsule, launch: Launch) -> list[dict[str, object]]:
    plan = box.plan(
        *_probe(box),
        network="host",
        launch=launch,
        env={"SAID": "a b $c", "SIMAGENT_TASK_ID": str(box.root)},
    )
    ended = box.run(plan)
    assert (ended.exit_code, ended.reason) == (0, None), (ended, box.out, box.err)
    return sorted(rank_lines(box.out.decode()), key=lambda rank: str(rank["rank"]))


@pytest.mark.parametrize("image", [OPENMPI_5, OPENMPI_4])
def test_ranks_of_containers_are_one_job_and_share_memory(
    sif: Callable[[str], Path], image: str
) -> None:
    host = _there(mpi.open_mpi_4())
    with _box(sif(image)) as box:
        ranks = _run_probe(box, _launch(host))
        assert [(rank["rank"], rank["size"]) for rank in ranks] == [(0, 2), (1, 2)]
        assert {rank["said"] for rank in ranks} == {"a b $c"}
        segments = Counter(name for rank in ranks for name in _names(rank["shared"]))
        assert max(segments.values(), default=0) == 2, ranks


def test_open_mpi_5_on_both_sides(sif: Callable[[str], Path], open_mpi_5: Mpi) -> None:
    with _box(sif(OPENMPI_5)) as box:
        ranks = _run_probe(box, _launch(open_mpi_5))
        assert [(rank["rank"], rank["size"]) for rank in ranks] == [(0, 2), (1, 2)]
        segments = Counter(name for rank in ranks for name in _names(rank["shared"]))
        assert max(segments.values(), default=0) == 2, ranks


def test_mpich_on_both_sides(sif: Callable[[str], Path]) -> None:
    host = _there(mpi.mpich())
    with _box(sif(MPICH)) as box:
        script = box.artifacts / "in.x"
        script.write_text("region b block 0 1 0 1 0 1\ncreate_box 1 b\n")
        script.chmod(0o644)
        argv = ("lmp", "-in", "in.x", "-log", "none")
        ended = box.run(box.plan(*argv, network="host", launch=_launch(host)))
        assert (ended.exit_code, ended.reason) == (0, None), (ended, box.out, box.err)
        assert b"1 by 1 by 2 MPI processor grid" in box.out
        assert b"ERROR" not in box.out + box.err


def test_an_older_mpi_in_the_image_is_refused(sif: Callable[[str], Path], open_mpi_5: Mpi) -> None:
    """Each rank would take itself for the only one, and succeed."""
    with _box(sif(OPENMPI_4)) as box:
        ended = box.run(box.plan(*_probe(box), network="host", launch=_launch(open_mpi_5)))
        assert (ended.exit_code, ended.reason, box.out) == (GUARD_CODE, None, b""), ended
        said = guard_said(box.err.decode())
        assert said is not None
        assert said[0] is Reason.MPI_MISMATCH
        assert "the image has Open MPI 4.1.4, which does not go with Open MPI 5." in said[1]


def test_forced_it_is_started_all_the_same(sif: Callable[[str], Path], open_mpi_5: Mpi) -> None:
    """What the refusal is for: two jobs of one rank."""
    with _box(sif(OPENMPI_4)) as box:
        ranks = _run_probe(box, _launch(open_mpi_5, force=True))
        assert [(rank["rank"], rank["size"]) for rank in ranks] == [(0, 1), (0, 1)]


@pytest.mark.parametrize("image", [OPENMPI_5, OPENMPI_4])
def test_another_mpi_in_the_image_is_refused(sif: Callable[[str], Path], image: str) -> None:
    host = _there(mpi.mpich())
    with _box(sif(image)) as box:
        ended = box.run(box.plan(*_probe(box), network="host", launch=_launch(host)))
        assert ended.exit_code == GUARD_CODE, (ended, box.err)
        said = guard_said(box.err.decode())
        assert said is not None
        assert "does not go with MPICH" in said[1]


def _names(value: object) -> list[str]:
    return [str(name) for name in value] if isinstance(value, list) else []
