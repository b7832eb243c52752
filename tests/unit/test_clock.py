"""Waiting, with the machine's own clock."""

import math

import pytest

from simagent.ports.clock import SystemClock, Wake, poll_timeout


@pytest.mark.parametrize("seconds", [None, 2_147_484.0, math.inf])
def test_a_wait_may_be_longer_than_the_system_knows(seconds: float | None) -> None:
    wake = Wake()
    wake.set()
    assert SystemClock().wait(seconds, wake)


def test_waits_are_rounded_up_so_that_nobody_spins() -> None:
    assert [poll_timeout(seconds) for seconds in (None, -1.0, 0.0, 0.0001, 2.0)] == [
        None, 0, 0, 1, 2000,
    ]  # fmt: skip
