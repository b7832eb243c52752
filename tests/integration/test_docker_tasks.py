"""Whole tasks in Docker, as users run them, through the deaths of agent and engine."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from engines import dockerd
from engines.dockerd import Engine
from fakes.cli import Cli
from fakes.steps import until

SCRIPT = "seq 1000; while [ ! -e /tmp/go ]; do sleep 0.05; done; seq 1001 2000; echo done > made"


@pytest.fixture
def engine(private_docker: Callable[[], Engine]) -> Engine:
    return private_docker()


@pytest.fixture
def mortal(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Engine:
    """An engine that ends its containers with itself."""
    monkeypatch.setitem(dockerd._SETTINGS, "live-restore", False)
    engine = request.getfixturevalue("engine")
    assert isinstance(engine, Engine)
    return engine


@pytest.fixture
def cli(tmp_path: Path) -> Cli:
    return Cli(tmp_path)


@pytest.fixture
def spec(docker_engine: Engine, tiny_image: str, tmp_path: Path) -> str:
    archive = tmp_path / "tiny.tar"
    docker_engine.run("save", "--output", str(archive), tiny_image)
    task = {
        "image": f"docker-archive:{archive}",
        "runtime": "docker",
        "commands": [["sh", "-c", SCRIPT]],
    }
    return json.dumps(task)


def folders(engine: Engine) -> list[Path]:
    """The attempts that have a container."""
    found = engine.run("ps", "--format", '{{.Label "simagent.folder"}}', check=False)
    return [Path(line).parent for line in found.stdout.split()]


def begun(engine: Engine) -> Path:
    """Wait for the container that works, and give its attempt's folder."""
    until(lambda: any("\n1000\n" in out(folder) for folder in folders(engine)), "a first output")
    (folder,) = folders(engine)
    return folder


def out(folder: Path) -> str:
    (log,) = folder.rglob("stdout")
    return log.read_text()


def outputs(cli: Cli, task: str) -> tuple[str, str]:
    got = cli.folder / "got"
    cli("download", task, "--output-dir", got)
    return (got / "stdout.txt").read_text(), (got / "made").read_text()


EXPECTED = "".join(f"{number}\n" for number in range(1, 2001))


def test_a_task_outlives_its_agent_and_a_restart_of_the_engine(
    cli: Cli, engine: Engine, spec: str
) -> None:
    cli.env["SIMAGENT_DOCKER_HOST"] = engine.host
    agent = cli.start("agent")
    try:
        task = cli.submit(spec)
        folder = begun(engine)
        agent.kill()
        agent.communicate()
        engine.stop()
        (folder / "tmp" / "go").touch()
        until(lambda: "\n2000\n" in out(folder))
        engine.start()
        agent = cli.start("agent")
        cli("wait", task)
        shown = cli.shown(task)
        assert (shown["status"], shown["epoch"]) == ("succeeded", 1)
        assert outputs(cli, task) == (EXPECTED, "done\n")
        until(lambda: engine.run("ps", "--all", "--quiet").stdout == "", "an engine without ours")
    finally:
        agent.terminate()
        agent.communicate()


def test_a_task_whose_engine_took_its_container_along_is_tried_again(
    cli: Cli, mortal: Engine, spec: str
) -> None:
    cli.env["SIMAGENT_DOCKER_HOST"] = mortal.host
    agent = cli.start("agent")
    try:
        task = cli.submit(spec)
        first = begun(mortal)
        mortal.restart()
        until(lambda: folders(mortal) not in ([], [first]), "a second attempt")
        (begun(mortal) / "tmp" / "go").touch()
        cli("wait", task)
        shown = cli.shown(task)
        assert (shown["status"], shown["epoch"]) == ("succeeded", 2)
        assert shown["attempts"][0]["reason"] == "runtime_failed"
        assert outputs(cli, task) == (EXPECTED, "done\n")
    finally:
        agent.terminate()
        agent.communicate()
