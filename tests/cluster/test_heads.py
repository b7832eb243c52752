"""Who leads a cluster, and what a head does whose hosts are not there."""

import json

from cluster.images import HERE
from cluster.lab import CLUSTER, HEAD, ClusterLab
from simagent.domain.keys import TaskKeys

RANK = "wait.py"
STANDBY = "head2"


def spanning(lab: ClusterLab, **mpi: object) -> TaskKeys:
    """Submit a task of two ranks on two hosts, which wait for each other."""
    return lab.submit(
        {"run": f"python3 {RANK}", "mpi": {"np": 2, "hosts": 2, "ranks_per_host": 1, **mpi}},
        inputs=[str(HERE / "ranks" / RANK)],
        grace=2.0,
    )


def said(lab: ClusterLab, name: str, event: str) -> list[dict[str, object]] | None:
    """Give the lines of an agent's log of one event; None where there is none yet."""
    lines = [line for line in lab.log_of(name).splitlines() if line.startswith("{")]
    return [line for line in map(json.loads, lines) if line["event"] == event] or None


def awaits_one(lab: ClusterLab) -> dict[str, object] | None:
    """Give what the head says while it waits for one host only."""
    told = said(lab, HEAD, "hosts_awaited") or []
    return next((line for line in told if line["missing"] == 1), None)


def test_another_head_stands_by_and_takes_over(lab: ClusterLab) -> None:
    lab.up(members=1)
    task = spanning(lab)
    lab.running_on(task, RANK, HEAD, "m1")
    lab.boot(STANDBY)
    lab.start(STANDBY, mpi={"size": 2})
    lab.until(lambda: "cluster lab" in lab.log_of(STANDBY) or lab.agents_of(STANDBY))
    lab.head.die()
    lab.until(lambda: said(lab, STANDBY, "cluster_led"))
    lab.running_on(task, RANK, STANDBY, "m1")
    assert lab.client.state(task).epoch == 2, lab.told(task)
    lab.go(task)
    state = lab.ends(task)
    assert state.status == "succeeded", lab.told(task)
    lab.no_ranks(HEAD)


def test_a_task_waits_for_its_hosts_and_a_head_says_for_which(lab: ClusterLab) -> None:
    lab.boot(HEAD, "m1")
    lab.start(HEAD, mpi={"hosts": ["m1", "nobody"]})
    task = spanning(lab)
    (told,) = lab.until(lambda: said(lab, HEAD, "hosts_awaited"))
    assert (told["missing"], told["of"]) == (2, 3)
    lab.start("m1")
    told = lab.until(lambda: awaits_one(lab))
    assert told["error"] == "no member is called nobody, there is m1"
    refusals = lab.until(lambda: said(lab, HEAD, "task_refused"))
    assert "waits for" in str(refusals[-1]["reason"])
    assert lab.client.state(task).status == "queued"
    lab.kill_agent(HEAD)
    lab.start(HEAD, mpi={"hosts": ["m1"]})
    lab.running_on(task, RANK, HEAD, "m1")
    lab.go(task)
    lab.succeeds(task)


def test_what_is_not_to_be_had_is_refused_in_a_line(lab: ClusterLab) -> None:
    lab.up(members=1)
    lab.until(lambda: said(lab, HEAD, "hosts_there"))
    for fields, why in (
        ({"hosts": 3, "np": 3}, "commands[0].mpi.hosts: 3 hosts are asked for, the cluster has 2"),
        ({"np": 9}, "commands[0].mpi.np: 9 ranks are"),
    ):
        task = spanning(lab, **fields)
        state = lab.ends(task)
        assert (state.status, state.reason) == ("error", "unsupported"), lab.told(task)
        assert why in state.message
    head = lab.head.run("simagent agent --cluster x", check=False, SIMAGENT_SLOTS="2")
    assert (head.returncode, "slots: a cluster runs one task at a time" in head.stderr) == (2, True)


def test_a_crash_while_hosts_are_gathered_leaves_nothing(lab: ClusterLab) -> None:
    lab.up(members=1)
    lab.until(lambda: said(lab, HEAD, "hosts_there"))
    task = spanning(lab)
    lab.until(lambda: list(lab.shared.glob(f"{CLUSTER}/*{task.id}.*")))
    lab.kill_agent(HEAD)
    lab.start(HEAD)
    lab.running_on(task, RANK, HEAD, "m1")
    lab.go(task)
    lab.succeeds(task)
    assert lab.client.state(task).epoch == 1
