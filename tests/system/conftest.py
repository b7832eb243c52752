"""What the tests of whole systems share."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from engines.dockerd import Engine
from system import packages
from system.machines import Images, Lab, machine_lab

_MEASURED = "measured"
_BUILDING = 2700
"""Seconds: where nothing was built yet, all packages are fetched."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Give each test the time that the first one needs to build images."""
    for item in items:
        if item.get_closest_marker("timeout") is None:
            item.add_marker(pytest.mark.timeout(_BUILDING))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print what was measured."""
    told = [
        value
        for report in terminalreporter.stats.get("passed", [])
        if isinstance(report, pytest.TestReport)
        for name, value in report.user_properties
        if name == _MEASURED
    ]
    if told:
        terminalreporter.section("measured")
        for line in told:
            terminalreporter.line(str(line))


@pytest.fixture
def measured(record_property: Callable[[str, object], None]) -> Callable[[str], None]:
    """Note a line of figures, which are printed at the end."""
    return lambda line: record_property(_MEASURED, line)


@pytest.fixture(scope="session")
def machine_images(docker_engine: Engine) -> Images:
    """Images of machines with systemd."""
    return Images(docker_engine)


@pytest.fixture
def machines(
    docker_engine: Engine, machine_images: Images, aws_credentials: None, tmp_path: Path
) -> Iterator[Lab]:
    """A lab without machines as yet: `Lab.boot` starts one."""
    with machine_lab(docker_engine, machine_images, tmp_path) as made:
        yield made


@pytest.fixture(scope="session")
def package(docker_engine: Engine) -> Callable[[str], Path]:
    """Build the Debian package for a release."""
    return lambda suite: packages.build(suite, docker_engine)
