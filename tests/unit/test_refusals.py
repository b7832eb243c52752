"""Tasks that cannot run here are left to others, and end where no agent that lives can run them."""

from pathlib import Path

import pytest

from fakes.faults import CUT, DROP, LOST_ANSWER, UNAVAILABLE, Fault
from fakes.groups import TIMES, Group
from fakes.store import MemoryStore
from fakes.tasks import place, refusing
from simagent.domain import keys, mutations
from simagent.domain.fleet import Heartbeat, Refused
from simagent.domain.reasons import Reason
from simagent.domain.state import Status
from simagent.ledger import Ledger
from simagent.ports.store import NotFoundError
from simagent.worker.receive import Judge
from simagent.worker.sweep import Sweeper

TTL = TIMES.agent_ttl
NO_DOCKER = "no Docker Engine is set up here: install docker.io"
NO_MPI = "no mpirun was found: install MPICH"
HOUR = 3600.0


@pytest.fixture
def it(tmp_path: Path) -> Group:
    return Group(tmp_path)


# --- Who may run it keeps it waiting ------------------------------------------------------------


def test_a_task_that_another_agent_can_run_is_left_to_it(it: Group) -> None:
    small, big = it.join("small", NO_DOCKER), it.join("big", None)
    task = place(it.ledger, "queued")
    assert it.until_ended(task, small, within=HOUR).status is Status.QUEUED
    big.hear(task)
    assert len(big.started) == 1
    assert it.state(task).status is Status.PREPARING


def test_a_task_that_no_agent_can_run_ends_with_what_each_says(it: Group) -> None:
    members = [it.join("a", NO_DOCKER), it.join("b", NO_MPI), it.join("c", NO_DOCKER)]
    task = place(it.ledger, "queued")
    state = it.until_ended(task, *members, within=TTL + 60)
    assert (state.status, state.outcome, state.reason) == ("error", "error", "unsupported")
    assert state.message.splitlines() == [
        "no agent of group default can run it:",
        f"a, c: {NO_DOCKER}",
        f"b: {NO_MPI}",
    ]
    assert state.epoch == 0
    assert list(it.store.scan("open/")) == []


def test_a_fleet_has_time_to_start(it: Group) -> None:
    first = it.join("first", NO_DOCKER)
    task = place(it.ledger, "queued")
    assert it.until_ended(task, first, within=TTL - 30).status is Status.QUEUED
    it.join("second", None)
    assert it.until_ended(task, first, within=HOUR).status is Status.QUEUED


def test_one_agent_alone_ends_what_it_cannot_run(it: Group) -> None:
    only = it.join("only", NO_MPI)
    task = place(it.ledger, "queued")
    state = it.until_ended(task, only, within=TTL + 60)
    assert state.reason is Reason.UNSUPPORTED
    assert f"only: {NO_MPI}" in state.message


def test_an_agent_that_has_not_been_asked_yet_keeps_it_waiting(it: Group) -> None:
    asked, busy = it.join("asked", NO_DOCKER), it.join("busy", NO_MPI)
    task = place(it.ledger, "queued")
    assert it.until_ended(task, asked, within=HOUR).status is Status.QUEUED
    assert it.refused(task) == [task.refusal("asked")]
    busy.hear(task)
    assert it.until_ended(task, asked, within=60).reason is Reason.UNSUPPORTED


@pytest.mark.parametrize("passing", ["the disk is full", "Docker does not answer"])
def test_what_passes_never_ends_a_task(it: Group, passing: str) -> None:
    members = [it.join("a", NO_DOCKER), it.join("b", passing, lasting=False)]
    task = place(it.ledger, "queued")
    assert it.until_ended(task, *members, within=HOUR).status is Status.QUEUED
    assert it.refused(task) == [task.refusal("a")]


@pytest.mark.parametrize("which", ["state", "spec"])
def test_a_newer_task_never_ends_for_older_agents(it: Group, which: str) -> None:
    old = it.join("old", NO_DOCKER)
    task = place(it.ledger, "queued")
    before = it.store.get(getattr(task, which)).data
    it.store.put(getattr(task, which), b'{"format": 99}')
    for _ in range(20):
        old.hear(task)
        it.pass_(60)
    it.store.put(getattr(task, which), before)
    assert it.state(task).status is Status.QUEUED
    assert it.refused(task) == []


def test_agents_of_other_groups_have_no_say(it: Group) -> None:
    mine, other = it.join("mine", NO_DOCKER), it.join("other", None)
    other.start(None, group="gpu")
    task = place(it.ledger, "queued")
    assert it.until_ended(task, mine, within=TTL + 60).reason is Reason.UNSUPPORTED


def test_an_agent_that_changed_its_group_is_asked(it: Group) -> None:
    mine, other = it.join("mine", NO_DOCKER), it.join("other", None)
    other.start(None, group="gpu")
    task = place(it.ledger, "queued")
    it.until_ended(task, mine, within=TTL - 60)
    other.start(None)
    assert it.until_ended(task, mine, within=HOUR).status is Status.QUEUED


# --- Who lives ----------------------------------------------------------------------------------


def test_a_dead_agent_does_not_keep_it_waiting_for_ever(it: Group) -> None:
    asker, dead = it.join("asker", NO_DOCKER), it.join("dead", None)
    it.pass_(120)
    dead.alive = False
    task = place(it.ledger, "queued")
    it.until_ended(task, asker, within=TTL - 30)
    assert it.state(task).status is Status.QUEUED
    assert it.until_ended(task, asker, within=150).reason is Reason.UNSUPPORTED


def test_an_agent_that_was_drained_does_not_keep_it_waiting(it: Group) -> None:
    asker, other = it.join("asker", NO_DOCKER), it.join("other", None)
    task = place(it.ledger, "queued")
    it.until_ended(task, asker, within=TTL)
    other.alive = False
    other.heart.withdraw()
    asker.hear(task)
    assert it.state(task).reason is Reason.UNSUPPORTED
    assert "other" not in it.state(task).message


def test_what_an_earlier_incarnation_said_does_not_count(it: Group) -> None:
    a, b = it.join("a", NO_DOCKER), it.join("b", NO_MPI)
    task = place(it.ledger, "queued")
    b.hear(task)
    b.start(None)  # with mpirun
    assert it.until_ended(task, a, within=HOUR).status is Status.QUEUED
    b.start(NO_MPI)
    b.hear(task)
    assert it.until_ended(task, a, within=60).reason is Reason.UNSUPPORTED


def test_who_restarted_since_it_was_looked_at_is_asked_again(it: Group) -> None:
    a, b, c = it.join("a", NO_DOCKER), it.join("b", NO_MPI), it.join("c", NO_MPI)
    task = place(it.ledger, "queued")
    b.hear(task)
    it.until_ended(task, a, within=TTL + 60)  # c has not said anything
    b.start(None)
    c.hear(task)
    assert it.until_ended(task, a, within=HOUR).status is Status.QUEUED


def test_nobody_is_taken_for_dead_after_a_sleep_of_the_observer(it: Group) -> None:
    asker, other = it.join("asker", NO_DOCKER), it.join("other", None)
    task = place(it.ledger, "queued")
    it.until_ended(task, asker, within=TTL)
    for member in (asker, other):  # both are suspended, or cut off
        member.alive = False
    it.pass_(HOUR)
    asker.alive = True
    asker.hear(task)
    assert it.state(task).status is Status.QUEUED


def test_nobody_is_taken_for_dead_by_an_observer_whose_store_fails(it: Group) -> None:
    asker, other = it.join("asker", NO_DOCKER), it.join("other", None)
    other.alive = False
    task = place(it.ledger, "queued")
    asker.hear(task)
    for _ in range(20):
        it.pass_(60)
        asker.faults.plan = lambda call, key: UNAVAILABLE if key == keys.AGENTS else None
        asker.refusals.watch()
        it.pass_(30)
        asker.faults.plan = lambda call, key: None
        asker.hear(task)
    assert it.state(task).status is Status.QUEUED


def test_a_heartbeat_that_cannot_be_read_may_be_of_any_group_until_it_stands_still(
    it: Group,
) -> None:
    asker = it.join("asker", NO_DOCKER)
    it.store.put(keys.agent("strange"), b"{}")
    task = place(it.ledger, "queued")
    assert it.until_ended(task, asker, within=TTL - 30).status is Status.QUEUED
    for _ in range(20):
        it.store.put(keys.agent("strange"), b"{}")
        it.pass_(60)
        asker.hear(task)
    assert it.state(task).status is Status.QUEUED
    assert it.until_ended(task, asker, within=TTL + 90).reason is Reason.UNSUPPORTED


# --- What is written, and when it is not --------------------------------------------------------


def test_a_refusal_is_written_once_for_each_incarnation(it: Group) -> None:
    agent, _ = it.join("agent", NO_DOCKER), it.join("other", None)
    task = place(it.ledger, "queued")
    it.until_ended(task, agent, within=HOUR)
    writes = [key for call, key in agent.faults.calls if call == "put" and "refusals" in key]
    assert writes == [task.refusal("agent")]
    agent.start(NO_MPI)
    agent.hear(task)
    refused = Refused.model_validate_json(it.store.get(task.refusal("agent")).data)
    assert (refused.agent, refused.incarnation, refused.why) == ("agent", "agent.2", NO_MPI)


def test_hearing_a_task_that_can_run_costs_no_call_more(it: Group) -> None:
    agent = it.join("agent", None)
    task = place(it.ledger, "queued")
    agent.faults.calls.clear()
    agent.hear(task)
    assert len(agent.started) == 1
    calls = [("get", task.state), ("get", task.spec), ("get", task.state), ("put", task.state)]
    assert agent.faults.calls == calls


def test_an_agent_that_refuses_nothing_looks_at_nobody(it: Group) -> None:
    agent = it.join("agent", NO_DOCKER)
    agent.faults.calls.clear()
    it.pass_(HOUR)
    assert set(agent.faults.calls) == {("put", keys.agent("agent"))}


@pytest.mark.parametrize("fault", [DROP, LOST_ANSWER, UNAVAILABLE, CUT])
@pytest.mark.parametrize("failing", ["refusals/", "agents/"])
def test_store_faults_put_the_end_off(it: Group, failing: str, fault: Fault) -> None:
    a, b = it.join("a", NO_DOCKER), it.join("b", NO_MPI)
    b.hear(task := place(it.ledger, "queued"))
    a.faults.plan = lambda call, key: fault if failing in key else None
    assert it.until_ended(task, a, within=HOUR).status is Status.QUEUED
    a.faults.plan = lambda call, key: None
    assert it.until_ended(task, a, within=TTL + 60).reason is Reason.UNSUPPORTED


def test_heartbeats_that_fail_do_no_harm(it: Group) -> None:
    agent = it.join("agent", None)
    agent.faults.plan = lambda call, key: UNAVAILABLE if key == keys.agent("agent") else None
    agent.heart.beat()
    agent.heart.withdraw()
    agent.faults.plan = lambda call, key: None
    agent.heart.beat()
    heartbeat = Heartbeat.model_validate_json(it.store.get(keys.agent("agent")).data)
    assert (heartbeat.agent, heartbeat.incarnation, heartbeat.group) == (
        "agent",
        "agent.1",
        "default",
    )
    assert heartbeat.machine == {"cpus": 2, "hostname": "h"}
    assert heartbeat.beat == 3
    agent.heart.withdraw()
    with pytest.raises(NotFoundError):
        it.store.get(keys.agent("agent"))


# --- The end is written on what was judged ------------------------------------------------------


@pytest.mark.parametrize("what", ["claimed", "killed", "given back"])
def test_a_task_that_moves_on_meanwhile_is_left_alone(it: Group, what: str) -> None:
    agent, other = it.join("agent", NO_DOCKER), it.join("other", None)
    task = place(it.ledger, "queued")
    it.until_ended(task, agent, within=TTL)
    other.alive = False
    other.heart.withdraw()

    def move(call: str, key: str) -> None:
        if (call, key) != ("scan", keys.AGENTS) or it.state(task).status is not Status.QUEUED:
            return
        if what == "claimed":
            other.hear(task)
        elif what == "killed":
            it.client.kill(task, by="somebody")
        else:
            it.ledger.change(task, lambda s: s.with_(epoch=s.epoch + 1))

    agent.faults.before = move
    agent.hear(task)
    expected = {"claimed": "preparing", "killed": "killed", "given back": "queued"}
    assert it.state(task).status == expected[what]


def test_a_task_whose_dead_agent_alone_could_run_it_ends(it: Group) -> None:
    agent = it.join("agent", NO_DOCKER)
    task = place(it.ledger, "running")  # by one that is no more
    for _ in range(40):
        agent.hear(task)
        it.clock.advance(15.0)
        agent.refusals.watch()
    state = it.state(task)
    assert (state.status, state.reason, state.lease) == ("error", "unsupported", None)


def test_a_kill_goes_before() -> None:
    ledger = Ledger(MemoryStore())
    task = place(ledger, "running")
    judged = ledger.state(task).judged
    ledger.change(task, lambda s: mutations.kill(s, by="u", at=1.0, grace=None))
    with pytest.raises(mutations.SupersededError):
        ledger.change(task, lambda s: mutations.give_up(s, judged=judged, message="m", at=1.0))


# --- The sweep, and what people see -------------------------------------------------------------


def test_agents_refuse_and_end_tasks_in_their_sweeps_too(it: Group) -> None:
    a, b = it.join("a", NO_DOCKER), it.join("b", NO_MPI)
    task = place(it.ledger, "queued")
    for _ in range(40):
        it.pass_(60)
        b.sweeper.sweep()
    assert it.refused(task) == [task.refusal("b")]
    assert it.state(task).status is Status.QUEUED
    for _ in range(40):
        it.pass_(60)
        a.sweeper.sweep()
    assert it.state(task).reason is Reason.UNSUPPORTED
    assert list(it.store.scan("open/")) == []


def test_a_sweep_by_hand_ends_nothing_for_this_reason(it: Group) -> None:
    a = it.join("a", NO_DOCKER)
    task = place(it.ledger, "queued", spec={"priority": 3})
    a.hear(task)
    judge = Judge(it.ledger, it.clock, TIMES, can_run=refusing(None))
    sweeper = Sweeper(it.ledger, it.queue, it.clock, TIMES, judge, group="default")
    for _ in range(20):
        sweeper.walk()
        it.pass_(60)
    assert it.state(task).status is Status.QUEUED


def test_the_client_tells_who_refuses(it: Group) -> None:
    a, b = it.join("a", NO_DOCKER), it.join("b", NO_MPI)
    c = it.join("c", NO_MPI)
    task = place(it.ledger, "queued")
    for member in (a, b, c):
        member.hear(task)
    b.start(None)
    c.heart.withdraw()
    it.store.put(task.refusal("broken"), b"{")
    assert [(r.agent, r.why) for r in it.client.refusals(task)] == [("a", NO_DOCKER)]


def test_refusals_go_with_their_task(it: Group) -> None:
    a = it.join("a", NO_DOCKER)
    task = place(it.ledger, "queued")
    it.until_ended(task, a, within=TTL + 60)
    it.client.delete(task)
    assert [entry.key for entry in it.store.scan(task.root)] == [task.state]
