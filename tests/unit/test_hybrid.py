"""Ranks in images that the machine's own mpirun starts: when that is so, and what is refused."""

from pathlib import Path
from typing import Any

import pytest

from fakes.containers import FakeContainers
from fakes.launchers import Launchers
from simagent.domain.mpi import goes_with
from simagent.domain.spec import Spec
from simagent.worker.capacity import refusal
from simagent.worker.choice import choose
from simagent.worker.hybrid import Mode, wants_hybrid

BOTH = {"docker": FakeContainers("docker"), "apptainer": FakeContainers("apptainer")}


def spec(mpi: dict[str, Any] | None = None, **fields: Any) -> Spec:
    command = {"run": "lmp", **({} if mpi is None else {"mpi": {"np": 1} | mpi})}
    return Spec.model_validate({"commands": [command], "image": "debian"} | fields)


@pytest.mark.parametrize(
    ("mpi", "mode", "expected"),
    [
        ({}, "auto", False),
        ({"version": "4"}, "auto", True),
        ({}, "hybrid", True),
        ({"version": "4"}, "hybrid", True),
        ({}, "contained", False),
        (None, "hybrid", False),
    ],
)
def test_the_step_or_the_operator_asks_for_it(
    mpi: dict[str, Any] | None, mode: Mode, expected: bool
) -> None:
    assert wants_hybrid(spec(mpi), mode) == expected
    assert not wants_hybrid(spec(mpi, image=None), mode)


def test_containers_of_ranks_are_apptainers() -> None:
    assert choose(spec(), BOTH) == "docker"
    assert choose(spec({"version": "4"}), BOTH) == "apptainer"
    assert choose(spec({}), BOTH, mode="hybrid") == "apptainer"
    assert choose(spec(), BOTH, mode="hybrid") == "docker"


@pytest.mark.parametrize(
    ("fields", "machine", "why"),
    [
        ({"runtime": "docker"}, {}, "runtime: commands[0] has its ranks started by the machine's"),
        ({"network": "none"}, {}, "network: commands[0] has its ranks started by the machine's"),
        ({}, {"mpi_mode": "contained"}, "commands[0].mpi.version: the machine's mpirun starts no"),
        ({}, {"runtimes": {"docker": BOTH["docker"]}}, "no Apptainer is installed here"),
        ({}, {"launchers": Launchers()}, "commands[0]: no mpirun was found"),
    ],
)
def test_what_cannot_be_is_refused_before_it_is_claimed(
    tmp_path: Path, fields: dict[str, Any], machine: dict[str, Any], why: str
) -> None:
    there: dict[str, Any] = {"runtimes": BOTH, "launchers": Launchers("4"), "allow_process": True}
    wanted = spec({"version": "4"}, **fields)
    found = refusal(wanted, folder=tmp_path, min_free=0, **there | machine)
    assert found is not None
    assert found.lasting
    assert found.why.startswith(why)
    assert refusal(spec({"version": "4"}), folder=tmp_path, min_free=0, **there) is None


@pytest.mark.parametrize(
    ("host", "fits"),
    [
        ("Open MPI 4.1.4", ("Open MPI 4.*", "Open MPI 5.*")),
        ("Open MPI 5.0.7", ("Open MPI 5.*",)),
        ("Open MPI 3.1", ("Open MPI 3.*",)),
        ("MPICH 5.0.2", ("MPICH *",)),
        ("Open MPI ?", ("Open MPI ?",)),
    ],
)
def test_which_mpi_of_the_host_goes_with_that_of_an_image(host: str, fits: tuple[str, ...]) -> None:
    assert goes_with(host) == fits
