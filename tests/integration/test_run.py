"""`simagent run` where the machine has something else to do, or cannot run the task."""

import json
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import pytest

from fakes.cli import HELLO, Cli

WAITS = "commands: [{run: 'echo ready; until [ -e %s ]; do sleep 0.05; done', shell: true}]\n"


@pytest.fixture
def cli(tmp_path: Path) -> Iterator[Cli]:
    cli = Cli(tmp_path)
    yield cli
    (cli.folder / "go").touch()  # whatever failed: nothing waits on


def task_file(cli: Cli, text: str, name: str = "task.yaml") -> str:
    (cli.folder / name).write_text(text)
    return name


def waiting(cli: Cli) -> str:
    return task_file(cli, WAITS % (cli.folder / "go"), "waiting.yaml")


def line_of(pipe: IO[str] | None, words: str) -> str:
    """Read up to the line that has these words in it."""
    assert pipe is not None
    for line in pipe:
        if words in line:
            return line
    raise AssertionError(f"{words!r} was not said")


def stopped(agent: subprocess.Popen[str]) -> None:
    agent.send_signal(signal.SIGTERM)
    agent.communicate(timeout=60)


def test_a_second_run_waits_for_the_first_and_says_so(cli: Cli) -> None:
    first = cli.start("run", waiting(cli))
    line_of(first.stdout, "ready")
    second = cli.start("run", task_file(cli, HELLO))
    assert f"a `simagent run` (pid {first.pid}) has " in line_of(second.stderr, "waiting")
    (cli.folder / "go").touch()
    assert first.communicate(timeout=60)[0] is not None
    assert second.communicate(timeout=60)[0].startswith("hello\n")
    assert (first.returncode, second.returncode) == (0, 0)


def test_ctrl_c_while_a_run_waits_for_another_leaves_nothing(cli: Cli) -> None:
    first = cli.start("run", waiting(cli))
    line_of(first.stdout, "ready")
    second = cli.start("run", task_file(cli, HELLO))
    line_of(second.stderr, "waiting")
    second.send_signal(signal.SIGINT)
    second.communicate(timeout=60)
    assert second.returncode == 130
    (cli.folder / "go").touch()
    first.communicate(timeout=60)
    assert len(json.loads(cli("list", "--json").stdout)) == 1


@pytest.mark.parametrize("what", ["group", "store"])
def test_an_agent_that_takes_other_tasks_is_no_one_to_leave_it_to(cli: Cli, what: str) -> None:
    agent = cli.start("agent")
    line_of(agent.stderr, "agent_started")
    where = ["--store", f"file://{cli.folder}/other"] if what == "store" else []
    spec = HELLO + ("group: big\n" if what == "group" else "")
    said = cli("run", task_file(cli, spec), *where, code=1).stderr
    assert f"an agent (pid {agent.pid}) runs on {cli.state}" in said
    assert "give this run another --state-dir" in said
    assert json.loads(cli("list", *where, "--json").stdout) == []
    stopped(agent)


def test_ctrl_c_kills_also_what_was_left_to_an_agent(cli: Cli) -> None:
    agent = cli.start("agent")
    line_of(agent.stderr, "agent_started")
    run = cli.start("run", waiting(cli))
    line_of(run.stdout, "ready")
    run.send_signal(signal.SIGINT)
    out, err = run.communicate(timeout=60)
    assert run.returncode == 1, out + err
    assert "killed: killed" in out
    stopped(agent)


def test_a_drain_leaves_a_run_alone_and_says_so(cli: Cli) -> None:
    run = cli.start("run", waiting(cli))
    line_of(run.stdout, "ready")
    assert f"a `simagent run` (pid {run.pid}) has " in cli("drain", "--wait", code=1).stderr
    (cli.folder / "go").touch()
    run.communicate(timeout=60)
    assert run.returncode == 0


@pytest.mark.parametrize(
    ("spec", "variables", "words"),
    [
        ("commands: [{run: hostname, mpi: {np: 2}}]", {"MPIRUN": "no-such-mpirun"}, "no mpirun"),
        (HELLO, {"ALLOW_PROCESS": "false"}, "set allow_process"),
        ("commands: [hostname]\nresources: {cpus: 10000}", {}, "resources.cpus: 10000"),
        ("commands: [hostname]\nresources: {disk: 900TB}", {}, "resources.disk: "),
    ],
)
def test_what_this_machine_cannot_run_is_refused_before_anything_is_written(
    cli: Cli, spec: str, variables: dict[str, str], words: str
) -> None:
    cli.env |= {f"SIMAGENT_{name}": value for name, value in variables.items()}
    done = cli("run", "-", stdin=spec, code=2)
    (line,) = done.stderr.splitlines()
    assert line.startswith("simagent: this machine cannot run the task: ")
    assert words in line
    assert not cli.state.exists()


def test_a_run_says_why_its_cluster_does_not_take_the_task_yet(cli: Cli) -> None:
    cli.env |= {"SIMAGENT_CLUSTER": "blue", "SIMAGENT_MPI": '{"interface": "lo"}'}
    run = cli.start("run", task_file(cli, "commands: [{run: 'true', mpi: {np: 2, hosts: 2}}]\n"))
    said = line_of(run.stderr, "mpi.shared_dir is not set")
    assert said.startswith("simagent: the task waits: commands[0].mpi: ")
    run.send_signal(signal.SIGINT)
    run.communicate(timeout=60)


def test_a_run_does_not_wait_for_what_an_earlier_agent_left(cli: Cli) -> None:
    left = cli("submit", waiting(cli)).stdout.strip()
    agent, logs = cli.start("agent"), cli.start("logs", "-f", left)
    line_of(logs.stdout, "ready")
    stopped(agent)
    done = cli("run", task_file(cli, HELLO))
    assert done.stdout.startswith("hello\n")
    assert f"task {left}, left by an earlier agent, is finished beside this one" in done.stderr
    assert f"task {left} runs on" in done.stderr
    assert cli.shown(left)["status"] == "running"
    (cli.folder / "go").touch()
    cli("agent", "--until-empty")
    assert (cli.shown(left)["status"], cli.shown(left)["epoch"]) == ("succeeded", 1)
    logs.communicate(timeout=60)
