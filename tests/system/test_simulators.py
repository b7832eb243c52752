"""Simulators of the shelf run their cases: the same under Docker and under Apptainer."""

import os
import re
import subprocess
import sys
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


@pytest.mark.timeout(2700)  # where nothing was built yet, all packages are fetched
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


@pytest.mark.timeout(2700)
def test_the_example_with_an_image(docker_engine: Engine, folder: Path) -> None:
    env = {name: value for name, value in os.environ.items() if "SIMAGENT_" not in name}
    env |= {**docker_engine.env, "SIMAGENT_STATE_DIR": str(folder / "state")}
    subprocess.run(
        [sys.executable, "-m", "shelf", "build", "lammps"],
        env=env | {"PYTHONPATH": str(ROOT)},
        check=True,
    )
    task = ROOT.parent / "examples" / "lammps-image" / "task.yaml"
    done = subprocess.run(
        [sys.executable, "-m", "simagent", "run", task, "-o", folder / "results"],
        env=env,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    found = re.search(r"diffusion coefficient +(\S+) ", done.stdout)
    assert found is not None
    assert float(found[1]) == pytest.approx(0.03, rel=0.1)
    assert "with 864 atoms" in (folder / "results" / "log.lammps").read_text()


def outputs_of(folder: Path) -> set[Path]:
    return {path.relative_to(folder) for path in folder.rglob("*") if path.is_file()}
