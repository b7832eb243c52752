"""Waiting, with the machine's own clock."""

import math
import os
import resource

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


def test_a_wake_may_have_any_number_of_file() -> None:
    before, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(4096, most), most))
    filling = [os.open(os.devnull, os.O_RDONLY)]
    try:
        while filling[-1] < 1024:  # select(2) takes none above
            filling.append(os.open(os.devnull, os.O_RDONLY))
        wake = Wake()
        assert wake.fileno() > 1024
        assert not wake.is_set()
        wake.set()
        assert wake.is_set()
        wake.clear()
        assert not wake.is_set()
    finally:
        for fd in filling:
            os.close(fd)
        resource.setrlimit(resource.RLIMIT_NOFILE, (before, most))
