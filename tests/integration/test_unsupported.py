"""Tasks that agents cannot run, with real agents: left to others, or ended if there are none."""

import json
from pathlib import Path

import pytest

from fakes.cli import Cli
from fakes.rig import Rig, kill9
from simagent.domain import keys
from simagent.domain.fleet import Heartbeat
from simagent.engines import open_store
from simagent.ports.store import NotFoundError

SHORT = {"heartbeat_every": 0.2, "agent_ttl": 1.5, "hide_refused": 0.2}
# Long beside what a busy machine lets an agent's threads wait: the other agent would end its tasks.
PATIENT = SHORT | {"agent_ttl": 4.0}
HUGE = {"resources": {"cpus": 1000}}


def heartbeats(rig: Rig) -> list[Heartbeat]:
    store = open_store(rig.config())
    found = []
    for entry in list(store.scan(keys.AGENTS)):
        try:
            found.append(Heartbeat.model_validate_json(store.get(entry.key).data))
        except NotFoundError:
            continue
    return found


@pytest.fixture
def cli(tmp_path: Path) -> Cli:
    """Give the command line of the rig's user."""
    cli, config = Cli(tmp_path), Rig(tmp_path).config()
    cli.env |= {"SIMAGENT_STORE": config.store_url, "SIMAGENT_QUEUE": config.queue_url}
    return cli


def test_a_task_that_no_agent_can_run_ends(tmp_path: Path, cli: Cli) -> None:
    rig = Rig(tmp_path, **SHORT)
    task = rig.submit("true", **HUGE)
    with rig.agent():
        state = rig.finish(task)
        after = rig.submit("true")
        assert rig.finish(after).status == "succeeded"
    assert (state.status, state.reason, state.epoch) == ("error", "unsupported", 0)
    assert "resources.cpus: 1000 are asked for, this machine has" in state.message
    shown = cli("show", task.id).stdout
    assert (
        f"task {task.id} error: unsupported\n  no agent of group default can run it:\n  " in shown
    )
    assert "waiting:" not in shown


def test_it_waits_for_an_agent_that_may_run_it_and_tells_who_does_not(
    tmp_path: Path, cli: Cli
) -> None:
    rig = Rig(tmp_path, **PATIENT)
    with rig.agent("able"), rig.agent("unable", allow_process=False, agent="unable"):
        rig.until(lambda: len(heartbeats(rig)) == 2)
        wait = f"while [ ! -e '{tmp_path}/go' ]; do sleep 0.05; done"
        long = rig.submit({"run": wait, "shell": True}, time_limit=600)
        rig.until(lambda: rig.running(long))
        waits = rig.submit("true")
        (refused,) = rig.until(lambda: rig.client.refusals(waits) or None)
        assert refused.agent == "unable"
        unable = next(beat for beat in heartbeats(rig) if beat.agent == "unable")
        ttl = rig.config().times.agent_ttl
        per = rig.config().times.heartbeat_every
        rig.until(  # twice the time after which it would end
            lambda: any(
                beat.agent == "unable" and beat.beat > unable.beat + 2 * ttl / per
                for beat in heartbeats(rig)
            ),
            100.0,  # beats of a busy machine are late
        )
        why = "it runs programs of the machine, which is not allowed here"
        assert f"waiting: refused by unable: {why}" in cli("show", waits.id).stdout
        (told,) = json.loads(cli("show", waits.id, "--json").stdout)["refusals"]
        assert told["agent"] == "unable"
        assert rig.client.state(waits).status == "queued"
        (tmp_path / "go").touch()
        assert rig.finish(long).status == "succeeded"
        assert rig.finish(waits).status == "succeeded"


def test_an_agent_shows_that_it_lives_and_that_it_was_drained(tmp_path: Path) -> None:
    rig = Rig(tmp_path, **SHORT)
    with rig.agent(agent="me"):
        first = rig.until(lambda: next(iter(heartbeats(rig)), None))
        assert (first.agent, first.group, first.format) == ("me", "default", 1)
        assert "process" in first.runtimes
        assert {"cpus", "memory_bytes", "hostname"} <= set(first.machine)
        rig.until(lambda: any(beat.beat > first.beat for beat in heartbeats(rig)))
    assert heartbeats(rig) == []


def test_an_agent_that_was_killed_keeps_no_task_waiting_for_ever(tmp_path: Path) -> None:
    rig = Rig(tmp_path, **SHORT)
    process = rig.process("dead")
    rig.until(lambda: heartbeats(rig) or None)
    kill9(process)
    assert len(heartbeats(rig)) == 1
    task = rig.submit("true", **HUGE)
    with rig.agent():
        state = rig.finish(task)
    assert state.reason == "unsupported"
