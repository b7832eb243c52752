"""The timeline tells how long each operation took."""

import pytest

from fakes.clock import FakeClock
from simagent.domain.state import Timing
from simagent.telemetry.timeline import Timeline


def test_operations_have_their_start_length_and_bytes() -> None:
    clock = FakeClock(wall=1000.0)
    timeline = Timeline(clock)
    timeline.add("queue_wait", 4.0)
    with timeline.measure("download") as operation:
        clock.advance(2.0)
        operation.bytes += 10
        operation.bytes += 5
    assert timeline.as_dict() == {
        "queue_wait": Timing(seconds=4.0),
        "download": Timing(seconds=2.0, bytes=15, started=1000.0),
    }
    assert list(timeline.as_dict()) == ["queue_wait", "download"]


def test_an_operation_that_fails_is_noted_all_the_same() -> None:
    clock = FakeClock(wall=1000.0)
    timeline = Timeline(clock)

    def pack() -> None:
        with timeline.measure("pack"):
            clock.advance(3.0)
            raise OSError("gone")

    with pytest.raises(OSError, match="gone"):
        pack()
    assert timeline.as_dict()["pack"].seconds == 3.0


def test_an_operation_that_was_interrupted_adds_up_after_recovery() -> None:
    clock = FakeClock(wall=1000.0)
    timeline = Timeline(clock)
    with timeline.measure("upload") as operation:
        clock.advance(1.0)
        operation.bytes += 100
    clock.advance(50.0)
    stored = {name: timing.model_dump() for name, timing in timeline.as_dict().items()}
    recovered = Timeline.from_dict(
        clock, {name: Timing.model_validate(timing) for name, timing in stored.items()}
    )
    with recovered.measure("upload") as operation:
        clock.advance(2.0)
        operation.bytes += 50
    assert recovered.as_dict() == {"upload": Timing(seconds=3.0, bytes=150, started=1000.0)}
