"""Trying again: for how long, how often, and until when."""

from collections.abc import Callable

import pytest

from fakes.clock import FakeClock
from simagent.ports.clock import Wake
from simagent.ports.retry import InterruptedRetryError, retrying
from simagent.ports.store import NotFoundError, StoreUnavailableError


def failing(times: int) -> Callable[[], int]:
    """Make a call that fails some times, then tells how often it was made."""
    calls = 0

    def call() -> int:
        nonlocal calls
        calls += 1
        if calls <= times:
            raise StoreUnavailableError(f"try {calls}")
        return calls

    return call


def test_it_tries_until_it_works() -> None:
    assert retrying(failing(6), clock=FakeClock()) == 7


def test_other_errors_come_out_at_once() -> None:
    clock = FakeClock()
    started = clock.now()

    def call() -> None:
        raise NotFoundError("gone")

    with pytest.raises(NotFoundError):
        retrying(call, clock=clock)
    assert clock.now() == started


def test_waits_are_capped() -> None:
    waits: list[float] = []
    retrying(
        failing(200),
        clock=FakeClock(),
        first=0.5,
        cap=8.0,
        log=lambda _error, seconds: waits.append(seconds),
    )
    assert len(waits) == 200
    assert waits[0] <= 0.5
    assert 0 <= min(waits) < max(waits) <= 8.0
    assert len(set(waits)) > 100, "without jitter all agents would come back at the same moment"


def test_after_the_deadline_the_last_error_comes_out() -> None:
    clock = FakeClock()
    deadline = clock.now() + 60
    with pytest.raises(StoreUnavailableError, match="try"):
        retrying(failing(10**6), clock=clock, deadline=deadline)
    assert clock.now() == pytest.approx(deadline)


def test_a_wake_ends_the_wait() -> None:
    clock, wake = FakeClock(), Wake()
    clock.after(100, wake.set)
    with pytest.raises(InterruptedRetryError):
        retrying(failing(10**6), clock=clock, wake=wake)
    assert wake.is_set(), "the wake is for its owner to clear"


def test_a_wake_does_not_prevent_the_first_try() -> None:
    wake = Wake()
    wake.set()
    assert retrying(failing(0), clock=FakeClock(), wake=wake) == 1
