"""`simagent mpi check` on one machine: with its MPI, without mpi4py, with a wrong MPI."""

import json
import os
import shutil
import signal
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Any

import pytest

from fakes.cli import Cli
from fakes.rig import Rig
from fakes.steps import until
from simagent import mpi_probe
from simagent.cli.mpi_report import Rank, read_ranks
from simagent.cli.mpi_task import write_inputs
from simagent.worker.identity import holder_of

SCRIPTS = sysconfig.get_path("scripts")
MPICH = shutil.which("mpirun", path=SCRIPTS)
OPENMPI = shutil.which("mpirun.openmpi")

needs_mpich = pytest.mark.skipif(MPICH is None, reason="no mpirun: install the extra 'examples'")
needs_openmpi = pytest.mark.skipif(
    OPENMPI is None, reason="no Open MPI (apt-get install openmpi-bin)"
)

# Starts N programs that know nothing of each other, as a wrong MPI does.
FORGETFUL = """\
#!/bin/sh
case $1 in --version) echo 'mpirun (Open MPI) 4.1.4'; exit ;; esac
while [ "$1" != /bin/sh ]; do shift; done
"$@" & "$@"
wait
"""


@pytest.fixture
def cli(tmp_path: Path) -> Cli:
    cli = Cli(tmp_path)
    if MPICH is not None:
        cli.env["SIMAGENT_MPIRUN"] = MPICH
    # Ranks may have to share cores here, and Open MPI wants to be told that root is meant.
    cli.env |= {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
    return cli


def told(cli: Cli, *args: str, code: int = 0) -> dict[str, Any]:
    report: dict[str, Any] = json.loads(cli("mpi", "check", "--json", *args, code=code).stdout)
    return report


@needs_mpich
def test_two_ranks_meet_and_measure(cli: Cli) -> None:
    report = told(cli, "--np", "2")
    assert report["ok"]
    assert report["troubles"] == report["notes"] == []
    assert [rank["rank"] for rank in report["ranks"]] == [0, 1]
    assert {rank["size"] for rank in report["ranks"]} == {2}
    assert all(rank["mpi"].startswith("MPICH ") for rank in report["ranks"])
    for rank in report["ranks"]:
        assert 0 < rank["link"]["seconds"] < 1
        assert rank["link"]["bytes_per_second"] > 0
        assert rank["together"]["each_reached_each"]
    assert json.loads(cli("list", "--json").stdout) == []


@needs_openmpi
def test_mpi4py_loads_the_library_of_the_mpirun_that_started_it(cli: Cli) -> None:
    """Beside mpi4py lies another MPI's library, which would know of one rank alone."""
    cli.env["SIMAGENT_MPIRUN"] = str(OPENMPI)
    done = cli("mpi", "check", "--np", "2")
    assert done.stdout.count("Open MPI") == 2
    assert done.stdout.splitlines()[-1] == "ok: 2 ranks on 1 host"


@needs_mpich
def test_the_agent_that_runs_here_does_it_and_the_task_can_be_kept(cli: Cli) -> None:
    agent = cli.start("agent")
    try:
        until(lambda: holder_of(cli.state), "the agent")
        done = cli("mpi", "check", "--np", "1", "--keep", "--json")
    finally:
        agent.send_signal(signal.SIGTERM)
        agent.communicate(timeout=60)
    report = json.loads(done.stdout)
    assert report["ok"]
    assert "is left to an agent" in done.stderr
    assert cli.shown(report["task"])["status"] == "succeeded"


@needs_mpich
def test_agents_elsewhere_do_it_where_a_queue_is_named(tmp_path: Path) -> None:
    rig, cli = Rig(tmp_path), Cli(tmp_path)
    queue, store = rig.config().queue_url, rig.config().store_url
    named = ("--queue", queue, "--store", store, "--state-dir", str(tmp_path / "client"))
    with rig.agent(mpirun=str(MPICH)):
        assert told(cli, "--np", "1", *named)["ok"]
    with rig.agent(in_fleet=True, mpirun="no-mpirun"):
        refused = told(cli, "--np", "1", *named, code=1)
    (trouble,) = refused["troubles"]
    assert "no mpirun was found on this machine (no-mpirun)" in trouble


def test_where_no_agent_comes_it_is_given_up_and_the_cluster_looked_at(cli: Cli) -> None:
    cli.env["SIMAGENT_CLUSTER"] = "blue"
    named = ("--queue", f"sqlite://{cli.folder}/q.db", "--store", f"file://{cli.folder}/store")
    done = cli("mpi", "check", "--timeout", "1", *named, code=1)
    assert "wrong: no agent of group default took it after 1 s" in done.stdout
    assert "note: cluster folder: mpi.shared_dir is not set" in done.stdout
    assert json.loads(cli("list", "--json", *named).stdout) == []


def test_a_job_that_fell_apart_is_no_success(cli: Cli) -> None:
    mpirun = cli.folder / "mpirun"
    mpirun.write_text(FORGETFUL)
    mpirun.chmod(0o755)
    cli.env["SIMAGENT_MPIRUN"] = str(mpirun)
    report = told(cli, "--np", "2", code=1)
    assert not report["ok"]
    assert report["troubles"]


def test_what_cannot_be_is_refused_before_anything_starts(cli: Cli) -> None:
    cli.env["SIMAGENT_MPIRUN"] = "no-mpirun"
    assert "no mpirun was found" in cli("mpi", "check", code=2).stderr
    said = cli("mpi", "check", "--np", "none", code=2).stderr
    assert "--np: 'none' is no number of ranks" in said
    said = cli("mpi", "check", "--image", "A B", code=2).stderr
    assert "image: " in said


def ranks(folder: Path, *args: str, np: int = 2, env: dict[str, str] | None = None) -> list[Rank]:
    assert MPICH is not None
    done = subprocess.run(
        [MPICH, "-np", str(np), *args],
        cwd=folder,
        env=env,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    written = [path.read_text() for path in folder.glob(f"{mpi_probe.FOLDER}/*")]
    return read_ranks(done.stdout.splitlines(), written)[0]


@needs_mpich
def test_without_mpi4py_ranks_and_versions_are_told(tmp_path: Path) -> None:
    write_inputs(tmp_path)
    # A Python that finds none of what is installed.
    python = tmp_path / "python3"
    python.write_text(f'#!/bin/sh\nexec {sys.executable} -I -S "$@"\n')
    python.chmod(0o755)
    env = {"PATH": f"{tmp_path}:/usr/bin:/bin"}
    found = ranks(tmp_path, "/bin/sh", "mpi-check.sh", str(python), env=env)
    if any(rank.met for rank in found):
        pytest.skip("machine: the system's own Python has mpi4py")
    assert [rank.number for rank in found] == [0, 1]
    assert {rank.mpi4py for rank in found} == {None}
    assert all(rank.mpi.startswith("MPICH ") for rank in found)


@needs_mpich
def test_without_any_python_the_shell_tells_what_it_can(tmp_path: Path) -> None:
    write_inputs(tmp_path)
    tools = tmp_path / "bin"
    tools.mkdir()
    for name in ("mkdir", "cat", "sh"):
        (tools / name).symlink_to(shutil.which(name) or "")
    (tools / "mpirun").write_text("#!/bin/sh\necho 'mpirun (Open MPI) 4.1.4'\n")
    (tools / "mpirun").chmod(0o755)
    script = (tmp_path / "mpi-check.sh").read_text().replace("/usr/bin/python3", "no-python")
    (tmp_path / "mpi-check.sh").write_text(script)
    found = ranks(tmp_path, "/bin/sh", "mpi-check.sh", env={"PATH": str(tools)})
    assert [rank.number for rank in found] == [0, 1]
    assert {rank.host for rank in found} == {os.uname().nodename}
    assert {rank.python for rank in found} == {None}
    assert {rank.mpi for rank in found} == {"Open MPI 4.1.4"}


@needs_mpich
def test_a_folder_that_is_not_shared_is_seen_by_the_first_rank(tmp_path: Path) -> None:
    probe = f"{sys.executable} {mpi_probe.__file__} meet"
    found = ranks(
        tmp_path, "/bin/sh", "-c", f'mkdir -p "$PMI_RANK" && cd "$PMI_RANK" && exec {probe}'
    )
    assert [rank.met for rank in found] == [True, True]
    assert found[0].unseen == (found[1].id,)
