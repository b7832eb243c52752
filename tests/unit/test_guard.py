"""What is looked at before a program becomes ranks, with an ldd and an mpirun that say as told."""

import subprocess
from pathlib import Path

import pytest

from simagent.domain.reasons import Reason
from simagent.launchers.guard import guarded
from simagent.ports.launcher import GUARD_CODE, guard_said

_OPENMPI_4_LIBS = "libmpi.so.40 => /usr/lib/libmpi.so.40\n\tlibopen-pal.so.40 => /usr/lib/x"
_OPENMPI_5_LIBS = "libmpi.so.40 => /usr/lib/libmpi.so.40\n\tlibopen-pal.so.80 => /usr/lib/x"
_OPENMPI_OLD = "libmpi.so.12 => /opt/x\n\tlibopen-pal.so.13 => /opt/y"
_MPICH_LIBS = "libmpi.so.12 => /opt/lib/libmpi.so.12"
_MPICH_DEBIAN = "libmpich.so.12 => /usr/lib/libmpich.so.12"


def _say(path: Path, text: str, code: int = 0) -> None:
    path.write_text(f"#!/bin/sh\ncat <<'E'\n{text}\nE\nexit {code}\n")
    path.chmod(0o755)


def _run(
    folder: Path, *, linked: str | None, version: str = "", whose: str = ""
) -> subprocess.CompletedProcess[str]:
    _say(folder / "prog", "")
    if linked is not None:
        _say(folder / "ldd", linked)
    mpirun = folder / "mpirun"
    mpirun.write_text(
        f'#!/bin/sh\n[ "$1" != --version ] || {{ echo "{version}"; exit; }}\necho "ran:$*"\n'
    )
    mpirun.chmod(0o755)
    command = guarded(("mpirun", "-np", "2", "prog", "a b", "$c"), "prog", whose)
    path = f"{folder}:/usr/bin:/bin" if linked is not None else str(folder)
    return subprocess.run(
        command, env={"PATH": path}, capture_output=True, text=True, check=False, timeout=60
    )


@pytest.mark.parametrize(
    ("linked", "whose"),
    [
        (_OPENMPI_4_LIBS, "Open MPI 4.1.4"),
        (_OPENMPI_5_LIBS, "Open MPI 4.1.4"),
        (_OPENMPI_5_LIBS, "Open MPI 5.0.7"),
        (_OPENMPI_OLD, "Open MPI 4.1.4"),
        (_MPICH_LIBS, "MPICH 5.0.2"),
        (_MPICH_DEBIAN, "MPICH"),
        ("\tnot a dynamic executable", "Open MPI 5.0.7"),
        ("libmpi_abi.so.1 => /opt/lib/libmpi_abi.so.1", "Open MPI 5.0.7"),
        ("libc.so.6 => /lib/libc.so.6", "MPICH 5.0.2"),
        (None, "MPICH 5.0.2"),  # no ldd here
    ],
)
def test_what_fits_or_cannot_be_judged_is_started(
    tmp_path: Path, linked: str | None, whose: str
) -> None:
    ran = _run(tmp_path, linked=linked, whose=whose)
    assert (ran.stdout, ran.stderr, ran.returncode) == ("ran:-np 2 prog a b $c\n", "", 0)


@pytest.mark.parametrize(
    ("linked", "whose", "has"),
    [
        (_MPICH_LIBS, "Open MPI 5.0.7", "MPICH"),
        (_MPICH_DEBIAN, "Open MPI 4.1.4", "MPICH"),
        (_OPENMPI_5_LIBS, "MPICH 5.0.2", "Open MPI"),
        (_OPENMPI_OLD, "MPICH 5.0.2", "an Open MPI before 5.0"),
        (_OPENMPI_4_LIBS, "Open MPI 5.0.7", "an Open MPI before 5.0"),
    ],
)
def test_a_program_of_another_mpi_is_not_started(
    tmp_path: Path, linked: str, whose: str, has: str
) -> None:
    ran = _run(tmp_path, linked=linked, whose=whose)
    assert (ran.stdout, ran.returncode) == ("", GUARD_CODE)
    said = guard_said(ran.stderr)
    assert said is not None
    assert said[0] is Reason.MPI_MISMATCH
    assert f"prog is linked with {has}, mpirun is of {whose}" in said[1]
    assert "mpi.force" in said[1]


@pytest.mark.parametrize(
    ("version", "fits"),
    [
        ("mpirun (Open MPI) 4.1.4", _OPENMPI_4_LIBS),
        ("mpirun (Open MPI) 5.0.7rc1", _OPENMPI_5_LIBS),
        ("HYDRA build details:", _MPICH_LIBS),
        ("Intel(R) MPI Library for Linux* OS, Version 2021", _MPICH_LIBS),
    ],
)
def test_an_unknown_mpirun_is_asked_whose_it_is(tmp_path: Path, version: str, fits: str) -> None:
    assert _run(tmp_path, linked=fits, version=version).returncode == 0
    other = _OPENMPI_4_LIBS if fits == _MPICH_LIBS else _MPICH_LIBS
    assert _run(tmp_path, linked=other, version=version).returncode == GUARD_CODE


def test_an_older_library_may_be_replaced_by_that_of_mpirun(tmp_path: Path) -> None:
    """Open MPI 5, where it is called by its path, puts its own folder of libraries first."""
    old, new = (libs.replace("\n", ";") for libs in (_OPENMPI_4_LIBS, _OPENMPI_5_LIBS))
    script = f'case $LD_LIBRARY_PATH in *lib*) echo "{new}" ;; *) echo "{old}" ;; esac'
    for name, text in (("ldd", script), ("mpirun", "echo ran"), ("prog", "")):
        (tmp_path / name).write_text(f"#!/bin/sh\n{text}\n")
        (tmp_path / name).chmod(0o755)
    command = guarded(("mpirun", "prog"), "prog", "Open MPI 5.0.11")
    path = {"PATH": f"{tmp_path}:/usr/bin:/bin"}
    ran = subprocess.run(command, env=path, capture_output=True, text=True, check=False, timeout=60)
    assert (ran.stdout, ran.returncode) == ("ran\n", 0), ran.stderr


def test_an_mpirun_that_does_not_tell_is_not_judged(tmp_path: Path) -> None:
    assert _run(tmp_path, linked=_MPICH_LIBS, version="srun 1").returncode == 0


def test_without_mpirun_it_says_so(tmp_path: Path) -> None:
    command = guarded(("mpirun", "-np", "2", "prog"), "prog")
    ran = subprocess.run(
        command, env={"PATH": str(tmp_path)}, capture_output=True, text=True, check=False
    )
    assert ran.returncode == GUARD_CODE
    assert guard_said(ran.stderr) == (
        Reason.MPI_UNAVAILABLE,
        f"mpirun: no such program here (PATH is {tmp_path}): install Open MPI or MPICH",
    )


def test_what_a_program_says_is_not_taken_for_the_guards_word() -> None:
    assert guard_said("nothing of it") is None
    assert guard_said("simagent: mpi_moon: x\n") is None
