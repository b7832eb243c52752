"""Simulators of the shelf run their cases: the same under Docker and under Apptainer."""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from engines.apptainer import Apptainer
from engines.dockerd import Engine
from shelf.images import build, image_file
from shelf.model import ROOT, load
from shelf.smoke import RUNTIMES, smoke

# The rest is for `make smoke`.
CHOICE = ("echo", "mpi-probe", "lammps", "openfoam", "gromacs")

FILES = ROOT.parent / "build" / "images"
"""Of the images, kept from one run of the tests to the next."""


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder that the tasks' user may pass, unlike pytest's own."""
    with tempfile.TemporaryDirectory(prefix="simagent-test-") as made:
        Path(made).chmod(0o755)
        yield Path(made)


@pytest.mark.timeout(1800)  # where nothing was built yet, all packages are fetched
@pytest.mark.parametrize("name", CHOICE)
def test_a_simulator_runs_its_case(
    name: str,
    docker_engine: Engine,
    apptainer: Apptainer,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("DOCKER_HOST", docker_engine.host)
    simulator = load(name)
    build(simulator)
    made = {}
    for runtime in RUNTIMES:
        image = image_file(simulator, runtime, FILES)
        assert smoke(simulator, runtime, image, folder / runtime) == []
        made[runtime] = outputs_of(folder / runtime / "outputs")
    assert made["docker"] == made["apptainer"]


def outputs_of(folder: Path) -> set[Path]:
    return {path.relative_to(folder) for path in folder.rglob("*") if path.is_file()}
