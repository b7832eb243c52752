"""`simagent agents`: what the agents of a store show of themselves."""

import json
import time
from pathlib import Path
from typing import Any

import pytest

from fakes.cli import Cli
from fakes.rig import Rig, kill9
from simagent.domain import keys
from simagent.domain.fleet import Carried, Heartbeat
from simagent.engines import open_store
from simagent.worker.drain import DrainFile

SHORT = {"heartbeat_every": 0.3, "agent_ttl": 1.0}


@pytest.fixture
def rig(tmp_path: Path) -> Rig:
    return Rig(tmp_path, **SHORT)


@pytest.fixture
def cli(tmp_path: Path, rig: Rig) -> Cli:
    """Give the command line of the rig's user."""
    cli, config = Cli(tmp_path), rig.config()
    cli.env |= {
        "SIMAGENT_STORE": config.store_url,
        "SIMAGENT_QUEUE": config.queue_url,
        "SIMAGENT_TIMES": json.dumps(SHORT),
    }
    return cli


def listed(cli: Cli, *options: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(cli("agents", "--json", *options).stdout)
    return found


def tasks(rig: Rig) -> list[Carried]:
    """Give what the agents tell that they run."""
    return [task for beat in rig.client.agents.all() for task in beat.tasks]


def place(rig: Rig, **fields: Any) -> None:
    heartbeat = Heartbeat(**{"agent": "old", "incarnation": "i", "group": "default"} | fields)
    open_store(rig.config()).put(keys.agent(heartbeat.agent), heartbeat.model_dump_json().encode())


def test_agents_are_listed_with_what_they_do(rig: Rig, cli: Cli) -> None:
    assert cli("agents").stdout == "no agents\n"
    with rig.agent(slots=2, tags=("zone=a", "gpu")):
        rig.until(lambda: rig.client.agents.all() or None)
        (idle,) = listed(cli)
        assert (idle["state"], idle["slots"], idle["free"], idle["tasks"]) == ("idle", 2, 2, [])
        assert (idle["tags"], idle["silent"]) == (["zone=a", "gpu"], False)
        task = rig.submit("sleep 100")
        rig.until(lambda: [t for t in tasks(rig) if t.status == "running"] or None)
        (busy,) = listed(cli)
        assert (busy["state"], busy["free"]) == ("busy", 1)
        (told,) = busy["tasks"]
        assert (told["project"], told["id"], told["epoch"]) == ("default", task.id, 1)
        shown = cli("agents").stdout
        assert "busy" in shown
        assert "1/2" in shown
        assert f"  default/{task.id}  running, attempt 1, since " in shown
        assert f"held by {busy['agent']}" in cli("show", task.id).stdout
        DrainFile(rig.folder / "state").ask()
        rig.until(lambda: "draining" in [beat.state for beat in rig.client.agents.all()])
        assert listed(cli)[0]["state"] == "draining"
        rig.client.kill(task, by="the test")
        rig.finish(task)
        rig.until(lambda: not rig.client.agents.all())  # it has drained, and ended
    assert listed(cli) == []


def test_a_change_is_shown_long_before_the_next_heartbeat(tmp_path: Path, cli: Cli) -> None:
    rig = Rig(tmp_path, heartbeat_every=48.0, agent_ttl=180.0)
    with rig.agent():
        rig.until(lambda: rig.client.agents.all() or None)
        task = rig.submit("sleep 100")
        rig.until(lambda: tasks(rig) or None, 40.0)
        assert listed(cli)[0]["tasks"]
        rig.client.kill(task, by="the test")


def test_who_died_is_silent_and_can_be_pruned(rig: Rig, cli: Cli) -> None:
    agent = rig.process()
    rig.until(lambda: rig.client.agents.all() or None)
    kill9(agent)
    place(
        rig,
        agent="gone",
        at=1.7e9,
        tasks=(Carried(project="p", id="T", epoch=1, status="running", since=1.7e9),),
    )
    assert [a["agent"] for a in listed(cli, "--all") if a["silent"]] == ["gone"]
    assert "silent since 2023-11-" in cli("agents", "--all").stdout
    assert "gone" not in cli("agents").stdout  # for more than a day
    with rig.agent("other"):
        done = cli("agents", "--prune")
        assert done.stdout.startswith("removed: ")
        assert "gone" in done.stdout
        rig.until(lambda: rig.client.agents.all() or None)
        (left,) = listed(cli, "--all")
    assert left["state"] == "idle"


def test_agents_of_one_group_can_be_listed(rig: Rig, cli: Cli) -> None:
    for name, group in (("b", "small"), ("a", "small"), ("c", "large")):
        place(rig, agent=name, group=group, at=time.time())
    assert [a["agent"] for a in listed(cli)] == ["c", "a", "b"]
    assert [a["agent"] for a in listed(cli, "--group", "small")] == ["a", "b"]
    assert cli("agents", "-g", "none").stdout == "no agents of group none\n"


def test_agents_of_one_group_can_be_pruned(rig: Rig, cli: Cli) -> None:
    for name, group in (("a", "small"), ("b", "large")):
        place(rig, agent=name, group=group, at=1.7e9)
    assert cli("agents", "--prune", "--group", "small").stdout == "removed: a\n"
    assert [a["agent"] for a in listed(cli, "--all")] == ["b"]


def test_what_an_agent_says_cannot_reach_the_terminal(rig: Rig, cli: Cli) -> None:
    place(rig, agent="bad", at=time.time(), machine={"hostname": "\x1b[31mred"}, tags=("\x07",))
    assert "\x1b" not in cli("agents").stdout
    assert "\x07" not in cli("agents").stdout


def test_a_heartbeat_that_cannot_be_read_is_left_out(rig: Rig, cli: Cli) -> None:
    open_store(rig.config()).put(keys.agent("broken"), b"{")
    assert listed(cli) == []
