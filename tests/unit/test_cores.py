import os
from pathlib import Path

import pytest

from simagent.domain.spec import Mpi
from simagent.ports.launcher import Host
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


def over(*slots: int, cpus: float | None = None, alone: bool = True, **mpi: object) -> list[int]:
    """Lay ranks over hosts of so many slots; give the ranks of each."""
    layout = lay_out(Mpi.model_validate(mpi), cpus=cpus, alone=alone, hosts=hosts(*slots))
    assert layout.trouble is None
    assert layout.np == sum(host.slots for host in layout.hosts)
    assert [host.address for host in layout.hosts] == [f"10.0.0.{n + 1}" for n in range(len(slots))]
    return [host.slots for host in layout.hosts]


def hosts(*slots: int) -> list[Host]:
    return [Host(address=f"10.0.0.{n + 1}", slots=most) for n, most in enumerate(slots)]


def test_ranks_fill_host_after_host() -> None:
    assert over(4, 2, np=5) == [4, 1]
    assert over(4, 2, 1, np=7) == [4, 2, 1]
    assert over(4, 2, 1, np="max") == [4, 2, 1]


def test_no_more_hosts_than_the_ranks_need() -> None:
    layout = lay_out(Mpi(np=5), hosts=hosts(4, 2, 8))
    assert [host.slots for host in layout.hosts] == [4, 1]


def test_over_hosts_that_are_asked_for_ranks_are_levelled() -> None:
    assert over(4, 4, np=4, hosts=2) == [2, 2]
    assert over(4, 4, 4, np=4, hosts=3) == [2, 1, 1]
    assert over(8, 1, 8, np=9, hosts=3) == [4, 1, 4]
    assert over(4, 2, np="max", hosts=2) == [4, 2]


def test_so_many_ranks_on_each_host() -> None:
    assert over(4, 4, np=4, ranks_per_host=2) == [2, 2]
    assert over(4, 4, np=3, ranks_per_host=2) == [2, 1]
    assert over(4, 4, 4, np="max", ranks_per_host=1) == [1, 1, 1]
    assert over(4, 4, np="max", ranks_per_host=3, hosts=2) == [3, 3]


def test_cpus_that_a_task_asks_for_are_those_of_each_host() -> None:
    assert over(4, 4, np="max", cpus=1.5) == [2, 2]


def test_more_ranks_than_slots_on_all_hosts_where_that_is_asked_for() -> None:
    assert over(2, 2, np=7, oversubscribe=True) == [4, 3]
    assert over(1, 1, np=4, hosts=2, oversubscribe=True) == [2, 2]
    assert over(1, 1, np=4, ranks_per_host=2, oversubscribe=True) == [2, 2]


def test_threads_are_those_that_the_fullest_host_leaves() -> None:
    layout = lay_out(Mpi(np=6, hosts=2), hosts=hosts(8, 4))
    assert ([host.slots for host in layout.hosts], layout.threads) == ([3, 3], 1)
    assert lay_out(Mpi(np=2, hosts=2), hosts=hosts(8, 4)).threads == 4


def test_ranks_are_bound_where_they_fill_all_hosts() -> None:
    assert lay_out(Mpi(np="max"), hosts=hosts(4, 4)).bind == "core"
    assert lay_out(Mpi(np=5), hosts=hosts(4, 4)).bind == "none"
    assert lay_out(Mpi(np="max"), alone=False, hosts=hosts(4, 4)).bind == "none"
    assert lay_out(Mpi(np=5, bind="socket"), hosts=hosts(4, 4)).bind == "socket"


def test_what_fits_on_the_head_is_laid_out_as_on_a_machine_alone() -> None:
    cluster = hosts(CORES, 16)
    for mpi in (Mpi(np=1), Mpi(np=CORES), Mpi(np=1, hosts=1), Mpi(np="max", hosts=1)):
        assert lay_out(mpi, hosts=cluster) == lay_out(mpi)


def test_the_slots_that_are_set_are_those_of_the_machine() -> None:
    assert lay_out(Mpi(np="max"), slots=7).np == 7
    assert lay_out(Mpi(np=7), slots=7).trouble is None
    assert "there are 7 slots for them" in (lay_out(Mpi(np=8), slots=7).trouble or "")


@pytest.mark.parametrize(
    ("mpi", "trouble"),
    [
        (Mpi(np=7), "mpi.np: 7 ranks are asked for, the 2 hosts have 6 slots"),
        (Mpi(np=1, hosts=3), "mpi.hosts: 3 hosts are asked for, the cluster has 2"),
        (Mpi(np=1, hosts=2), "mpi.np: 1 ranks are too few for 2 hosts"),
        (Mpi(np="max", ranks_per_host=3), "mpi.ranks_per_host: 3 are asked for, 10.0.0.2 has 2"),
        (Mpi(np=5, ranks_per_host=2), "mpi.np: 5 ranks are more than 2 on each of 2 hosts"),
    ],
)
def test_what_the_hosts_do_not_have_is_named(mpi: Mpi, trouble: str) -> None:
    assert trouble in (lay_out(mpi, hosts=hosts(4, 2)).trouble or "")


def test_several_hosts_are_not_to_be_had_without_a_cluster() -> None:
    trouble = lay_out(Mpi(np=2, hosts=2)).trouble or ""
    assert "2 hosts are asked for, there is no more than this one: ask for fewer" in trouble
    assert "one host" in (lay_out(Mpi(np=2, ranks_per_host=1)).trouble or "")
    assert lay_out(Mpi(np="max", ranks_per_host=1)).np == 1
