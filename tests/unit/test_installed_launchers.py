import os
from pathlib import Path

import pytest

from fakes.launchers import PlainLauncher
from simagent.launchers.installed import InstalledLaunchers, Mpirun, detect
from simagent.ports.launcher import LaunchError

OPEN_MPI_4 = "mpirun.openmpi (OpenRTE) 4.1.4\\n\\nReport bugs to http://www.open-mpi.org/"
OPEN_MPI_5 = "mpirun (Open MPI) 5.0.7\\n\\nReport bugs to https://www.open-mpi.org/"
MPICH = "HYDRA build details:\\n    Version:                                 4.2.3\\n"


def named(mpirun: Mpirun) -> PlainLauncher:
    return PlainLauncher(f"{mpirun.flavour} {mpirun.version}")


def installed(program: str) -> InstalledLaunchers:
    return InstalledLaunchers(program, {"openmpi": named, "hydra": named}, PlainLauncher("inside"))


def install(path: Path, says: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\nprintf '{says}'\n")
    path.chmod(0o755)
    return path


@pytest.mark.parametrize(
    ("says", "flavour", "version"),
    [
        (OPEN_MPI_4, "openmpi", "4.1.4"),
        (OPEN_MPI_5, "openmpi", "5.0.7"),
        (MPICH, "hydra", "4.2.3"),
    ],
)
def test_an_mpirun_tells_what_it_is(tmp_path: Path, says: str, flavour: str, version: str) -> None:
    path = str(install(tmp_path / "mpirun", says))
    assert detect(path) == Mpirun(path, flavour, version)


@pytest.mark.parametrize("path", ["/bin/true", "/nowhere/mpirun", "/bin/cat"])
def test_other_programs_are_taken_for_none(path: str) -> None:
    assert detect(path) is None


def test_versions_side_by_side_are_found_by_a_template(tmp_path: Path) -> None:
    for version in ("4.1.4", "5.0.7", "10.0.1"):
        says = f"mpirun (Open MPI) {version}"
        install(tmp_path / "openmpi" / version / "bin" / "mpirun", says)
    launchers = installed(f"{tmp_path}/openmpi/{{version}}/bin/mpirun")
    assert launchers.find(None).name == "openmpi 10.0.1"
    assert launchers.find("4.1").name == "openmpi 4.1.4"
    assert launchers.find("5").name == "openmpi 5.0.7"
    with pytest.raises(LaunchError, match=r"mpi\.version: 1 .* 10\.0\.1, 5\.0\.7, 4\.1\.4"):
        launchers.find("1")


def test_what_a_template_names_literally_is_no_pattern(tmp_path: Path) -> None:
    install(tmp_path / "other" / "5" / "mpirun", OPEN_MPI_5)
    assert not installed(f"{tmp_path}/o*r/{{version}}/mpirun")


def test_a_name_is_looked_up_in_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(tmp_path / "mpirun", MPICH)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    assert installed("mpirun").find(None).name == "hydra 4.2.3"


def test_an_upgrade_is_noticed(tmp_path: Path) -> None:
    path = install(tmp_path / "mpirun", OPEN_MPI_4)
    launchers = installed(str(path))
    assert launchers.find(None).name == "openmpi 4.1.4"
    install(path, OPEN_MPI_5)
    os.utime(path, (1, 1))
    assert launchers.find(None).name == "openmpi 5.0.7"


def test_one_that_did_not_tell_once_is_asked_again(tmp_path: Path) -> None:
    path = install(tmp_path / "mpirun", OPEN_MPI_5)
    tells = path.read_text()
    path.write_text(f'#!/bin/sh\n[ -e "$0.busy" ] || {{ touch "$0.busy"; exit 1; }}\n{tells}')
    for again, found in ((3600.0, [[], []]), (0.0, [[], ["5.0.7"]])):
        (tmp_path / "mpirun.busy").unlink(missing_ok=True)
        build = {"openmpi": named, "hydra": named}
        here = InstalledLaunchers(str(path), build, PlainLauncher("inside"), again=again)
        assert [[it.version for it in here.installed()] for _ in range(2)] == found


def test_without_any_the_fix_is_told(tmp_path: Path) -> None:
    launchers = installed(f"{tmp_path}/none")
    assert not launchers
    with pytest.raises(LaunchError, match="install Open MPI or MPICH"):
        launchers.find(None)
