"""`simagent mpi check` over two hosts, from a client elsewhere, in each way to start ranks."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from cluster.lab import HEAD, ClusterLab, cluster_lab
from engines.dockerd import Engine

_ENGINES = ("store", "s3_endpoint", "s3_region", "queue", "sqs_endpoint", "sqs_region")


@pytest.fixture(scope="module")
def lab(docker_engine: Engine, vm_image: str) -> Iterator[ClusterLab]:
    """A head and a member, for all tests here."""
    with cluster_lab(docker_engine, vm_image) as made:
        made.up(members=1)
        yield made


def check(lab: ClusterLab, *args: str, code: int = 0) -> dict[str, Any]:
    config = lab.config("client")
    env = {name: value for name, value in os.environ.items() if not name.startswith("SIMAGENT_")}
    env |= {f"SIMAGENT_{name.upper()}": str(getattr(config, name)) for name in _ENGINES}
    env["SIMAGENT_STATE_DIR"] = str(config.state_dir)
    done = subprocess.run(
        [sys.executable, "-m", "simagent", "mpi", "check", "--json", "--timeout", "240", *args],
        env=env,
        capture_output=True,
        text=True,
        timeout=400,
        check=False,
    )
    assert done.returncode == code, f"{done.stdout}{done.stderr}\n{lab.log_of('head')[-3000:]}"
    found: dict[str, Any] = json.loads(done.stdout)
    lab.check()
    return found


def check_two(lab: ClusterLab, *args: str) -> str:
    """See two ranks on two hosts meet; give the version of their MPI."""
    report = check(lab, "--np", "2", "--hosts", "2", *args)
    assert report["troubles"] == report["notes"] == []
    assert report["hosts"] == {"head": 1, "m1": 1}
    versions = {rank["mpi"] for rank in report["ranks"]}
    assert len(versions) == 1
    assert all(rank["link"]["bytes_per_second"] > 0 for rank in report["ranks"])
    return str(versions.pop())


def test_programs_of_the_hosts(lab: ClusterLab) -> None:
    assert check_two(lab) == "Open MPI 5.0.7"


def test_contained(lab: ClusterLab, sif: Callable[[str], Path]) -> None:
    assert check_two(lab, "--image", lab.link(sif("mpi-probe"))) == "Open MPI 5.0.7"


def test_hybrid(lab: ClusterLab, sif: Callable[[str], Path]) -> None:
    image = lab.link(sif("mpi-probe"))
    assert check_two(lab, "--image", image, "--mpi-version", "5") == "Open MPI 5.0.7"


def test_all_cores_of_all_hosts(lab: ClusterLab) -> None:
    report = check(lab)
    assert report["hosts"] == {"head": 2, "m1": 2}
    assert [rank["rank"] for rank in report["ranks"]] == [0, 1, 2, 3]


def test_a_host_that_is_missing_is_said(lab: ClusterLab) -> None:
    (trouble,) = check(lab, "--hosts", "3", code=1)["troubles"]
    assert "mpi.hosts: 3 hosts are asked for, the cluster has 2" in trouble


@pytest.mark.parametrize("contained", [False, True])
def test_a_head_tries_it_by_itself(
    lab: ClusterLab, sif: Callable[[str], Path], *, contained: bool
) -> None:
    image = {"check_image": lab.link(sif("mpi-probe"))} if contained else {}
    lab.kill_agent(HEAD)
    begun = len(lab.log_of(HEAD))
    lab.start(HEAD, mpi={"size": 2, "check": True, **image})

    def found() -> list[dict[str, Any]] | None:
        lines = [line for line in lab.log_of(HEAD)[begun:].splitlines() if line.startswith("{")]
        told = [line for line in map(json.loads, lines) if str(line["event"]).startswith("MPI ")]
        return told if len(told) > 1 else None

    tried, works = lab.until(found, 240.0)
    assert (tried["event"], tried["hosts"]) == ("MPI is tried on the hosts of the cluster", 2)
    assert (works["event"], works["ranks"]) == ("MPI works on the hosts of the cluster", 4), works
    lab.check()
