import os
from pathlib import Path

import pytest

from simagent.domain.spec import Mpi
from simagent.worker.cores import lay_out, physical_cores

HERE = len(os.sched_getaffinity(0))
CORES = physical_cores()


def siblings(folder: Path, *lists: str) -> Path:
    """Make a machine of CPUs with these lists of hardware threads of their cores."""
    for number, text in enumerate(lists):
        topology = folder / f"cpu{number}" / "topology"
        topology.mkdir(parents=True)
        (topology / "thread_siblings_list").write_text(text + "\n")
    return folder


def test_threads_of_one_core_count_once(tmp_path: Path) -> None:
    cpus = siblings(tmp_path, "0,2", "1,3", "0,2", "1,3")
    assert physical_cores((0, 1, 2, 3), cpus=cpus) == 2
    assert physical_cores((0, 2), cpus=cpus) == 1


def test_a_machine_that_does_not_tell_has_one_core_a_cpu(tmp_path: Path) -> None:
    assert physical_cores((0, 1, 5), cpus=tmp_path) == 3


def test_max_is_one_rank_on_each_core_and_each_is_bound_to_its_own() -> None:
    layout = lay_out(Mpi(np="max"))
    assert (layout.np, layout.threads, layout.bind) == (CORES, 1, "core")


def test_no_more_ranks_than_the_task_has_cores() -> None:
    assert lay_out(Mpi(np="max"), cpus=0.5).np == 1
    trouble = lay_out(Mpi(np=CORES + 1)).trouble
    assert trouble is not None
    assert "oversubscribe" in trouble


def test_more_ranks_than_cores_where_that_is_asked_for() -> None:
    layout = lay_out(Mpi(np=CORES + 1, oversubscribe=True))
    assert (layout.trouble, layout.threads, layout.bind) == (None, 1, "none")


def test_the_cores_that_are_left_are_for_threads_of_the_ranks() -> None:
    layout = lay_out(Mpi(np=1))
    assert layout.threads == CORES
    if CORES > 1:
        assert layout.bind == "none", "else all threads of the rank share one core"


def test_tasks_beside_each_other_are_not_bound_to_the_same_cores() -> None:
    assert lay_out(Mpi(np=1), cpus=1, cores=(0,)).bind == "none"
    assert lay_out(Mpi(np="max"), alone=False).bind == "none"


@pytest.mark.parametrize("bind", ["core", "hwthread", "socket", "none"])
def test_a_binding_that_was_asked_for_stands(bind: str) -> None:
    assert lay_out(Mpi.model_validate({"np": 1, "bind": bind})).bind == bind


def test_ranks_on_hardware_threads_may_be_as_many_as_those() -> None:
    assert lay_out(Mpi(np="max", bind="hwthread")).np == HERE
