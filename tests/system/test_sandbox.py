"""The units' sandbox: no wider than it has to be, and simulators start in it."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from engines.apptainer import Apptainer
from engines.dockerd import Engine
from shelf.images import build, image_file, make_debian
from shelf.model import ROOT as SHELF
from shelf.model import load
from system.machines import SUITES, Lab, Machine

IMAGES = "/srv/images"
ATTEMPTS = "/var/lib/simagent/attempts"
UNITS = [f"simagent{end}" for end in ("", "-member", "-shutdown", "-firewall", "-deadman")]
MELT = """\
units lj
lattice fcc 0.8442
region box block 0 4 0 4 0 4
create_box 1 box
create_atoms 1 box
mass 1 1.0
velocity all create 1.44 87287
pair_style lj/cut 2.5
pair_coeff 1 1 1.0 1.0 2.5
fix 1 all nve
run 20
"""
# What Apptainer does: it has a /proc of its own mounted, as whoever it is.
OWN_PROC = "unshare --user --map-root-user --pid --fork --mount-proc sh -c 'echo pid $$'"
SEEN = "ls -A /home; for p in /proc/[0-9]*; do stat -c %U $p; done | sort -u"


def submit(machine: Machine, name: str, **fields: object) -> str:
    """Submit a task; give its id."""
    machine.write(f"/srv/{name}.json", json.dumps(fields))
    return machine.simagent("submit", f"/srv/{name}.json").split()[-1]


def run(machine: Machine, name: str, **fields: object) -> str:
    """Run a task that succeeds; give what it prints."""
    task = submit(machine, name, **fields)
    machine.run("simagent", "wait", task, check=False, seconds=300)
    state = json.loads(machine.simagent("show", task, "--json"))
    said = machine.simagent("logs", task)
    assert (state["status"], state["reason"]) == ("succeeded", None), f"{state}\n{said}"
    return said


@pytest.fixture(scope="session")
def images(docker_engine: Engine, apptainer: Apptainer) -> Path:
    """A folder with LAMMPS for Apptainer, and with an image that has to be converted."""
    folder: Path = SHELF.parent / "build" / "images"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DOCKER_HOST", docker_engine.host)
        lammps = load("lammps")
        build(lammps)
        made = Path(image_file(lammps, "apptainer", folder).removeprefix("file://"))
        make_debian("trixie")
    # One with setuid programs and device files in it.
    archive = folder / "debian-trixie.tar"
    docker_engine.run("save", "--output", str(archive), "debian:trixie-slim")
    archive.chmod(0o644)
    link = folder / "lammps.sif"
    link.unlink(missing_ok=True)
    link.hardlink_to(made)
    return folder


@pytest.mark.parametrize("suite", SUITES)
def test_the_units_are_right_and_expose_little(
    suite: str, machines: Lab, package: Callable[[str], Path]
) -> None:
    machine = machines.boot(suite, package=package(suite))
    for unit in UNITS:
        verified = machine.run("systemd-analyze", "verify", "--man=no", f"{unit}.service")
        assert verified.stdout + verified.stderr == "", unit
        argv = ["systemd-analyze", "security", "--no-pager", "--threshold=40", unit]
        assert machine.run(*argv, check=False).returncode == 0, unit
    machine.configure(allow_process=True)
    machine.systemctl("start", "simagent")
    # Containers can be made in it, of this release's systemd.
    assert run(machine, "own", commands=[{"run": OWN_PROC, "shell": True}]) == "pid 1\n"
    # Credentials that there are not are not missed, and those that there are come first.
    assert "inherited credential" not in machine.run("journalctl", "--no-pager").stdout
    machine.write("/etc/credstore/simagent.config", "allow_process = true\nslots = 3\n", 0o600)
    machine.systemctl("restart", "simagent")
    machine.until(lambda: "of 3 slots busy" in machine.shows("simagent", "StatusText"))


def test_simulators_start(machines: Lab, package: Callable[[str], Path], images: Path) -> None:
    machine = machines.boot(package=package("trixie"), folders={images: IMAGES})
    machine.configure(allow_process=True)
    machine.systemctl("start", "simagent")
    machine.write("/srv/in.melt", MELT)
    ranks = {"np": 2, "oversubscribe": True}
    commands = [{"run": "lmp -in in.melt", "mpi": ranks}]
    lammps = f"file://{IMAGES}/lammps.sif"
    said = run(machine, "lj", image=lammps, inputs=["in.melt"], commands=commands)
    assert "2 MPI task" in said or "2 by 1 by 1 MPI processor grid" in said
    # Its user converts what is in there, setuid programs and all.
    archive = f"docker-archive:{IMAGES}/debian-trixie.tar"
    said = run(machine, "converted", image=archive, commands=["stat -c %A /usr/bin/su", "id -un"])
    assert said.startswith("-rwsr-xr-x\n")
    # Of the machine a program sees no homes, and no processes but its user's.
    said = run(machine, "seen", commands=[{"run": f"{SEEN} 2>/dev/null", "shell": True}])
    assert said == "simtask-0\n"


def test_a_simulator_in_its_container_outlives_the_agent(
    machines: Lab, package: Callable[[str], Path], images: Path
) -> None:
    machine = machines.boot(package=package("trixie"), folders={images: IMAGES})
    machine.configure()
    machine.systemctl("start", "simagent")
    loop = "i=0; while [ ! -e go ]; do i=$((i + 1)); echo line $i; sleep 0.1; done; echo end $i"
    image = f"file://{IMAGES}/lammps.sif"
    task = submit(machine, "loop", image=image, commands=[{"run": loop, "shell": True}])
    machine.until(lambda: "line 3\n" in machine.simagent("logs", task))
    agent = machine.shows("simagent", "MainPID")
    # Each incarnation has a mount namespace of its own.
    machine.systemctl("restart", "simagent")
    assert machine.shows("simagent", "MainPID") != agent
    seen = machine.simagent("logs", task).count("\n")
    machine.until(lambda: machine.simagent("logs", task).count("\n") > seen + 3)
    (there,) = machine.run("find", ATTEMPTS, "-name", "artifacts").stdout.split()
    machine.run("touch", f"{there}/go")
    machine.simagent("wait", task)
    *lines, end = machine.simagent("logs", task).splitlines()
    assert lines == [f"line {number}" for number in range(1, len(lines) + 1)]
    assert end == f"end {len(lines)}"
    machine.until(lambda: not machine.run("ls", "-A", ATTEMPTS).stdout)
