"""What the fault suite's tests share."""

import json
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from faults.lab import FULL, PATIENCE, SCALE, SHARE, Lab, Measured, Stopwatch


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave the long cases to `make faults`, and give all of them the time that they wait for."""
    for item in items:
        if item.get_closest_marker("timeout") is None:
            item.add_marker(pytest.mark.timeout(5 * PATIENCE))
    left_to_full(config, items)


def left_to_full(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out the long cases unless they are wanted, and the others where a share of those is."""
    left = [item for item in items if not _wanted(item)]
    if left:
        items[:] = [item for item in items if item not in left]
        config.hook.pytest_deselected(items=left)


def _wanted(item: pytest.Item) -> bool:
    if item.get_closest_marker("full") is None:
        return SHARE is None
    if SHARE is None:
        return FULL
    number, _, of = SHARE.partition("/")
    return zlib.crc32(item.nodeid.encode()) % int(of) == int(number)


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    with Lab(tmp_path) as made:
        yield made


@pytest.fixture
def measured(record_property: Callable[[str, object], None]) -> Measured:
    def note(what: str, *watches: Stopwatch, scaled: bool = False) -> None:
        times = [watch.stop() for watch in watches]
        record_property("recovery", json.dumps([what, scaled, times]))

    return note


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print the measured recovery times, as the rows of docs/reliability.md."""
    rows: dict[tuple[str, bool], list[float]] = {}
    for report in terminalreporter.stats.get("passed", []):
        for name, value in report.user_properties:
            if name == "recovery" and report.when == "call":
                what, scaled, times = json.loads(value)
                rows.setdefault((what, scaled), []).extend(times)
    if not rows:
        return
    terminalreporter.section("recovery times")
    for (what, scaled), times in sorted(rows.items()):
        mean, most = sum(times) / len(times), max(times)
        factor = f" (protocol's times 1/{SCALE:g})" if scaled else ""
        terminalreporter.line(f"| {what}{factor} | {len(times)} | {mean:.1f} s | {most:.1f} s |")
