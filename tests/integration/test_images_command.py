"""`simagent images`, and what `simagent run` says of images: the messages, and the exit codes."""

import json
import os
import signal
from pathlib import Path

import pytest

from engines.apptainer import Apptainer
from engines.dockerd import Engine
from fakes.cli import Cli

NOBODY_THERE = "docker://127.0.0.1:1/none:1"


@pytest.fixture
def cli(tmp_path: Path) -> Cli:
    return Cli(tmp_path)


def with_apptainer_alone(cli: Cli) -> Cli:
    cli.env["SIMAGENT_RUNTIMES"] = '["apptainer"]'
    return cli


def task(image: str, command: str = "true") -> str:
    return json.dumps({"image": image, "commands": [command], "max_attempts": 1})


@pytest.mark.parametrize(
    ("args", "told"),
    [
        (("pull", "Debian"), "names in lower case"),
        (("pull", "--", "--privileged"), "no image reference"),
        (("pull", "h:70000/a"), "70000 is no port"),
        (("pull", "--runtime", "podman", "a"), "--runtime: 'podman' runs no images"),
        (("pull", "--runtime", "docker", "file:///x.sif"), "--runtime: docker cannot run file:///"),
        (("prune", "--runtime", "podman"), "--runtime: 'podman' runs no images"),
        (("prune", "none"), "(`simagent images list` lists them)"),
    ],
)
def test_what_makes_no_sense_is_refused(cli: Cli, args: tuple[str, ...], told: str) -> None:
    said = cli("images", *args, code=2).stderr
    assert told in said
    assert said.count("\n") == 1


def test_a_machine_that_has_no_images_yet(cli: Cli) -> None:
    assert cli("images", "list").stdout == "no images were fetched so far\n"
    assert json.loads(cli("images", "list", "--json").stdout) == []
    assert cli("images", "prune").stdout == "no images to remove\n"


def test_a_failed_pull_names_the_image_once(cli: Cli, apptainer: Apptainer) -> None:
    said = with_apptainer_alone(cli)("images", "pull", NOBODY_THERE, code=1).stderr
    assert said.count(NOBODY_THERE) == 1
    assert said.count("\n") == 1


@pytest.mark.parametrize(
    ("name", "image", "told"),
    [
        ("none.sif", "file://{}", "there is no {} on the agent's machine: put it there"),
        ("folder.sif", "file://{}", "{} is a folder: name a SIF file"),
        ("empty.sif", "file://{}", "{} has 0 bytes only: make it again"),
        ("pipe.sif", "file://{}", "{} is a pipe or a device: name a file"),
        ("pipe.sif", "oci-archive:{}", "{} is a pipe or a device: name a file"),
    ],
)
def test_a_file_that_is_no_image(
    cli: Cli, apptainer: Apptainer, name: str, image: str, told: str
) -> None:
    (cli.folder / "folder.sif").mkdir()
    (cli.folder / "empty.sif").touch()
    os.mkfifo(cli.folder / "pipe.sif")
    path = cli.folder / name
    said = with_apptainer_alone(cli)("images", "pull", image.format(path), code=1).stderr
    assert told.format(path) in said


def test_an_archive_that_is_a_folder_is_not_waited_for(cli: Cli, docker_engine: Engine) -> None:
    cli.env |= docker_engine.env
    image = f"docker-archive:{cli.folder}"
    said = cli("run", "-", stdin=task(image), code=1).stdout
    assert f"image {image} is a folder" in said
    os.mkfifo(cli.folder / "pipe")
    said = cli("run", "-", stdin=task(f"{image}/pipe"), code=1).stdout
    assert f"{cli.folder}/pipe is a pipe or a device" in said


def test_an_image_in_use_stays_and_that_is_said(
    cli: Cli, docker_engine: Engine, tiny_image: str
) -> None:
    cli.env |= docker_engine.env
    archive = cli.folder / "tiny.tar"
    docker_engine.run("save", "-o", str(archive), tiny_image, check=True)
    image = f"docker-archive:{archive}"
    cli("images", "pull", "--pin", image)
    name = f"simagent-test-{cli.folder.name}"
    docker_engine.run("create", "--name", name, tiny_image, check=True)
    try:
        said = cli("images", "prune", "--yes", image, code=1)
        assert f"{image}: not removed: a container uses it" in said.stderr
        assert "freed" not in said.stdout
    finally:
        docker_engine.run("rm", name, check=True)
    assert image in cli("images", "list").stdout


def test_a_run_says_what_it_waits_for(cli: Cli, apptainer: Apptainer) -> None:
    with_apptainer_alone(cli)
    (cli.folder / "task.json").write_text(task(NOBODY_THERE))
    run = cli.start("run", "task.json")
    assert run.stderr is not None
    said = next(line for line in run.stderr if "asked for again" in line)
    assert NOBODY_THERE in said
    run.send_signal(signal.SIGINT)
    out, rest = run.communicate(timeout=60)
    assert run.returncode == 1
    assert "killed by" in out
    assert "Traceback" not in rest + (cli.state / "agent.log").read_text()
