"""Ranks over hosts that each have a Docker Engine of their own, in a container on every one."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cluster import images
from cluster.lab import HEAD, ClusterLab, cluster_lab
from cluster.test_runs import energy, probed, spread
from engines.dockerd import Engine

Archive = Callable[[str], Path]


@pytest.fixture(scope="module")
def lab(docker_engine: Engine, vm_image: str) -> Iterator[ClusterLab]:
    """A head and a member, for all tests here."""
    with cluster_lab(docker_engine, vm_image) as made:
        made.up(members=1, docker=True)
        yield made


@pytest.fixture(scope="module")
def probe(lab: ClusterLab, archive: Archive) -> str:
    """An image with the probe, as all hosts have it."""
    return lab.link_archive(archive("mpi-probe"))


def test_ranks_contained(lab: ClusterLab, probe: str) -> None:
    assert probed(lab, 2, probe)["mpi"] == "Open MPI v5.0.7"


def test_lammps_computes_the_same_on_two_hosts(lab: ClusterLab, archive: Archive) -> None:
    image = lab.link_archive(archive("lammps"))
    ranks, serial = energy(lab, image)
    assert ranks == "1"
    ranks, spanned = energy(lab, image, **spread(2))
    assert ranks == "2"
    assert float(spanned) == pytest.approx(float(serial), abs=1e-6)


def test_no_container_is_left_on_any_host_after_a_kill(lab: ClusterLab, probe: str) -> None:
    inputs = [str(images.HERE / "ranks" / "wait.py")]
    run = {"run": "python3 wait.py stubborn", "mpi": spread(2)}
    task = lab.submit(run, image=probe, inputs=inputs, grace=2)
    lab.running_on(task, "wait.py", HEAD, "m1")
    assert all(vm.containers() for vm in lab.vms.values())
    lab.client.kill(task, by="a test")
    assert lab.ends(task).status == "killed"
    lab.check()


def test_a_rank_that_dies_ends_those_in_the_containers_of_other_hosts(
    lab: ClusterLab, probe: str
) -> None:
    inputs = [str(images.HERE / "ranks" / "wait.py")]
    task = lab.submit({"run": "python3 wait.py", "mpi": spread(2)}, image=probe, inputs=inputs)
    lab.running_on(task, "wait.py", HEAD, "m1")
    lab.met(task)
    lab.vms["m1"].run("pkill -KILL -f '[w]ait.py'", user="root")
    state = lab.ends(task)
    assert (state.status, state.reason) == ("failed", "mpi_rank_failed"), lab.told(task)
    lab.check()
