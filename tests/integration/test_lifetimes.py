"""Agents that end by themselves: real processes, with a systemctl of ours."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fakes.rig import Rig
from simagent.domain.state import Status


class Aged:
    """An agent as a process, with settings of its own and its log in a file."""

    def __init__(self, rig: Rig, folder: Path, **settings: object) -> None:
        self._log = folder / "agent.log"
        self.told = folder / "told"
        programs = folder / "bin"
        programs.mkdir()
        systemctl = programs / "systemctl"
        # Fails as often as there are files to take away.
        systemctl.write_text(
            f'#!/bin/sh\necho "$*" >>"{self.told}"\n'
            f'rm "{folder}/fail" 2>/dev/null && echo "Failed to talk to init" && exit 1\nexit 0\n'
        )
        systemctl.chmod(0o755)
        config = rig.config()
        environment = os.environ | {
            "SIMAGENT_STATE_DIR": str(config.state_dir),
            "SIMAGENT_QUEUE": config.queue_url,
            "SIMAGENT_STORE": config.store_url,
            "SIMAGENT_TIMES": config.times.model_dump_json(),
            "PATH": f"{programs}:{os.environ['PATH']}",
            **{f"SIMAGENT_{name.upper()}": str(value) for name, value in settings.items()},
        }
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "simagent", "agent"], env=environment, stderr=log
            )

    def events(self, name: str) -> list[dict[str, Any]]:
        whole = self._log.read_text().split("\n")[:-1]  # the last one may be in the writing
        lines = [json.loads(line) for line in whole]
        return [line for line in lines if line["event"] == name]


@pytest.fixture
def aged(tmp_path: Path) -> Any:
    started: list[Aged] = []

    def start(rig: Rig, **settings: object) -> Aged:
        started.append(Aged(rig, tmp_path, **settings))
        return started[-1]

    yield start
    for agent in started:
        agent.process.kill()
        agent.process.wait()


Start = Callable[..., Aged]


@pytest.fixture
def rig(tmp_path: Path) -> Rig:
    return Rig(tmp_path)


def test_an_idle_agent_exits_after_its_tasks(rig: Rig, aged: Start) -> None:
    task = rig.submit("sleep 5")
    agent = aged(rig, idle_timeout="4s")
    assert agent.process.wait(60) == 0
    assert rig.client.state(task).status is Status.SUCCEEDED
    assert not agent.told.exists()
    (over,) = agent.events("life_over")
    assert (over["why"], over["action"]) == ("nothing to do for 4 s", "exit")


def test_an_idle_machine_is_powered_off(rig: Rig, aged: Start) -> None:
    agent = aged(rig, idle_timeout=1, idle_action="poweroff")
    assert agent.process.wait(60) == 0
    assert agent.told.read_text() == "poweroff\n"


def test_while_the_machine_does_not_power_off_tasks_are_taken(
    rig: Rig, aged: Start, tmp_path: Path
) -> None:
    (tmp_path / "fail").touch()
    agent = aged(rig, idle_timeout=1, idle_action="poweroff")
    (failed,) = rig.until(lambda: agent.events("end_failed") or None)
    assert failed["error"] == "systemctl poweroff ended with 1: Failed to talk to init"
    assert failed["again_in"] == 30
    task = rig.submit("true")
    assert rig.finish(task).status is Status.SUCCEEDED
    # It was busy since then: so it is tried again when it was idle for as long again.
    assert agent.process.wait(60) == 0
    assert agent.told.read_text() == "poweroff\npoweroff\n"


def test_a_command_is_run_by_its_arguments(rig: Rig, aged: Start, tmp_path: Path) -> None:
    command = json.dumps(["touch", str(tmp_path / "$HOME; x")])
    agent = aged(rig, idle_timeout=1, idle_action="command", idle_command=command)
    assert agent.process.wait(60) == 0
    assert (tmp_path / "$HOME; x").exists()


def test_after_its_lifetime_an_agent_takes_nothing_more(rig: Rig, aged: Start) -> None:
    go = rig.folder / "go"
    first = rig.submit({"run": f"until [ -e {go} ]; do sleep 0.05; done", "shell": True})
    agent = aged(rig, max_lifetime=6)
    rig.until(lambda: agent.events("life_over") or None)
    second = rig.submit("true")
    go.touch()
    assert agent.process.wait(60) == 0
    assert rig.client.state(first).status is Status.SUCCEEDED
    assert rig.client.state(second).status is Status.QUEUED


def test_after_the_grace_what_runs_is_given_back(rig: Rig, aged: Start) -> None:
    task = rig.submit("sleep 60")
    agent = aged(rig, max_lifetime=6, max_lifetime_grace=1, idle_action="exit")
    assert agent.process.wait(60) == 0
    state = rig.client.state(task)
    assert (state.status, state.counters.preemptions) == (Status.QUEUED, 1)


def test_a_machine_that_is_older_takes_nothing_and_goes(rig: Rig, aged: Start) -> None:
    task = rig.submit("true")
    agent = aged(rig, max_lifetime=1, idle_action="poweroff")
    assert agent.process.wait(60) == 0
    assert agent.told.read_text() == "poweroff\n"
    assert rig.client.state(task).status is Status.QUEUED


def test_only_aws_terminates(rig: Rig, aged: Start) -> None:
    agent = aged(rig, idle_timeout=1, idle_action="terminate", cloud="none")
    assert agent.process.wait(60) == 2
