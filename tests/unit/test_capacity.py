"""What an agent refuses, and whether that may pass."""

from pathlib import Path
from typing import Any

import psutil
import pytest

from fakes.containers import FakeContainers
from fakes.launchers import Launchers
from simagent.domain.spec import Spec
from simagent.worker.capacity import refusal
from simagent.worker.choice import Refusal

NEVER = 10**18
IMAGE = {"image": "debian"}
CPUS = {"resources": {"cpus": 10_000}}
RANKS = {"commands": [{"run": "true", "mpi": {"np": 10_000}}]}
MPI = {"commands": [{"run": "true", "mpi": {"np": 2}}]}


def refused(folder: Path, spec: dict[str, Any], **machine: Any) -> Refusal | None:
    """Tell what a machine with all that is needed says, but for what is named."""
    there: dict[str, Any] = {
        "runtimes": {},
        "allow_process": True,
        "launchers": Launchers("5.0"),
        "min_free": 0,
    }
    made = Spec.model_validate({"commands": ["true"]} | spec)
    return refusal(made, folder=folder, **there | machine)


def broken(name: str) -> dict[str, FakeContainers]:
    runtime = FakeContainers(name)
    runtime.broken = f"{name} does not answer"
    return {name: runtime}


def test_what_can_run_is_not_refused(tmp_path: Path) -> None:
    docker = {"docker": FakeContainers()}
    assert refused(tmp_path, {}) is None
    assert refused(tmp_path, MPI) is None
    image_has_it = {"runtimes": docker, "launchers": Launchers()}
    assert refused(tmp_path, MPI | IMAGE, **image_has_it) is None
    assert refused(tmp_path, IMAGE, runtimes=docker) is None
    assert refused(tmp_path, IMAGE, runtimes=broken("apptainer") | docker) is None
    assert refused(tmp_path, RANKS, mpi_slots=10_000) is None
    assert refused(tmp_path, RANKS, hosts_known=False) is None


@pytest.mark.parametrize(
    ("spec", "machine", "why"),
    [
        (IMAGE, {}, "no Docker Engine is set up here"),
        (IMAGE | {"runtime": "apptainer"}, {}, "no Apptainer is installed here"),
        (IMAGE | {"runtime": "apptainer"}, {"runtimes": broken("docker")}, "no Apptainer"),
        ({}, {"allow_process": False}, "it runs programs of the machine"),
        (MPI, {"launchers": Launchers()}, "commands[0]: no mpirun was found"),
        (RANKS, {}, "commands[0].mpi.np: 10000 ranks are asked for"),
        (RANKS | IMAGE, {"runtimes": {"docker": FakeContainers()}}, "commands[0].mpi.np: 10000"),
        (CPUS, {}, "resources.cpus: "),
        ({"resources": {"memory": NEVER}}, {}, "resources.memory: "),
        ({"resources": {"disk": NEVER}}, {}, "resources.disk: "),
    ],
)
def test_what_a_machine_lacks_lasts(
    tmp_path: Path, spec: dict[str, Any], machine: dict[str, Any], why: str
) -> None:
    found = refused(tmp_path, spec, **machine)
    assert found is not None
    assert found.why.startswith(why)
    assert found.lasting


@pytest.mark.parametrize(
    ("spec", "machine", "why"),
    [
        (IMAGE, {"runtimes": broken("docker")}, "docker does not answer"),
        ({}, {"min_free": NEVER}, "less than min_free"),
        ({"resources": {"disk": 1}}, {"min_free": NEVER}, "less than min_free"),
    ],
)
def test_what_may_be_otherwise_in_a_minute_passes(
    tmp_path: Path, spec: dict[str, Any], machine: dict[str, Any], why: str
) -> None:
    found = refused(tmp_path, spec, **machine)
    assert found is not None
    assert why in found.why
    assert not found.lasting


@pytest.mark.parametrize("runtime", ["docker", "auto"])
def test_what_only_looks_after_earlier_tasks_runs_no_new_ones(tmp_path: Path, runtime: str) -> None:
    there = {"docker": FakeContainers(), "apptainer": FakeContainers("apptainer")}
    found = refused(tmp_path, IMAGE | {"runtime": runtime}, runtimes=there, preferred=())
    assert found is not None
    assert found.lasting
    sif = {"image": "file:///x.sif"}
    assert refused(tmp_path, sif, runtimes=there, preferred=("docker",)) is not None


def test_a_disk_that_is_full_just_now_passes(tmp_path: Path) -> None:
    disk = psutil.disk_usage(str(tmp_path))
    found = refused(tmp_path, {"resources": {"disk": disk.total}})
    assert found is not None
    assert found.why.startswith("resources.disk: ")
    assert not found.lasting


@pytest.mark.parametrize("passing", [{"runtimes": broken("docker")}, {"min_free": NEVER}])
def test_what_lasts_is_told_before_what_passes(tmp_path: Path, passing: dict[str, Any]) -> None:
    spec = CPUS | (IMAGE if "runtimes" in passing else {})
    found = refused(tmp_path, spec, **passing)
    assert found is not None
    assert found.why.startswith("resources.cpus: ")
    assert found.lasting
