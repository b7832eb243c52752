"""Ranks that die in containers, whose exit codes look like those of an mpirun that died."""

import os
import signal
import tempfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from engines.apptainer import Apptainer
from engines.dockerd import Engine
from fakes.rig import Rig
from fakes.steps import commands_of
from shelf.images import build, image_file
from shelf.model import ROOT, load
from simagent.domain.keys import TaskKeys
from simagent.worker.cores import physical_cores

FILES = ROOT.parent / "build" / "images"
LONGEST = 180.0
"""Seconds a task may take; the first one of an image has it unpacked."""
RANK = "r=${OMPI_COMM_WORLD_RANK:-$PMI_RANK}; echo rank $r; "
REST = "exec sleep 300"
JOIN = "from mpi4py.MPI import COMM_WORLD as w; w.Barrier(); "


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder that the tasks' user may pass, unlike pytest's own."""
    with tempfile.TemporaryDirectory(prefix="simagent-test-") as made:
        Path(made).chmod(0o755)
        yield Path(made)


@pytest.fixture
def rig(folder: Path) -> Rig:
    return Rig(folder)


@pytest.fixture(params=["docker", "apptainer"])
def submit(
    request: pytest.FixtureRequest,
    rig: Rig,
    docker_engine: Engine,
    apptainer: Apptainer,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[Callable[..., TaskKeys]]:
    """Submit two ranks in an image with Open MPI; none may be left at the end."""
    monkeypatch.setenv("DOCKER_HOST", docker_engine.host)
    simulator = load("mpi-probe")
    build(simulator)
    image = image_file(simulator, request.param, FILES)
    tasks = []

    def submit(*argv: str, np: int | str = 2, **fields: object) -> TaskKeys:
        ranks = {"run": argv, "mpi": {"np": np, "oversubscribe": np != "max"}}
        tasks.append(rig.submit(ranks, image=image, runtime=request.param, **fields))
        return tasks[-1]

    with rig.agent(docker_host=docker_engine.host, runtimes=(request.param,)):
        yield submit
        for task in tasks:
            rig.finish(task, LONGEST)
    assert [commands_of(task.id) for task in tasks] == [[] for _ in tasks]


@pytest.mark.timeout(2700)  # where nothing was built yet, all packages are fetched
def test_a_rank_that_a_signal_ends_is_named(rig: Rig, submit: Callable[..., TaskKeys]) -> None:
    code = JOIN + "import os; w.rank == 1 and os.kill(os.getpid(), 9); w.Barrier()"
    state = rig.finish(submit("python3", "-c", code), LONGEST)
    assert (state.status, state.reason) == ("failed", "mpi_rank_failed"), state.stderr_tail
    assert "rank 1 on " in (state.message or "")
    assert "was ended by SIGKILL (signal 9)" in (state.message or "")


def test_a_rank_that_exits_by_itself_is_no_rank_that_failed(
    rig: Rig, submit: Callable[..., TaskKeys]
) -> None:
    state = rig.finish(submit("/bin/sh", "-c", f"{RANK}[ $r = 0 ] || exit 3"), LONGEST)
    assert (state.status, state.reason) == ("failed", "exit_code")
    assert "exited with code 3" in (state.message or "")


def test_an_mpirun_that_is_killed_is_no_rank_that_failed(
    rig: Rig, submit: Callable[..., TaskKeys]
) -> None:
    task = submit("/bin/sh", "-c", RANK + REST)
    rig.until(lambda: {b"rank 0", b"rank 1"} <= set(rig.log(task).splitlines()), LONGEST)
    found = [pid for pid in commands_of(task.id) if _name(pid) in ("mpirun", "prterun")]
    assert found, "an mpirun runs"
    for pid in found:
        with suppress(ProcessLookupError):  # it ended with another one
            os.kill(pid, signal.SIGKILL)
    state = rig.finish(task, LONGEST)
    assert (state.status, state.reason) == ("failed", "signal")


def test_an_image_without_mpirun_is_told_so(rig: Rig, submit: Callable[..., TaskKeys]) -> None:
    state = rig.finish(submit("true", env={"PATH": "/nowhere"}), LONGEST)
    assert state.status == "failed"
    assert state.reason in ("mpi_unavailable", "command_not_found"), state.message


def test_ranks_that_have_the_machine_are_each_bound_to_a_core(
    rig: Rig, submit: Callable[..., TaskKeys]
) -> None:
    task = submit("grep", "Cpus_allowed_list", "/proc/self/status", np="max")
    state = rig.finish(task, LONGEST)
    assert state.status == "succeeded", state.message
    bound = rig.log(task).splitlines()
    assert len(bound) == len(set(bound)) == physical_cores(), "no two of them share one"
    assert rig.log(task, "stderr") == b""


def _name(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip()
    except OSError:
        return ""
