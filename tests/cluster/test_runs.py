"""Ranks on two and three hosts: what they compute is what one process computes."""

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cluster import images
from cluster.lab import HEAD, ClusterLab, cluster_lab
from engines.dockerd import Engine
from shelf.model import load

Sif = Callable[[str], Path]
EVERYWHERE = (HEAD, "m1", "m2")
_HARMLESS = re.compile(rb"^\[.*\] plm:ssh: Warning: setpgid\(.*\n", re.MULTILINE)
"""Of Open MPI 5, where a busy machine lets the program that enters a host run before mpirun."""


@pytest.fixture(scope="module")
def lab(docker_engine: Engine, vm_image: str) -> Iterator[ClusterLab]:
    """A head and two members, for all tests here."""
    with cluster_lab(docker_engine, vm_image) as made:
        # Named, it is told to MPICH's ranks, too.
        made.up(members=2, mpi={"interface": "eth0"})
        yield made


def spread(hosts: int, **more: object) -> dict[str, object]:
    """Ask for a rank on each of so many hosts."""
    return {"np": hosts, "hosts": hosts, "ranks_per_host": 1, **more}


def probed(
    lab: ClusterLab, hosts: int, image: str | None = None, **mpi: object
) -> dict[str, object]:
    """Run the probe with a rank on each host; give what it says."""
    task = lab.submit({"run": "mpi-probe", "mpi": spread(hosts, **mpi)}, image=image)
    lab.succeeds(task)
    said = _HARMLESS.sub(b"", lab.log(task, "stderr"))
    assert said == b"", said
    told: dict[str, object] = json.loads(lab.log(task))
    assert told["sum_is_right"]
    assert told["hosts"] == sorted(EVERYWHERE[:hosts])
    assert told["ranks"] == hosts
    return told


# --- Which MPI, and who starts it --------------------------------------------------------------


@pytest.mark.parametrize("hosts", [2, 3])
def test_ranks_of_the_hosts_own_mpi(lab: ClusterLab, hosts: int) -> None:
    assert probed(lab, hosts)["mpi"] == "Open MPI v5.0.7"


@pytest.mark.parametrize("hosts", [2, 3])
def test_ranks_contained(lab: ClusterLab, sif: Sif, hosts: int) -> None:
    assert probed(lab, hosts, lab.link(sif("mpi-probe")))["mpi"] == "Open MPI v5.0.7"


def test_ranks_contained_by_open_mpi_4(lab: ClusterLab, sif: Sif) -> None:
    assert probed(lab, 2, lab.link(sif(images.OPENMPI_4)))["mpi"] == "Open MPI v4.1.4"


@pytest.mark.parametrize("hosts", [2, 3])
def test_ranks_that_the_hosts_mpi_starts_in_containers(
    lab: ClusterLab, sif: Sif, hosts: int
) -> None:
    image = lab.link(sif("mpi-probe"))
    assert probed(lab, hosts, image, version="5")["mpi"] == "Open MPI v5.0.7"


# --- Simulators --------------------------------------------------------------------------------


def energy(lab: ClusterLab, image: str, **mpi: object) -> tuple[str, str]:
    """Run the Lennard-Jones fluid; give the number of ranks, and the energy after 500 steps."""
    run: dict[str, object] = {"run": "lmp -in in.lj"}
    if mpi:
        run["mpi"] = mpi
    task = lab.submit(run, image=image, inputs=[str(load("lammps").folder / "smoke" / "in.lj")])
    lab.succeeds(task)
    printed = lab.log(task).decode()
    ranks = re.search(r"CPU use with (\d+) MPI tasks", printed)
    energies = re.findall(r"^ +500 +\S+ +\S+ +\S+ +(\S+)", printed, re.MULTILINE)
    assert ranks is not None
    assert len(energies) == 1, printed
    return ranks[1], energies[0]


def test_lammps_computes_the_same_on_any_number_of_hosts(lab: ClusterLab, sif: Sif) -> None:
    image = lab.link(sif("lammps"))
    ranks, serial = energy(lab, image)
    assert ranks == "1"
    for hosts, mpi in ((2, {}), (3, {}), (2, {"version": "5"})):
        ranks, spanned = energy(lab, image, **spread(hosts, **mpi))
        assert ranks == str(hosts)
        assert float(spanned) == pytest.approx(float(serial), abs=1e-6)


def test_lammps_with_mpich(lab: ClusterLab, sif: Sif) -> None:
    image = lab.link(sif(images.MPICH))
    _, serial = energy(lab, image)
    ranks, spanned = energy(lab, image, **spread(2))
    assert ranks == "2"
    assert float(spanned) == pytest.approx(float(serial), abs=1e-6)


def test_openfoam_computes_the_same_on_two_hosts(lab: ClusterLab, sif: Sif) -> None:
    image = lab.link(sif("openfoam"))
    inputs = [str(load("openfoam").folder / "smoke" / "case")]
    serial = lab.submit("blockMesh", "icoFoam", image=image, inputs=inputs)
    lab.succeeds(serial)
    spanned = lab.submit(
        "blockMesh",
        "decomposePar",
        {"run": "icoFoam -parallel", "mpi": spread(2)},
        "reconstructPar -latestTime",
        image=image,
        inputs=inputs,
    )
    lab.succeeds(spanned, seconds=300)
    assert "nProcs : 2" in lab.log(spanned).decode()
    velocities = [velocity(lab.outputs(task)) for task in (serial, spanned)]
    assert len(velocities[0]) == 3 * 31 * 31
    assert velocities[1] == pytest.approx(velocities[0], abs=1e-5)


def velocity(outputs: Path) -> list[float]:
    """Read the field of velocities at the end."""
    field = (outputs / "15" / "U").read_text()
    _, _, values = field.partition("List<vector>")
    vectors = re.findall(r"\((\S+) (\S+) (\S+)\)", values.partition(";")[0])
    return [float(component) for vector in vectors for component in vector]


# --- What the task sees ------------------------------------------------------------------------


def test_every_rank_sees_the_tasks_variables(lab: ClusterLab, sif: Sif) -> None:
    shown = {"run": "printenv GREETING", "mpi": spread(3)}
    for image in (None, lab.link(sif("mpi-probe"))):
        task = lab.submit(shown, image=image, env={"GREETING": "good day"})
        lab.succeeds(task)
        assert lab.log(task) == b"good day\n" * 3


def test_metrics_are_of_all_hosts(lab: ClusterLab, sif: Sif) -> None:
    image = lab.link(sif("mpi-probe"))
    run = {"run": "python3 wait.py", "mpi": spread(3)}
    task = lab.submit(run, image=image, inputs=[str(images.HERE / "ranks" / "wait.py")])
    lab.running_on(task, "wait.py", *EVERYWHERE)
    lab.until(lambda: lab.sampled_hosts(task) >= set(EVERYWHERE))
    lab.go(task)
    lab.succeeds(task)
    header, *rows = (lab.outputs(task) / "system_metrics.csv").read_text().splitlines()
    column = header.split(",").index("host")
    assert {row.split(",")[column] for row in rows} == set(EVERYWHERE)
