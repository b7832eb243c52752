"""What `simagent doctor` says of MPI, and of a cluster: as its head and as a member of it."""

import json
import os
import socket
import time
from pathlib import Path
from typing import Any

import pytest

from fakes.cli import Cli
from fakes.disks import stalled_disk
from fakes.rig import Rig
from simagent.cli.doctor_mpi import _shared
from simagent.domain.cluster import Member
from simagent.worker import shared


@pytest.fixture
def cli(tmp_path: Path) -> Cli:
    cli = Cli(tmp_path)
    cli.env["SIMAGENT_CLUSTER"] = "blue"
    return cli


def set_mpi(cli: Cli, **fields: object) -> None:
    cli.env["SIMAGENT_MPI"] = json.dumps(fields)


def found(cli: Cli, *, code: int = 0) -> dict[str, list[dict[str, Any]]]:
    """Give the findings by their names."""
    checks: dict[str, list[dict[str, Any]]] = {}
    for check in json.loads(cli("doctor", "--json", code=code).stdout)["checks"]:
        checks.setdefault(check["name"], []).append(check)
    return checks


def show(cli: Cli, agent: str, **fields: object) -> None:
    """Let a member show itself in the store."""
    member = Member(
        **{
            "agent": agent,
            "incarnation": "i",
            "at": time.time(),
            "host": agent,
            "address": "10.0.0.2",
            "port": 2222,
            "ssh_user": "sim",
            "host_key": "k",
            "slots": 4,
            "uid": 1500,
            "mpi": ("openmpi 4.1.4",),
            **fields,
        }
    )
    path = cli.state / "store" / "clusters" / "blue" / "members" / f"{agent}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(member.model_dump_json())


def test_of_no_cluster_nothing_is_said(tmp_path: Path) -> None:
    checks = found(Cli(tmp_path))
    assert not [name for name in checks if name.startswith("cluster")]
    assert "images: their own mpirun" in checks["mpi ranks"][0]["text"]
    assert checks["mpi slots"][0]["text"].endswith("one a core")


def test_a_head_sees_who_is_there_and_why_others_are_not(cli: Cli) -> None:
    set_mpi(cli, shared_dir=str(cli.folder), hosts=["10.0.0.2", "vm9", socket.gethostname()])
    show(cli, "vm2")
    show(cli, "vm3", trouble="sshd not found: install openssh-server")
    show(cli, "vm4", at=time.time() - 3600)
    checks = found(cli)
    (blue,) = checks["cluster blue"]
    assert blue["text"] == "led by nobody so far, members: 1, waits for 3 hosts"
    here, broken, silent, unknown = checks["cluster host"]
    assert here["text"] == "vm2 (10.0.0.2): 4 slots, uid 1500, openmpi 4.1.4"
    assert broken["text"] == "vm3: sshd not found: install openssh-server"
    assert "vm4: silent since" in silent["text"]
    assert unknown["text"] == "vm9 is to be used, and no member is called so"
    assert checks["cluster folder"][0]["verdict"] == "ok"


def test_two_hosts_of_one_name_are_missing_something(cli: Cli) -> None:
    set_mpi(cli, shared_dir=str(cli.folder))
    show(cli, "a", host="vm2")
    show(cli, "b", host="vm2")
    hosts = found(cli, code=1)["cluster host"]
    assert [host["verdict"] for host in hosts] == ["missing", "missing"]
    assert "two hosts have this name" in hosts[0]["text"]


def test_what_a_head_lacks_is_said_with_what_mends_it(cli: Cli) -> None:
    cli.env["SIMAGENT_SLOTS"] = "2"
    set_mpi(cli, interface="eth99", hostfile=str(cli.folder / "none"))
    checks = found(cli, code=1)
    lacking = {name for name, all_ in checks.items() if all_[0]["verdict"] == "missing"}
    assert {"cluster address", "cluster folder", "cluster slots"} <= lacking
    assert all(checks[name][0]["fix"] for name in lacking if name.startswith("cluster"))
    assert "mpi.hostfile" in checks["cluster blue"][0]["text"]


def test_what_a_member_lacks_is_said(cli: Cli) -> None:
    cli.env["SIMAGENT_ROLE"] = "member"
    gone = cli.folder / "gone"
    set_mpi(cli, shared_dir=str(gone), ssh_user="no-such-user")
    checks = found(cli, code=1)
    assert checks["cluster folder"][0]["text"] == f"there is no folder {gone}"
    assert checks["cluster ssh"][0]["verdict"] == "missing"


def test_a_shared_folder_in_which_others_could_put_files_in_the_place_of_ours_is_noted(
    cli: Cli,
) -> None:
    folder = cli.folder / "shared"
    folder.mkdir()
    folder.chmod(0o777)
    set_mpi(cli, shared_dir=str(folder))
    (check,) = found(cli)["cluster folder"]
    assert (check["verdict"], check["fix"]) == ("note", f"chmod +t {folder}")
    folder.chmod(0o1777)
    assert found(cli)["cluster folder"][0]["verdict"] == "ok"


def test_a_file_server_that_does_not_answer_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shared, "WITHIN", 0.5)
    config = Rig(tmp_path).config()
    folder = tmp_path / "shared"
    folder.mkdir()
    mpi = config.mpi.model_copy(update={"shared_dir": folder})
    with stalled_disk(folder):
        check = _shared(config.model_copy(update={"cluster": "blue", "mpi": mpi}))
    assert check.verdict == "missing"
    assert check.text == f"{folder} does not answer within 0.5 s: look after its file server"


def test_a_member_of_no_cluster_is_told_that_it_lacks_one(tmp_path: Path) -> None:
    cli = Cli(tmp_path)
    cli.env["SIMAGENT_ROLE"] = "member"
    (lacking,) = found(cli, code=1)["cluster"]
    assert (lacking["verdict"], lacking["fix"]) == ("missing", "set cluster, or remove role")


def test_hybrid_without_an_mpi_of_the_machine_is_noted(cli: Cli) -> None:
    cli.env["SIMAGENT_MPIRUN"] = "no-mpirun"
    set_mpi(cli, mode="hybrid", shared_dir=str(cli.folder), slots=3)
    checks = found(cli, code=int(not os.path.exists("/usr/bin/ssh")))
    assert checks["mpi ranks"][0]["verdict"] == "note"
    assert checks["mpi slots"][0]["text"] == "3, as set"
