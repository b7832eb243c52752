"""What becomes of a task where ranks, hosts or agents fail: its reason, the host, what is left."""

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest

from cluster.images import HERE
from cluster.lab import HEAD, NOTICED, ClusterLab, cluster_lab
from engines.dockerd import Engine
from faults.lab import Stopwatch
from simagent.domain.keys import TaskKeys
from simagent.domain.state import State

RANK = "wait.py"
CONTAINED, HYBRID, PROCESS = "contained", "hybrid", "process"


class Standing:
    """A cluster that one test after the other hurts; a new one where it does not recover."""

    def __init__(self, engine: Engine, image: str) -> None:
        self._engine, self._image = engine, image
        self._held = ExitStack()
        self._lab: ClusterLab | None = None

    def give(self) -> ClusterLab:
        """Give one that is whole."""
        if self._lab is None:
            self._lab = self._held.enter_context(cluster_lab(self._engine, self._image))
            self._lab.up(members=1)
        return self._lab

    def take_back(self) -> None:
        """See whether it recovers."""
        assert self._lab is not None
        try:
            self._lab.heal()
            self._lab.check()
        except AssertionError:
            self.close()

    def close(self) -> None:
        """Remove it."""
        self._lab = None
        self._held.close()


@pytest.fixture(scope="module")
def standing(docker_engine: Engine, vm_image: str) -> Iterator[Standing]:
    made = Standing(docker_engine, vm_image)
    yield made
    made.close()


@pytest.fixture
def lab(standing: Standing) -> Iterator[ClusterLab]:
    yield standing.give()
    standing.take_back()


@pytest.fixture
def image(lab: ClusterLab, sif: Callable[[str], Path]) -> str:
    return lab.link(sif("mpi-probe"))


def spanning(lab: ClusterLab, image: str, how: str = CONTAINED, **fields: object) -> TaskKeys:
    """Submit a task whose two ranks wait for each other, one on the head and one on m1."""
    mpi: dict[str, object] = {"np": 2, "hosts": 2, "ranks_per_host": 1}
    if how == HYBRID:
        mpi["version"] = "5"
    task = lab.submit(
        {"run": f"python3 {RANK}", "mpi": mpi},
        image=None if how == PROCESS else image,
        inputs=[str(HERE / "ranks" / RANK)],
        **{"grace": 2.0} | fields,
    )
    lab.running_on(task, RANK, HEAD, "m1")
    lab.met(task)
    return task


def lost(lab: ClusterLab, task: TaskKeys, host: str, *reachable: str) -> None:
    """See that an attempt ends for a host that is gone, in time, and leaves no rank elsewhere."""
    watch = Stopwatch()
    state = lab.until(lambda: ended_first(lab, task), NOTICED)
    first = state.attempts[0]
    assert (first.reason, host in first.message) == ("mpi_host_lost", True), lab.told(task)
    lab.no_ranks(host, seconds=NOTICED - watch.running())
    assert not lab.client.state(task).terminal, lab.told(task)


def ended_first(lab: ClusterLab, task: TaskKeys) -> State | None:
    state = lab.client.state(task)
    return state if state.attempts and state.attempts[0].ended is not None else None


def goes_on(lab: ClusterLab, task: TaskKeys, epoch: int) -> State:
    """See that a task comes to its end, in its attempt ``epoch``."""
    lab.running_on(task, RANK, HEAD, "m1")
    lab.go(task)
    state = lab.succeeds(task)
    assert state.epoch == epoch
    assert lab.log(task) == b"2 head m1\nsum 3\n"
    return state


# --- Ranks -------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", [CONTAINED, HYBRID, PROCESS])
@pytest.mark.parametrize("host", [HEAD, "m1"])
def test_a_rank_dies(lab: ClusterLab, image: str, host: str, how: str) -> None:
    task = spanning(lab, image, how)
    (rank,) = lab.ranks(task, RANK)[host]
    os.kill(rank, signal.SIGKILL)
    state = lab.ends(task, NOTICED)
    assert (state.status, state.reason) == ("failed", "mpi_rank_failed"), lab.told(task)
    assert host in state.message
    lab.check()


@pytest.mark.parametrize("how", [CONTAINED, HYBRID])
def test_mpirun_dies(lab: ClusterLab, image: str, how: str) -> None:
    task = spanning(lab, image, how)
    mpirun = [
        pid
        for pid, command in lab.head.processes()
        if Path(command.split()[0]).name in ("mpirun", "prterun")
    ]
    for pid in mpirun:
        with suppress(ProcessLookupError):  # it ended with another one
            os.kill(pid, signal.SIGKILL)
    state = lab.ends(task, NOTICED)
    assert state.status == "failed"
    assert state.reason in ("signal", "mpi_rank_failed", "exit_code"), lab.told(task)
    lab.check()


# --- Hosts -------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", [CONTAINED, HYBRID])
def test_a_host_loses_power(lab: ClusterLab, image: str, how: str) -> None:
    task = spanning(lab, image, how)
    lab.vms["m1"].die()
    lost(lab, task, "m1")
    lab.heal()
    goes_on(lab, task, epoch=2)


@pytest.mark.parametrize("how", [CONTAINED, HYBRID])
def test_a_host_freezes(lab: ClusterLab, image: str, how: str) -> None:
    task = spanning(lab, image, how)
    lab.vms["m1"].freeze()
    lost(lab, task, "m1")
    left = lab.ranks(task, RANK)["m1"]
    assert left
    lab.vms["m1"].thaw()
    # Whatever runs there now is not of the attempt that was given up.
    lab.until(lambda: not set(left) & set(lab.ranks(task, RANK)["m1"]), NOTICED)
    goes_on(lab, task, epoch=2)


def test_a_host_is_cut_off(lab: ClusterLab, image: str) -> None:
    task = spanning(lab, image)
    lab.vms["m1"].cut_off()
    lost(lab, task, "m1")
    lab.until(lambda: not lab.vms["m1"].busy(), NOTICED)  # it ends its ranks by itself
    lab.heal()
    goes_on(lab, task, epoch=2)


def _keys_of_the_head(agent: Path) -> Path | None:
    """Find the file by which a member lets the head in, once it does."""
    with suppress(FileNotFoundError):  # it is being replaced, or something else beside it
        for file in agent.rglob("authorized_keys"):
            if "ssh-" in file.read_text():
                return file
    return None


def test_a_host_refuses_ssh(lab: ClusterLab, image: str) -> None:
    keys = lab.until(lambda: _keys_of_the_head(lab.folder / "m1" / "agent"))
    keys.chmod(0)
    try:
        run = {"run": f"python3 {RANK}", "mpi": {"np": 2, "hosts": 2, "ranks_per_host": 1}}
        task = lab.submit(run, image=image, inputs=[str(HERE / "ranks" / RANK)])
        # A head that has just begun looks at its members first.
        state = lab.until(lambda: ended_first(lab, task), 3 * NOTICED)
        first = state.attempts[0]
        assert (first.reason, "m1" in first.message) == ("mpi_host_lost", True), lab.told(task)
    finally:
        keys.chmod(0o644)
    goes_on(lab, task, epoch=2)


def test_a_host_lacks_the_image(
    lab: ClusterLab, sif: Callable[[str], Path], tmp_path: Path
) -> None:
    lab.head.run("cp /images/mpi-probe-1.sif /home/sim/only-here.sif")
    run = {"run": f"python3 {RANK}", "mpi": {"np": 2, "hosts": 2, "ranks_per_host": 1}}
    task = lab.submit(
        run, image="file:///home/sim/only-here.sif", inputs=[str(HERE / "ranks" / RANK)]
    )
    state = lab.until(lambda: ended_first(lab, task), 3 * NOTICED)
    assert state.attempts[0].reason in ("image_not_found", "image_pull"), lab.told(task)
    assert "m1" in state.attempts[0].message
    lab.no_ranks()
    lab.client.kill(task, by="a test")
    lab.ends(task)


# --- Agents ------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", [CONTAINED, HYBRID])
@pytest.mark.parametrize("name", [HEAD, "m1"])
def test_an_agent_crashes_and_the_ranks_run_on(
    lab: ClusterLab, image: str, name: str, how: str
) -> None:
    task = spanning(lab, image, how)
    ranks = lab.ranks(task, RANK)
    lab.kill_agent(name)
    assert lab.ranks(task, RANK) == ranks
    lab.start(name)
    lab.until(lambda: lab.agents_of(name))
    assert lab.ranks(task, RANK) == ranks
    goes_on(lab, task, epoch=1)


# --- What ends a task --------------------------------------------------------------------------


@pytest.mark.parametrize("how", [CONTAINED, HYBRID, PROCESS])
def test_a_kill_ends_all_ranks(lab: ClusterLab, image: str, how: str) -> None:
    task = spanning(lab, image, how)
    lab.client.kill(task, by="a test")
    assert lab.ends(task, NOTICED).status == "killed"
    lab.check()


def test_the_time_limit_ends_all_ranks(lab: ClusterLab, image: str) -> None:
    task = spanning(lab, image, time_limit=25.0)  # ranks start within
    state = lab.ends(task, NOTICED)
    assert (state.status, state.reason) == ("timed_out", "time_limit")
    lab.check()
