"""The command as users and scripts run it: a process, with a state folder of its own."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from fakes.cli import COMMAND, HELLO, Cli
from simagent import __version__


@pytest.fixture
def cli(tmp_path: Path) -> Cli:
    return Cli(tmp_path)


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> tuple[Cli, str]:
    """A command line whose one task has succeeded."""
    cli = Cli(tmp_path_factory.mktemp("ran"))
    task = cli.submit(HELLO)
    cli("agent", "--until-empty")
    return cli, task


def test_version_and_help(cli: Cli) -> None:
    assert cli("--version").stdout == f"simagent {__version__}\n"
    assert "Submit a task, run it here" in cli("--help").stdout
    assert "--output-dir" in cli("run", "--help").stdout
    assert not cli.state.exists()


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys; from simagent.cli import commands; "
        "heavy = {'pydantic', 'structlog', 'psutil', 'rich', 'yaml', 'urllib3', 'isal'}; "
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


@pytest.mark.parametrize(
    ("spec", "field"),
    [
        ("comands: [true]", "comands: unknown field: did you mean commands?"),
        ("commands: ['']", "commands[0]: the command is empty"),
        ("commands: ['echo \"a']", "commands[0]: cannot split"),
        ("commands: [{run: a, mpi: {np: 0}}]", "commands[0].mpi.np: has to be at least 1"),
        ("commands: [{run: a, mpi: {np: 100000}}]", "commands[0].mpi.np: has to be at most"),
        ("commands: [a]\ninputs: [{source: a, destination: ../b}]", "inputs[0].destination:"),
        ("commands: [a]\ninputs: [nowhere]", "inputs[0].source:"),
        ("commands: [a]\nimage: --privileged -v /:/host x", "image: "),
        ("commands: [a]\npriority: 3", "priority: unsupported"),
        ("commands: [a", "not valid YAML"),
    ],
)
@pytest.mark.parametrize("command", ["run", "submit"])
def test_a_bad_task_is_refused_in_one_line_and_nothing_is_written(
    cli: Cli, command: str, spec: str, field: str
) -> None:
    done = cli(command, "-", stdin=spec, code=2)
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.startswith("simagent: ")
    assert field in line
    assert not cli.state.exists()


@pytest.mark.parametrize(
    ("args", "line"),
    [
        (["list", "--store", "ftp://x/y"], "store: 'ftp://x/y' is not supported: use file:///DIR"),
        (["--store", "ftp://x/y", "list"], "store: 'ftp://x/y' is not supported: use file:///DIR"),
        (["list", "--queue", "sqlite:x"], "queue: 'sqlite:x' has no absolute path"),
        (["list", "--config", "none.toml"], "config: none.toml does not exist"),
        (["list", "--status", "runing"], "--status: 'runing' is no status: did you mean running?"),
        (["list", "--tag", "kind"], "--tag: 'kind' has no value"),
        (["show", "../x"], "'../x' is no task id"),
        (["submit", "-", "--id", "a/b"], "'a/b' is no task id"),
        (["kill", "x", "--grace", "soon"], "--grace: cannot read 'soon'"),
        (["prune", "--older-than", "30d"], "--yes: nobody is here to be asked"),
    ],
)
def test_a_bad_option_is_refused_in_one_line(cli: Cli, args: list[str], line: str) -> None:
    done = cli(*args, stdin="commands: [a]", code=2)
    (found,) = done.stderr.splitlines()
    assert line in found
    assert not cli.state.exists()


def test_a_bad_setting_is_named_wherever_it_comes_from(cli: Cli) -> None:
    cli.env["SIMAGENT_SAMPLE_EVERY"] = "0"
    (cli.folder / "agent.toml").write_text("grup = 'x'\n")
    lines = cli("list", "--config", "agent.toml", code=2).stderr.splitlines()
    assert any(line.startswith("simagent: sample_every: ") for line in lines)
    assert any(line.startswith("simagent: grup: ") for line in lines)


def test_an_option_after_the_command_outweighs_the_one_before_it(cli: Cli) -> None:
    task = cli.submit(HELLO, "--store", f"file://{cli.folder}/b")
    before = ("--store", f"file://{cli.folder}/a")
    after = ("--store", f"file://{cli.folder}/b")
    assert task in cli(*before, "list", *after).stdout
    assert task not in cli(*before, "list").stdout


def test_an_unknown_task_is_named(cli: Cli) -> None:
    assert "no task nosuch in project default" in cli("show", "nosuch", code=1).stderr


def test_a_task_is_run_by_the_agent_and_shown(ran: tuple[Cli, str]) -> None:
    cli, task = ran
    assert cli("wait", task).stdout == f"{task} succeeded\n"
    shown = cli.shown(task)
    assert (shown["id"], shown["status"], shown["reason"]) == (task, "succeeded", None)
    assert shown["epoch"] == len(shown["attempts"]) == 1
    first, second = shown["steps"]
    assert first["argv"] == ["echo", "hello"]
    assert (first["exit_code"], first["signal"]) == (0, None)
    assert second["seconds"] > 0
    assert "queue_wait" in shown["timings"]
    assert shown["outputs"]["files"] > 0
    text = cli("show", task).stdout
    assert "(hello) succeeded" in text
    assert "queue_wait" in text


def test_tasks_are_listed_and_filtered(ran: tuple[Cli, str]) -> None:
    cli, task = ran
    for args in ([], ["--status", "succeeded"], ["--name", "hel*"], ["--tag", "kind=demo"]):
        (row,) = json.loads(cli("list", *args, "--json").stdout)
        assert row["id"] == task
        assert task in cli("list", *args).stdout
    for args in (["--status", "failed"], ["--name", "hel"], ["--tag", "kind=x"]):
        assert json.loads(cli("list", *args, "--json").stdout) == []


def test_logs_are_printed_as_they_are(ran: tuple[Cli, str]) -> None:
    cli, task = ran
    assert cli("logs", task).stdout == "hello\n"
    assert cli("logs", "-f", task).stdout == "hello\n"
    assert cli("logs", task, "--stderr").stdout == ""


def test_outputs_are_downloaded(ran: tuple[Cli, str]) -> None:
    cli, task = ran
    done = cli("download", task, "*.txt", "-o", "got")
    assert str(Path("got") / "made.txt") in done.stdout
    assert (cli.folder / "got" / "made.txt").read_text() == ""


def test_a_pipe_that_closes_early_is_no_crash(ran: tuple[Cli, str]) -> None:
    cli, task = ran
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(
        [COMMAND, "show", task, "--json"],
        env=cli.env,
        stdout=writing,
        stderr=subprocess.PIPE,
        timeout=60,
        check=False,
    )
    os.close(writing)
    assert (done.returncode, done.stderr) == (1, b"")


def test_deleted_is_gone(cli: Cli) -> None:
    task = cli.submit(HELLO)
    assert "kill it first" in cli("delete", task, code=1).stderr
    cli("kill", task)
    cli("delete", task)
    assert task not in cli("list").stdout
    assert cli.shown(task)["status"] == "deleted"


def test_old_tasks_are_pruned(cli: Cli) -> None:
    task = cli.submit(HELLO)
    cli("kill", task)
    assert cli("prune", "--older-than", "1d", "--yes").stdout == ""
    assert cli("prune", "--older-than", "0", "--yes").stdout == f"{task} deleted\n"


def test_a_queued_task_is_killed_at_once(cli: Cli) -> None:
    task = cli.submit(HELLO)
    assert cli("kill", task).stdout == f"{task} killed\n"
    assert "had ended before" in cli("kill", task).stdout
    assert cli("wait", task, code=1).stdout == f"{task} killed killed\n"
    (waited,) = json.loads(cli("wait", task, "--json", code=1).stdout)
    assert waited["reason"] == "killed"


def test_a_second_wish_to_kill_is_said_to_change_nothing(cli: Cli) -> None:
    stubborn = f"trap '' TERM; echo ready; until [ -e {cli.folder}/enough ]; do sleep 0.05; done"
    task = cli.submit(json.dumps({"commands": [{"run": stubborn, "shell": True}]}))
    agent, logs = cli.start("agent"), cli.start("logs", "-f", task)
    assert logs.stdout is not None
    assert logs.stdout.readline() == "ready\n"
    assert cli("kill", task, "--grace", "100").stdout == f"{task} is being ended\n"
    said = cli("kill", task, "--grace", "0").stdout
    assert "is being ended already" in said
    assert "with 100 s of grace, and that stands" in said
    (cli.folder / "enough").touch()
    logs.communicate(timeout=60)
    agent.send_signal(signal.SIGTERM)
    agent.communicate(timeout=60)
    assert cli.shown(task)["status"] == "killed"


def test_a_retry_is_a_new_task(cli: Cli) -> None:
    task = cli.submit(HELLO)
    assert "has not ended" in cli("retry", task, code=1).stderr
    cli("kill", task)
    again = cli("retry", task).stdout.strip()
    cli("agent", "--until-empty")
    shown = cli.shown(again)
    assert (shown["retry_of"], shown["status"]) == (task, "succeeded")


def test_an_id_is_taken_once(cli: Cli) -> None:
    assert cli.submit(HELLO, "--id", "mine") == "mine"
    assert cli.submit(HELLO, "--id", "mine") == "mine"
    done = cli("submit", "-", "--id", "mine", stdin="commands: [other]", code=2)
    assert "another spec" in done.stderr


def test_run_shows_the_log_the_summary_and_the_outputs(cli: Cli) -> None:
    (cli.folder / "in.txt").write_text("an input\n")
    (cli.folder / "task.yaml").write_text(
        "inputs: [in.txt]\n"
        "commands: [cat in.txt, {run: 'echo out > out.txt; echo oops >&2', shell: true}]\n"
    )
    done = cli("run", "task.yaml", "-o", "got")
    assert done.stdout.startswith("an input\n")
    assert "succeeded" in done.stdout
    assert "got/out.txt" in done.stdout
    assert "oops" in done.stderr
    assert (cli.folder / "got" / "out.txt").read_text() == "out\n"
    assert (cli.folder / "got" / "stdout.txt").read_text() == "an input\n"
    for line in (cli.state / "agent.log").read_text().splitlines():
        assert "event" in json.loads(line)


def test_quiet_is_the_simulation_alone(cli: Cli) -> None:
    done = cli("run", "-", "--quiet", stdin=HELLO)
    assert (done.stdout, done.stderr) == ("hello\n", "")


def test_a_command_that_does_not_exist_is_named(cli: Cli) -> None:
    done = cli("run", "-", stdin="commands: ['echo a > b', no-such-program]", code=1)
    (row,) = json.loads(cli("list", "--json").stdout)
    assert (row["status"], row["reason"]) == ("failed", "command_not_found")
    assert "no-such-program" in row["message"]
    assert "no-such-program" in done.stdout
    assert row["outputs"]["files"] > 0


def test_a_task_runs_with_a_state_folder_that_is_named_from_here(cli: Cli) -> None:
    cli("run", "-", "--state-dir", "here", "--quiet", stdin=HELLO)
    assert (cli.folder / "here" / "store").is_dir()


def test_run_fails_with_the_simulation(cli: Cli) -> None:
    spec = "commands: [{run: 'echo why >&2; exit 3', shell: true}]"
    done = cli("run", "-", stdin=spec, code=1)
    assert "failed: exit_code" in done.stdout
    assert "why" in done.stdout
    (row,) = json.loads(cli("list", "--json").stdout)
    assert row["steps"][0]["exit_code"] == 3


def test_ctrl_c_kills_the_task_and_keeps_its_outputs(cli: Cli) -> None:
    (cli.folder / "task.yaml").write_text(
        "commands: [{run: 'echo begun > a.txt; echo ready; exec sleep 600', shell: true}]\n"
    )
    process = cli.start("run", "task.yaml", "-o", "got")
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 1, out + err
    assert "killed: killed" in out
    assert "Ctrl-C again" in err
    assert (cli.folder / "got" / "a.txt").read_text() == "begun\n"


def test_where_an_agent_runs_already_the_task_is_left_to_it(cli: Cli) -> None:
    agent = cli.start("agent")
    try:
        assert agent.stderr is not None
        assert "agent_started" in agent.stderr.readline()
        assert "already running" in cli("agent", code=1).stderr
        done = cli("run", "-", stdin=HELLO)
        assert f"(pid {agent.pid})" in done.stderr
        assert done.stdout.startswith("hello\n")
    finally:
        agent.send_signal(signal.SIGTERM)
        agent.communicate(timeout=60)
    assert agent.returncode == 0


def test_an_agent_in_the_foreground_finishes_what_it_runs_on_ctrl_c(cli: Cli) -> None:
    os.mkfifo(cli.folder / "go")
    task = cli.submit(f"commands: [echo ready, cat {cli.folder / 'go'}]\n")
    agent = cli.start("agent")
    logs = cli.start("logs", "-f", task)
    assert logs.stdout is not None
    assert logs.stdout.readline() == "ready\n"
    agent.send_signal(signal.SIGINT)
    with (cli.folder / "go").open("w") as pipe:
        pipe.write("done\n")
    agent.communicate(timeout=60)
    assert agent.returncode == 0
    assert logs.communicate(timeout=60)[0] == "done\n"
    assert cli.shown(task)["status"] == "succeeded"


def test_submit_can_follow(cli: Cli) -> None:
    agent = cli.start("agent")
    try:
        done = cli("submit", "-", "--follow", stdin=HELLO)
        assert done.stdout == "hello\n"
        assert "succeeded" in done.stderr
    finally:
        agent.send_signal(signal.SIGTERM)
        agent.communicate(timeout=60)


def test_the_sweep_counts_open_tasks(cli: Cli) -> None:
    cli.submit(HELLO)
    swept = json.loads(cli("sweep", "--json").stdout)
    assert (swept["seen"], swept["held"]) == (1, 0)


def test_the_doctor_tries_what_it_names(cli: Cli) -> None:
    found = json.loads(cli("doctor", "--json").stdout)["checks"]
    verdicts = {check["name"]: check["verdict"] for check in found}
    assert verdicts["store"] == verdicts["queue"] == verdicts["state folder"] == "ok"
    blocked = cli.folder / "file"
    blocked.touch()
    done = cli("doctor", "--store", f"file://{blocked}/store", code=1)
    assert "missing  store" in done.stdout


def test_the_doctor_tells_that_too_little_is_free(cli: Cli) -> None:
    cli.env["SIMAGENT_MIN_FREE"] = "1000 TB"
    (line,) = [line for line in cli("doctor", code=1).stdout.splitlines() if "  disk " in line]
    assert line.startswith("missing")
    assert line.endswith("less than min_free (1000.0 TB): no task is taken")
    (line,) = cli("run", "-", stdin="commands: ['true']", code=2).stderr.splitlines()
    assert line.startswith("simagent: this machine cannot run the task: ")
    assert "less than min_free" in line


def test_the_schema_is_json(cli: Cli) -> None:
    assert json.loads(cli("schema").stdout)["title"] == "Spec"
    assert not cli.state.exists()
