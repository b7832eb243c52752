"""What the tests of clusters share."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cluster import images
from cluster.lab import ClusterLab, cluster_lab
from engines.apptainer import Apptainer
from engines.dockerd import Engine

_BUILDING = 2700
"""Seconds: where nothing was built yet, all packages are fetched."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Give each test the time that the first one needs to build images."""
    for item in items:
        if item.get_closest_marker("timeout") is None:
            item.add_marker(pytest.mark.timeout(_BUILDING))


@pytest.fixture(scope="session")
def vm_image(docker_engine: Engine, aws_credentials: None) -> str:
    """The image of VMs."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DOCKER_HOST", docker_engine.host)
        return images.build_vm()


@pytest.fixture(scope="session")
def sif(docker_engine: Engine, apptainer: Apptainer) -> Callable[[str], Path]:
    """Make an image's file, once for each."""
    made: dict[str, Path] = {}

    def make(name: str) -> Path:
        if name not in made:
            with pytest.MonkeyPatch.context() as patch:
                patch.setenv("DOCKER_HOST", docker_engine.host)
                made[name] = images.sif(name)
        return made[name]

    return make


@pytest.fixture(scope="session")
def archive(docker_engine: Engine) -> Callable[[str], Path]:
    """Make an image's file for Docker."""

    def make(name: str) -> Path:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("DOCKER_HOST", docker_engine.host)
            return images.archive(name)

    return make


@pytest.fixture
def lab(docker_engine: Engine, vm_image: str) -> Iterator[ClusterLab]:
    """A lab without VMs as yet."""
    with cluster_lab(docker_engine, vm_image) as made:
        yield made
