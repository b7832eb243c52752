"""A head tries MPI by itself when hosts have come, once for each set, and keeps the result."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from simagent.cli.cluster_check import ClusterCheck, kept_check
from simagent.config_load import load_config
from simagent.domain import keys
from simagent.domain.cluster import Member
from simagent.engines import open_store
from simagent.ports.clock import SystemClock, Wake

GOOD = {"ok": True, "troubles": [], "notes": [], "ranks": [{}, {}]}
BAD = {"ok": False, "troubles": ["1 of 2 ranks are missing: 1"], "notes": [], "ranks": [{}]}

# Stands for the command: notes that it was called, says what is in a file.
COMMAND = """\
import os, pathlib, sys
folder = pathlib.Path(sys.argv[1])
with (folder / "calls").open("a") as file:
    print(*sys.argv[2:], os.environ["SIMAGENT_STATE_DIR"], file=file)
print((folder / "report").read_text())
"""


class Headed:
    """A head's check, its store, and members that show themselves there."""

    def __init__(self, folder: Path, **mpi: object) -> None:
        self.folder = folder
        (folder / "command.py").write_text(COMMAND)
        self.config = load_config(
            None, state_dir=folder / "state", cluster="blue", mpi={"check": True, **mpi}
        )
        self.config.state_dir.mkdir()
        self.store = open_store(self.config)
        self.beats = 0
        self.check = self.anew()

    def anew(self) -> ClusterCheck:
        command = (sys.executable, str(self.folder / "command.py"), str(self.folder))
        return ClusterCheck(self.config, SystemClock(), command)

    def show(self, *hosts: str) -> None:
        self.beats += 1
        for host in hosts:
            member = Member(
                agent=host,
                incarnation="i",
                host=host,
                address=f"{host}.example",
                port=2222,
                ssh_user="sim",
                host_key="k",
                slots=1,
                uid=1,
                beat=self.beats,
            )
            self.store.put(keys.cluster_member("blue", host), member.model_dump_json().encode())

    def looks(self, *hosts: str, times: int = 4) -> None:
        """Let the check look, while these hosts show themselves."""
        for _ in range(times):
            self.show(*hosts)
            self.check.turn(Wake())

    def says(self, report: dict[str, Any]) -> None:
        (self.folder / "report").write_text(json.dumps(report))

    @property
    def calls(self) -> list[str]:
        file = self.folder / "calls"
        return file.read_text().splitlines() if file.exists() else []


@pytest.fixture
def headed(tmp_path: Path) -> Headed:
    return Headed(tmp_path)


def test_each_set_of_hosts_is_tried_once(headed: Headed) -> None:
    headed.says(GOOD)
    headed.looks()
    assert headed.calls == []
    headed.looks("vm2")
    asked = "mpi check --json --hosts 2 --timeout 900"
    assert headed.calls == [f"{asked} {headed.config.state_dir}"]
    headed.check = headed.anew()  # as after a restart
    headed.looks("vm2")
    assert len(headed.calls) == 1
    headed.looks("vm2", "vm3")
    assert len(headed.calls) == 2
    assert "--hosts 3" in headed.calls[1]
    kept = kept_check(headed.config.state_dir)
    assert kept is not None
    assert kept["ok"]


def test_hosts_that_are_waited_for_and_the_image_are_heeded(tmp_path: Path) -> None:
    headed = Headed(tmp_path, size=3, check_image="lammps:1")
    headed.says(GOOD)
    headed.looks("vm2")
    assert headed.calls == []
    headed.looks("vm2", "vm3")
    assert "--hosts 3 --timeout 900 --image lammps:1" in headed.calls[0]


def test_what_is_wrong_is_kept_to_be_seen_and_tried_again_later(headed: Headed) -> None:
    headed.says(BAD)
    headed.looks("vm2")
    assert len(headed.calls) == 1
    kept = kept_check(headed.config.state_dir)
    assert kept is not None
    assert kept["troubles"] == BAD["troubles"]
    headed.says(GOOD)
    headed.check = headed.anew()
    headed.looks("vm2")
    assert len(headed.calls) == 2


def test_a_command_that_says_nothing_is_a_failure(headed: Headed) -> None:
    (headed.folder / "command.py").write_text("import sys; sys.exit('the store is away')")
    headed.looks("vm2")
    kept = kept_check(headed.config.state_dir)
    assert kept is not None
    assert kept["troubles"] == ["the store is away"]


def test_an_agent_that_ends_ends_the_command(headed: Headed) -> None:
    (headed.folder / "command.py").write_text("import time; time.sleep(600)")
    headed.show("vm2")
    headed.check.turn(Wake())
    stop = Wake()
    stop.set()
    for _ in range(3):
        headed.show("vm2")
        headed.check.turn(stop)
    assert kept_check(headed.config.state_dir) is None
