"""Whole tasks in Apptainer containers: pulled from a registry, run by agents that are killed."""

import json
import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from engines.apptainer import Apptainer
from engines.dockerd import Engine
from engines.registry import Registry
from fakes.cli import Cli
from fakes.steps import until
from simagent.worker.journal import ARTIFACTS

LINES = 1_000_000
PRINT = (
    "i=0; while [ $i -lt 1000 ]; do printf '%d \\377\\000 line\\n' $i; i=$((i+1)); done > part; "
    "i=0; while [ $i -lt 1000 ]; do cat part; i=$((i+1)); "
    "[ $i != 500 ] || while [ ! -e go ]; do sleep 0.05; done; done"
)


@pytest.fixture
def cli(apptainer: Apptainer) -> Iterator[Cli]:
    folder = Path(tempfile.mkdtemp(prefix="simagent-test-"))
    folder.chmod(0o755)  # the tasks' user has to pass, which it may not in pytest's folders
    made = Cli(folder)
    made.env["SIMAGENT_RUNTIMES"] = '["apptainer"]'
    yield made
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def image(image_registry: Registry, docker_engine: Engine, tiny_image: str) -> str:
    return image_registry.push(docker_engine, tiny_image, "tasks/tiny:1")


def spec(image: str, *commands: object, **fields: object) -> str:
    return json.dumps({"image": image, "commands": list(commands), "grace": 2, **fields})


def run(cli: Cli, text: str, code: int) -> dict[str, Any]:
    (cli.folder / "task.json").write_text(text)
    cli("run", "task.json", "-o", "out", code=code)
    (task,) = json.loads(cli("list", "--json").stdout)
    return cli.shown(task["id"])


def artifacts(cli: Cli) -> Path:
    (found,) = cli.state.glob(f"attempts/*/{ARTIFACTS}")
    return found


def begun(cli: Cli) -> bool:
    return any(cli.state.glob(f"attempts/*/{ARTIFACTS}/part"))


def test_a_task_in_an_image_of_a_registry(cli: Cli, image: str, image_registry: Registry) -> None:
    state = run(cli, spec(image, "sh -c 'id -u; cat > in.txt; echo made > out.txt'"), code=0)
    assert state["status"] == "succeeded"
    assert state["attempts"][0]["image_digest"] == image_registry.digest("tasks/tiny:1")
    uid = int((cli.folder / "out" / "stdout.txt").read_text())
    assert uid != 0
    assert (cli.folder / "out" / "out.txt").read_text() == "made\n"
    assert list(cli.state.glob("attempts/*")) == []


def test_an_image_that_is_damaged_within_is_fetched_anew(cli: Cli, image: str) -> None:
    run(cli, spec(image, "true"), code=0)
    (file,) = cli.state.glob("images/apptainer/*.sif")
    content = bytearray(file.read_bytes())
    at = content.index(b"hsqs")  # where the file system begins
    content[at : at + 4096] = bytes(4096)
    file.write_bytes(content)
    task = cli.submit(spec(image, "echo whole"))
    cli("agent", "--until-empty")
    state = cli.shown(task)
    assert state["status"] == "succeeded"
    assert [one["reason"] for one in state["attempts"]] == ["image_corrupt", None]


def test_a_program_that_the_image_lacks(cli: Cli, image: str) -> None:
    state = run(cli, spec(image, "no-such-program --help"), code=1)
    assert (state["status"], state["reason"]) == ("failed", "command_not_found")


def test_a_task_that_takes_too_long_is_ended_with_all_its_processes(cli: Cli, image: str) -> None:
    before = sleepers()
    command = "sh -c 'setsid sleep 4321 & sleep 4321'"
    state = run(cli, spec(image, command, time_limit=1), code=1)
    assert state["status"] == "timed_out"
    until(lambda: sleepers() == before, "the end of all its processes")


def sleepers() -> set[str]:
    done = subprocess.run(
        ["pgrep", "-f", "sleep 4321"], capture_output=True, text=True, check=False
    )
    return set(done.stdout.split())


def test_what_links_outward_is_not_uploaded(cli: Cli, image: str) -> None:
    code = "sh -c 'ln -s /etc/passwd link; ln -s ../../../journal.json up; echo kept > kept'"
    run(cli, spec(image, code), code=0)
    published = sorted(path.name for path in (cli.folder / "out").iterdir())
    assert "kept" in published
    assert "link" not in published
    assert "up" not in published


def test_an_agent_that_is_killed_loses_and_repeats_nothing(cli: Cli, image: str) -> None:
    task = cli.submit(spec(image, {"run": ["sh", "-c", PRINT]}))
    first = cli.start("agent")
    until(lambda: begun(cli), "the first half of the log")
    first.send_signal(signal.SIGKILL)
    first.communicate()
    second = cli.start("agent")
    try:
        (artifacts(cli) / "go").touch()
        cli("wait", task)
    finally:
        second.send_signal(signal.SIGTERM)
        second.communicate(timeout=60)
    state = cli.shown(task)
    assert (state["status"], state["epoch"]) == ("succeeded", 1)
    cli("download", task, "-o", "fetched")
    part = b"".join(b"%d \xff\0 line\n" % number for number in range(1000))
    assert (cli.folder / "fetched" / "stdout.txt").read_bytes() == part * (LINES // 1000)


def test_a_kill_ends_what_runs(cli: Cli, image: str) -> None:
    task = cli.submit(spec(image, "sh -c 'echo > part; sleep 600'"))
    agent = cli.start("agent")
    try:
        until(lambda: begun(cli), "its start")
        cli("kill", task)
        cli("wait", task, code=1)
    finally:
        agent.send_signal(signal.SIGTERM)
        agent.communicate(timeout=60)
    assert cli.shown(task)["status"] == "killed"
    assert list(cli.state.glob("attempts/*")) == []


@pytest.mark.skipif(os.geteuid() != 0, reason="root is needed to be root's agent")
def test_an_agent_that_hides_its_files_from_the_tasks(cli: Cli, image: str) -> None:
    cli.state.mkdir(mode=0o711)
    before = os.umask(0o077)
    try:
        state = run(cli, spec(image, "sh -c 'echo made > out.txt'", "cat out.txt"), code=0)
    finally:
        os.umask(before)
    assert state["status"] == "succeeded"
    for name in ("store", "agent.log"):
        assert (cli.state / name).stat().st_mode & 0o077 == 0
