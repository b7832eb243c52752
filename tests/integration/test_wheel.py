"""What is published, not the checkout: the built wheel, in an environment of its own."""

import os
import subprocess
import sys
import sysconfig
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def call(*argv: str | Path, cwd: Path, **env: str) -> subprocess.CompletedProcess[str]:
    """Run a program, without what would lead it back to the checkout or to this user's agent."""
    inherited = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("PYTHON", "SIMAGENT_", "COV_", "COVERAGE_"))
    }
    return subprocess.run(
        argv, cwd=cwd, env=inherited | env, capture_output=True, text=True, timeout=100, check=False
    )


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dist")
    done = call(sys.executable, "-m", "build", "--wheel", "--outdir", folder, ROOT, cwd=folder)
    assert done.returncode == 0, done.stdout + done.stderr
    (file,) = folder.glob("*.whl")
    return file


@pytest.fixture(scope="module")
def python(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of a new environment with the wheel; its dependencies are lent by ours."""
    folder = tmp_path_factory.mktemp("installed")
    python = folder / "bin" / "python"
    for argv in (
        (sys.executable, "-m", "venv", "--without-pip", folder),
        (sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-deps", wheel),
    ):
        done = call(*argv, cwd=folder)
        assert done.returncode == 0, done.stdout + done.stderr
    (site_packages,) = folder.glob("lib/python*/site-packages")
    (site_packages / "lent.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return python


def test_the_wheel_holds_the_whole_package_and_nothing_else(wheel: Path) -> None:
    source = ROOT / "agent"
    expected = {
        str(path.relative_to(source))
        for path in (source / "simagent").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    published = {name for name in names if ".dist-info/" not in name}
    assert published == expected
    assert {"simagent/py.typed", "simagent/shim.py"} <= published
    assert [name for name in names if name.endswith("licenses/LICENSE")]


def test_the_installed_command_tells_the_version(python: Path, tmp_path: Path) -> None:
    done = call(python.parent / "simagent", "--version", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert PROJECT["version"] in done.stdout


def test_the_installed_package_runs_a_task(python: Path, tmp_path: Path) -> None:
    (tmp_path / "task.toml").write_text(
        'commands = ["echo to be seen", {run = "echo kept > kept.txt", shell = true}]\n'
    )
    code = "import simagent; print(simagent.__file__)"
    where = call(python, "-c", code, cwd=tmp_path).stdout
    assert where.startswith(str(python.parents[1])), "not the wheel, but the checkout"

    done = call(
        *(python.parent / "simagent", "run", "task.toml", "-o", "results"),
        cwd=tmp_path,
        SIMAGENT_STATE_DIR=str(tmp_path / "state"),
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "to be seen" in done.stdout
    (kept,) = (tmp_path / "results").rglob("kept.txt")
    assert kept.read_text() == "kept\n"
