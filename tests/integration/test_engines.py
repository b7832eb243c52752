"""The engines that other tests build on do what those rely on."""

from collections.abc import Callable
from pathlib import Path

import pytest

from engines.apptainer import Apptainer
from engines.dockerd import Engine, EngineError
from engines.registry import Registry
from engines.shared import shared_engine


def test_a_container_runs(docker_engine: Engine, tiny_image: str) -> None:
    done = docker_engine.run("run", "--rm", "--network", "none", tiny_image, "echo", "hello")
    assert done.stdout == "hello\n"


def test_the_second_user_gets_the_same_engine(docker_engine: Engine) -> None:
    with shared_engine() as same:
        assert same.host == docker_engine.host
    assert docker_engine.answers()


def test_a_container_outlives_its_daemon(
    private_docker: Callable[[], Engine], load_tiny: Callable[[Engine], str]
) -> None:
    engine = private_docker()
    image = load_tiny(engine)
    argv = ["run", "--detach", "--name", "kept", image, "sh", "-c"]
    engine.run(*argv, "while [ ! -e /tmp/go ]; do sleep 0.1; done; exit 7")
    engine.restart()
    engine.kill()
    assert not engine.answers()
    engine.start()
    engine.freeze()
    assert not engine.answers()
    engine.thaw()
    assert engine.run("ps", "--quiet").stdout
    engine.run("exec", "kept", "touch", "/tmp/go")
    assert engine.run("wait", "kept").stdout == "7\n"


def test_nothing_of_an_engine_is_left(
    private_docker: Callable[[], Engine], load_tiny: Callable[[Engine], str]
) -> None:
    engine = private_docker()
    engine.run("run", "--detach", load_tiny(engine), "sleep", "1000")
    engine.kill()
    engine.close()
    assert not engine.folder.exists()
    assert str(engine.folder) not in Path("/proc/self/mountinfo").read_text()


def test_an_image_goes_through_the_registry(
    docker_engine: Engine, tiny_image: str, image_registry: Registry, apptainer: Apptainer
) -> None:
    name = image_registry.push(docker_engine, tiny_image, "some/tiny:1")
    by_digest = f"{name.rpartition(':')[0]}@{image_registry.digest('some/tiny:1')}"
    docker_engine.run("pull", by_digest)
    docker_engine.run("rmi", by_digest)
    sif = apptainer.folder / "tiny.sif"
    apptainer.run("pull", "--no-https", str(sif), f"docker://{by_digest}")
    assert apptainer.run("exec", str(sif), "echo", "hello").stdout == "hello\n"


def test_a_private_registry_wants_a_login(
    docker_engine: Engine, tiny_image: str, make_registry: Callable[..., Registry]
) -> None:
    name = make_registry(login=True).push(docker_engine, tiny_image, "tiny:1")
    with pytest.raises(EngineError, match=r"no basic auth credentials|unauthorized"):
        docker_engine.run("pull", name)


def test_apptainer_runs_the_same_image(apptainer: Apptainer, tiny_sif: Path) -> None:
    done = apptainer.run("exec", "--containall", str(tiny_sif), "echo", "hello")
    assert done.stdout == "hello\n"
