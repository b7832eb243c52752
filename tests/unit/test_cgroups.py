"""Where cgroups go and what is written to them, on a folder that looks like a cgroup v2 tree."""

import os
import time
from pathlib import Path

import pytest

from simagent.ports.runtime import StepLimits
from simagent.runtimes.cgroups import Cgroups, NoCgroupsError, Place, find, kill, remove

USER = 1000


class Tree:
    """A cgroup v2 tree in a folder, and the /proc of an agent in it."""

    def __init__(self, folder: Path) -> None:
        self.root = folder / "cgroup fs"
        self.proc = folder / "proc"
        (self.proc / "self").mkdir(parents=True)
        mounted = str(self.root).replace(" ", r"\040")
        (self.proc / "self" / "mountinfo").write_text(
            "22 1 0:20 / /proc rw - proc proc rw\n"
            f"33 1 0:30 / {mounted} rw,relatime shared:9 - cgroup2 cgroup2 rw\n"
        )
        self.add(self.root)

    def add(self, cgroup: Path, procs: str = "", controllers: str = "cpu io memory pids") -> Path:
        cgroup.mkdir(parents=True, exist_ok=True)
        (cgroup / "cgroup.procs").write_text(procs)
        (cgroup / "cgroup.controllers").write_text(controllers)
        (cgroup / "cgroup.subtree_control").write_text("")
        return cgroup

    def agent_in(self, path: str, procs: str = str(os.getpid())) -> Path:
        (self.proc / "self" / "cgroup").write_text(f"4:memory:/elsewhere\n0::{path}\n")
        return self.add(self.root / path.lstrip("/"), procs)

    def find(self, uid: int = USER) -> Place:
        return find(self.proc, uid)


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    return Tree(tmp_path)


def test_beside_the_agent_where_systemd_gave_it_a_subgroup(tree: Tree) -> None:
    tree.add(tree.root / "system.slice" / "simagent.service")
    tree.agent_in("/system.slice/simagent.service/agent")
    base = tree.root / "system.slice" / "simagent.service"
    assert tree.find(uid=0) == tree.find() == Place(base)


def test_at_the_top_for_root(tree: Tree) -> None:
    tree.agent_in("/user.slice/session-3.scope", procs="1\n2\n")
    assert tree.find(uid=0) == Place(tree.root / "simagent", above=tree.root)


def test_at_the_top_where_that_is_all_that_root_may_write_to(tree: Tree) -> None:
    part = tree.root / "simagent"
    tree.agent_in("/simagent.slice/simagent.service")
    mounts = tree.proc / "self" / "mountinfo"
    mounted = str(part).replace(" ", r"\040")
    over = f"44 33 0:30 /simagent {mounted} rw,relatime - cgroup2 cgroup2 rw\n"
    mounts.write_text(over + mounts.read_text())
    (tree.root / "cgroup.subtree_control").unlink()
    with pytest.raises(NoCgroupsError, match="DelegateSubgroup"):
        tree.find(uid=0)
    tree.add(part, controllers="cpu io")
    with pytest.raises(NoCgroupsError, match="DelegateSubgroup"):
        tree.find(uid=0)
    tree.add(part)
    assert tree.find(uid=0) == Place(part)


def test_in_its_own_cgroup_where_the_agent_is_alone(tree: Tree) -> None:
    own = tree.agent_in("/app.slice/run-1.scope")
    assert tree.find() == Place(own, leaf=own / "agent")


def test_not_where_others_are_too(tree: Tree) -> None:
    tree.agent_in("/app.slice/run-1.scope", procs=f"1\n{os.getpid()}\n")
    with pytest.raises(NoCgroupsError, match="other processes"):
        tree.find()


def test_not_in_a_unit_that_could_not_be_restarted_then(tree: Tree) -> None:
    tree.agent_in("/app.slice/simagent.service")
    with pytest.raises(NoCgroupsError, match="DelegateSubgroup=agent"):
        tree.find()


def test_not_where_the_tree_lacks_controllers(tree: Tree) -> None:
    tree.agent_in("/")
    tree.add(tree.root, controllers="cpu hugetlb")
    with pytest.raises(NoCgroupsError, match="memory and pids"):
        tree.find(uid=0)


@pytest.mark.parametrize("own", ["/../../elsewhere", "/a/../../b"])
def test_not_where_the_agent_is_outside_of_the_tree(tree: Tree, own: str) -> None:
    (tree.proc / "self" / "cgroup").write_text(f"0::{own}\n")
    with pytest.raises(NoCgroupsError, match="outside"):
        tree.find()


def test_not_without_a_tree(tree: Tree) -> None:
    tree.agent_in("/")
    (tree.proc / "self" / "mountinfo").write_text("22 1 0:20 / /proc rw - proc proc rw\n")
    with pytest.raises(NoCgroupsError, match="no cgroup v2 tree"):
        tree.find()


def test_not_where_it_may_not_write(tree: Tree) -> None:
    own = tree.agent_in("/user.slice/session-3.scope")
    (own / "cgroup.subtree_control").unlink()  # not there at all: root, too, may not write it
    with pytest.raises(NoCgroupsError, match="may not write"):
        tree.find()


def test_the_agent_moves_into_a_leaf_before_controllers_are_passed_on(tree: Tree) -> None:
    own = tree.agent_in("/run-1.scope")
    # A folder where the file should be: nothing can be written, as in a cgroup with processes.
    (own / "cgroup.subtree_control").unlink()
    (own / "cgroup.subtree_control").mkdir()
    with pytest.raises(NoCgroupsError, match="cannot set up"):
        Cgroups.open(Place(own, leaf=own / "agent"))
    assert (own / "agent" / "cgroup.procs").read_text() == str(os.getpid())


def test_a_limit_is_written_for_each_that_is_asked_for(tmp_path: Path) -> None:
    limits = StepLimits(memory_bytes=2**30, cpus=1.5, processes=100)
    cgroup = Cgroups(tmp_path).create("t.1", limits)
    assert cgroup == tmp_path / "simagent-t.1"
    assert {file.name: file.read_text() for file in cgroup.iterdir()} == {
        "memory.max": "1073741824",
        "memory.swap.max": "0",
        "memory.oom.group": "1",
        "pids.max": "100",
        "cpu.max": "150000 100000",
    }


def test_the_next_step_of_an_attempt_may_have_the_same(tmp_path: Path) -> None:
    cgroups = Cgroups(tmp_path)
    first = cgroups.create("t.1", StepLimits(processes=5))
    assert cgroups.create("t.1", StepLimits(processes=5)) == first
    assert not (first / "memory.max").exists()


def test_opening_removes_what_is_long_left_over_and_nothing_else(tree: Tree) -> None:
    base = tree.add(tree.root / "simagent")
    old, new, busy, other = (base / name for name in ("simagent-a.1", "simagent-b.1",
                                                      "simagent-c.1", "other"))  # fmt: skip
    for cgroup in (old, new, busy, other):
        cgroup.mkdir()
    (busy / "cgroup.procs").touch()
    for cgroup in (old, busy, other):
        os.utime(cgroup, (time.time() - 3600,) * 2)
    Cgroups.open(Place(base))
    assert [cgroup.exists() for cgroup in (old, new, busy, other)] == [False, True, True, True]
    assert (base / "cgroup.subtree_control").read_text() == "+cpu"  # the last of three writes


def test_killing_and_removing_what_is_gone_does_nothing(tmp_path: Path) -> None:
    kill(tmp_path / "gone")
    remove(tmp_path / "gone")
    assert list(tmp_path.iterdir()) == []
