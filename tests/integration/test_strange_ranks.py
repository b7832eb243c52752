"""Ranks of another MPI than that of the mpirun which starts them: each is a job of its own."""

import sys
from pathlib import Path

import pytest

from engines import mpi
from fakes.rig import Rig
from fakes.steps import commands_of
from simagent.domain.keys import TaskKeys

_PROGRAM = """
import time
from mpi4py import MPI
print("of", MPI.COMM_WORLD.size, flush=True)
time.sleep(float(__import__("sys").argv[1]))
"""


@pytest.fixture
def installed() -> tuple[mpi.Mpi, mpi.Mpi]:
    """MPICH, and Open MPI 4."""
    one, other = mpi.mpich(), mpi.open_mpi_4()
    if isinstance(one, str) or isinstance(other, str):
        pytest.skip(one if isinstance(one, str) else str(other))
    return one, other


def submit(rig: Rig, library: mpi.Mpi, seconds: float, **more: object) -> TaskKeys:
    argv = [sys.executable, "-c", _PROGRAM, str(seconds)]
    ranks = {"run": argv, "mpi": {"np": 2, "oversubscribe": True} | more, "env": dict(library.env)}
    return rig.submit(ranks)


def test_a_script_that_loads_another_mpi_is_ended(
    tmp_path: Path, installed: tuple[mpi.Mpi, mpi.Mpi]
) -> None:
    mpich, open_mpi = installed
    rig = Rig(tmp_path)
    with rig.agent(mpirun=str(mpich.mpirun)):
        task = submit(rig, open_mpi, 300)
        state = rig.finish(task)
        assert (state.status, state.reason) == ("failed", "mpi_mismatch")
        assert "its ranks loaded another MPI than that of mpirun" in (state.message or "")
        assert b"of 2" not in rig.log(task)
        assert commands_of(task.id) == []


def test_one_that_is_meant_is_left_alone(
    tmp_path: Path, installed: tuple[mpi.Mpi, mpi.Mpi]
) -> None:
    mpich, open_mpi = installed
    rig = Rig(tmp_path)
    with rig.agent(mpirun=str(mpich.mpirun)):
        assert rig.finish(submit(rig, open_mpi, 6, force=True)).status == "succeeded"
        assert rig.finish(submit(rig, mpich, 6)).status == "succeeded"
