"""Steps whose ranks lie on several hosts: a fake mpirun, the real broker, fake members."""

import os
import signal
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from fakes.grid import SLEEP, Cluster, is_rank, words_of
from fakes.steps import alive, commands_of, until
from simagent.domain.keys import TaskKeys
from simagent.ports.runtime import Step, StepPlan
from simagent.worker.journal import ARTIFACTS
from simagent.worker.orders import Detached, Preempted

IMAGE = "docker://registry.example/melt:1"


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    cluster = Cluster(tmp_path)
    yield cluster
    for member in cluster.members.values():
        member.end()


def nothing_left(cluster: Cluster, task: TaskKeys) -> None:
    until(lambda: commands_of(task.id) == [], "an end of all ranks and of the broker")
    until(lambda: all(not m.running for m in cluster.members.values()), "an end of the daemons")
    assert not list((cluster.folder / "shared" / "grid").iterdir())
    assert not list((cluster.folder / "state" / "attempts").iterdir())


def test_ranks_run_on_all_hosts_and_see_what_they_should(cluster: Cluster) -> None:
    with cluster.up():
        task = cluster.ranks("echo $GREETING >>$OUT", env={"GREETING": "hello", "OUT": "out"})
        requests = [m.requests for m in cluster.members.values()]
        state = cluster.finish(task)
    assert (state.status, state.message) == ("succeeded", "")
    for asked in requests:
        (enter,) = [request for request in asked if request["ask"] == "enter"]
        assert enter["attempt"] == {"project": "default", "task": task.id, "epoch": 1}
        assert enter["folder"].endswith(f"{task.id}.1.{enter['agent']}/{ARTIFACTS}")
        assert enter["env"]["GREETING"] == "hello"
        assert enter["env"]["SIMAGENT_TASK_ID"] == task.id
        assert "PATH" not in enter["env"], "that is each host's own"
        assert (enter["runtime"], enter["image"]) == ("process", None)
    assert cluster.heads[0].released == [task.id]
    nothing_left(cluster, task)


def test_containers_get_what_leads_to_the_other_hosts(cluster: Cluster) -> None:
    with cluster.up():
        task = cluster.ranks("true", image=IMAGE)
        state = cluster.finish(task)
    plan = cluster.containers.plans[0]
    assert plan.sandbox is not None
    assert plan.sandbox.network == "host"
    (mount,) = [m for m in plan.sandbox.mounts if str(m.target) == "/workdir/launch"]
    assert "/workdir/launch/enter" in plan.argv[2]
    assert state.attempts[0].steps[0].argv[-1] == "mpirun"
    assert mount.source.name == "0"


def test_samples_of_all_hosts_are_kept(cluster: Cluster) -> None:
    with cluster.up():
        task = cluster.ranks(SLEEP)
        cluster.everywhere(task)
        attempts = cluster.folder / "state" / "attempts"

        def sampled() -> bool:
            text = "".join(file.read_text() for file in attempts.glob("*/metrics.jsonl"))
            return all(f'"host":"{host}"' in text for host in cluster.members)

        until(sampled, "samples of vm2 and vm3")
        cluster.client.kill(task, by="the test", grace=1.0)
        cluster.finish(task)
    nothing_left(cluster, task)


@pytest.mark.parametrize("how", ["kill", "time_limit", "disk_full"])
def test_all_ranks_end_with_their_task(cluster: Cluster, how: str) -> None:
    limit = 10.0 if how == "time_limit" else None
    with cluster.up():
        task = cluster.ranks(SLEEP, grace=1.0, time_limit=limit)
        cluster.everywhere(task)
        if how == "kill":
            cluster.client.kill(task, by="the test")
        elif how == "disk_full":
            cluster.free = 0
        state = cluster.finish(task)
    ended = {"kill": "killed", "time_limit": "timed_out", "disk_full": "failed"}
    assert state.status == ended[how]
    assert state.reason == ("killed" if how == "kill" else how)
    nothing_left(cluster, task)


def test_a_host_that_is_lost_gives_the_task_back_with_its_name(cluster: Cluster) -> None:
    with cluster.up():
        task = cluster.ranks(SLEEP, grace=1.0, max_attempts=1)
        cluster.everywhere(task)
        for pid in cluster.relays("vm3"):
            os.kill(pid, signal.SIGKILL)
        state = cluster.finish(task)
    assert (state.status, state.reason) == ("error", "mpi_host_lost")
    assert "host vm3: " in (state.message or "")
    assert [name for name, _ in cluster.heads[0].doubted] == ["vm3"]
    nothing_left(cluster, task)


def test_a_failure_of_a_rank_is_not_taken_for_that_of_a_host(cluster: Cluster) -> None:
    with cluster.up():
        task = cluster.ranks("exit 3")
        state = cluster.finish(task)
    assert (state.status, state.reason) == ("failed", "exit_code")
    nothing_left(cluster, task)


def test_a_daemon_that_is_killed_is_a_host_that_is_lost(cluster: Cluster) -> None:
    """Whatever mpirun exits with: that of Open MPI 5 exits with 0."""
    with cluster.up():
        task = cluster.ranks(SLEEP, grace=1.0, max_attempts=1)
        cluster.everywhere(task)
        (daemon,) = cluster.until(lambda: [*cluster.members["vm2"].entries.values()] or None)
        daemon.send_signal(signal.SIGKILL)
        for pid in commands_of(task.id):
            if is_rank(pid):
                with suppress(ProcessLookupError):  # it is being ended anyway
                    os.kill(pid, signal.SIGTERM)
        state = cluster.finish(task)
    assert (state.status, state.reason) == ("error", "mpi_host_lost")
    assert "host vm2: MPI's daemon there was ended by SIGKILL" in (state.message or "")
    nothing_left(cluster, task)


def test_a_daemon_that_crashes_is_no_host_that_is_lost(cluster: Cluster) -> None:
    """It would crash again, wherever it ran."""
    with cluster.up():
        task = cluster.ranks(SLEEP, grace=1.0)
        cluster.everywhere(task)
        (daemon,) = cluster.until(lambda: [*cluster.members["vm2"].entries.values()] or None)
        daemon.send_signal(signal.SIGSEGV)
        for pid in commands_of(task.id):
            if is_rank(pid):
                with suppress(ProcessLookupError):  # it is being ended anyway
                    os.kill(pid, signal.SIGTERM)
        state = cluster.finish(task)
    assert (state.status, state.reason) == ("failed", "mpi_rank_failed")
    assert len(state.attempts) == 1
    assert "host vm2: MPI's daemon there was ended by SIGSEGV" in (state.message or "")
    nothing_left(cluster, task)


def test_an_mpirun_that_does_not_say_what_its_rank_died_of_is_not_what_died(
    cluster: Cluster,
) -> None:
    """It told the daemons to end, which nobody does who was killed."""
    with cluster.up():
        task = cluster.ranks("mkdir first && exit 137; exit 0")
        state = cluster.finish(task)
    assert (state.status, state.reason) == ("failed", "mpi_rank_failed")
    assert "a rank was ended by SIGKILL (signal 9); mpirun did not tell" in (state.message or "")
    nothing_left(cluster, task)


def test_an_mpirun_that_lost_a_host_and_exits_with_0_has_not_succeeded(cluster: Cluster) -> None:
    """As that of Open MPI 5 does."""
    said = (
        "PRTE has lost communication with a remote daemon.\n\n Remote daemon: [p@0,1] on node vm2"
    )
    with cluster.up():
        task = cluster.ranks(f"printf '{said}\n' >&2", max_attempts=1)
        state = cluster.finish(task)
    assert (state.status, state.reason) == ("error", "mpi_host_lost")
    assert "host vm2: MPI's daemon there is gone" in (state.message or "")
    nothing_left(cluster, task)


def test_the_next_incarnation_goes_on_with_all_ranks(cluster: Cluster) -> None:
    go = cluster.folder / "go"
    with cluster.up() as agent:
        line = f"touch {cluster.folder}/began.$$; until [ -e {go} ]; do sleep 0.1; done"
        task = cluster.ranks(line)
        until(lambda: len(list(cluster.folder.glob("began.*"))) == 3, "all ranks")
        agent.interrupt(Detached("the agent stops"))
    assert len(commands_of(task.id)) > 3
    with cluster.up():
        go.touch()
        state = cluster.finish(task)
    assert (state.status, state.epoch) == ("succeeded", 1)
    assert len(list(cluster.folder.glob("began.*"))) == 3
    nothing_left(cluster, task)


def test_a_broker_whose_step_is_never_started_ends_with_the_task(cluster: Cluster) -> None:
    def crash(plan: StepPlan) -> Step:
        raise Detached("the agent is killed between the two starts")

    cluster.containers.start = crash  # type: ignore[method-assign]
    with cluster.up():
        task = cluster.ranks("true", image=IMAGE)
        until(lambda: len(commands_of(task.id)) > 0, "the broker")
        cluster.client.kill(task, by="the test")
    del cluster.containers.start
    with cluster.up():
        state = cluster.finish(task)
        until(lambda: commands_of(task.id) == [], "the end of the broker")
    assert (state.status, state.epoch) == ("killed", 1)
    nothing_left(cluster, task)


def test_a_step_that_is_over_is_not_judged_otherwise_by_the_next_incarnation(
    cluster: Cluster,
) -> None:
    go = cluster.folder / "go"
    with cluster.up() as agent:
        over = {"run": ["/bin/sh", "-c", "exit 0"], "mpi": {"np": 3, "hosts": 3}}
        waits = f"echo second; until [ -e {go} ]; do sleep 0.1; done"
        task = cluster.submit(over, ["/bin/sh", "-c", waits])
        cluster.until(lambda: b"second" in cluster.log(task))
        agent.interrupt(Detached("the agent stops"))
    with cluster.up():
        go.touch()
        state = cluster.finish(task)
    assert (state.status, state.epoch) == ("succeeded", 1), state.message
    nothing_left(cluster, task)


def test_a_host_that_was_lost_while_no_agent_ran_is_noticed_by_the_next(cluster: Cluster) -> None:
    with cluster.up() as agent:
        task = cluster.ranks(SLEEP, grace=1.0, max_attempts=1)
        ranks = cluster.everywhere(task)
        agent.interrupt(Detached("the agent stops"))
    for pid in cluster.relays("vm2"):
        os.kill(pid, signal.SIGKILL)
    with cluster.up():
        state = cluster.finish(task)
    assert (state.status, state.reason) == ("error", "mpi_host_lost")
    assert "host vm2: " in (state.message or "")
    until(lambda: not any(map(alive, ranks)), "the end of all ranks")
    nothing_left(cluster, task)


def test_preemption_ends_all_ranks(cluster: Cluster) -> None:
    with cluster.up() as agent:
        task = cluster.ranks(SLEEP, grace=1.0)
        cluster.everywhere(task)
        agent.interrupt(Preempted("the machine goes away"))
    assert cluster.client.state(task).status == "queued"
    nothing_left(cluster, task)


def test_a_host_that_goes_away_has_the_task_given_back_with_its_name(cluster: Cluster) -> None:
    with cluster.up():
        task = cluster.ranks(SLEEP, grace=1.0, max_attempts=1)
        cluster.everywhere(task)
        cluster.members["vm3"].departs = {"why": "the cloud takes this machine", "left": 15.0}
        cluster.until(lambda: cluster.client.state(task).attempts[0].reason)
        cluster.members["vm3"].departs = None  # the next attempt may begin at once
        state = cluster.until(
            lambda: s if (s := cluster.client.state(task)).counters.preemptions else None
        )
        assert state.counters.preemptions == 1
        assert state.attempts[0].reason == "preempted"
        assert state.attempts[0].message == "host vm3: the cloud takes this machine"
        assert "vm3" in [name for name, _ in cluster.heads[0].doubted]
        cluster.client.kill(task, by="the test", grace=0.1)
        cluster.finish(task)
    nothing_left(cluster, task)


def test_a_broker_that_is_killed_ends_the_step(cluster: Cluster) -> None:
    with cluster.up():
        task = cluster.ranks(SLEEP, grace=1.0, max_attempts=1)
        cluster.everywhere(task)
        brokers = [pid for pid in commands_of(task.id) if b"cluster.broker" in words_of(pid)]
        (broker,) = brokers
        os.kill(broker, signal.SIGKILL)
        state = cluster.finish(task)
    assert (state.status, state.reason) == ("error", "mpi_host_lost")
    nothing_left(cluster, task)
