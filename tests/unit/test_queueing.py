"""Tasks that find no room, and come to it all the same."""

import pytest

from fakes.clock import FakeClock
from simagent.domain.keys import TaskKeys
from simagent.domain.times import Times
from simagent.worker.queueing import Line

EVERY = Times().hide_refused


def task(number: int) -> TaskKeys:
    return TaskKeys("default", f"T{number}")


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def line(clock: FakeClock) -> Line:
    return Line(clock, Times())


def test_what_found_no_room_is_looked_at_again_when_something_has_ended(line: Line) -> None:
    assert line.refused(task(1), "r1")
    assert line.refused(task(2), "r2")
    assert line.again(0) == []
    assert line.again(1) == [(task(1), "r1"), (task(2), "r2")]
    assert line.again(1) == []


def test_it_is_looked_at_again_every_so_often_as_others_may_have_taken_it(
    line: Line, clock: FakeClock
) -> None:
    line.refused(task(1), "r1")
    clock.advance(EVERY)
    assert line.again(0) == [(task(1), "r1")]
    line.settled(task(1))
    clock.advance(EVERY)
    assert line.again(0) == []


def test_its_bell_is_hidden_only_as_often_as_it_is_heard(line: Line) -> None:
    assert line.refused(task(1), "r1")
    assert not line.refused(task(1), "r1")
    assert line.refused(task(1), "r2")
    assert line.again(1) == [(task(1), "r2")]


def test_who_refuses_one_after_the_other_hears_no_more_for_a_while(
    line: Line, clock: FakeClock
) -> None:
    for number in range(8):
        assert line.hears
        line.refused(task(number), "r")
    assert not line.hears
    clock.advance(EVERY)
    assert line.hears


def test_when_something_has_ended_bells_are_heard_again(line: Line) -> None:
    for number in range(8):
        line.refused(task(number), "r")
    assert not line.hears
    line.again(1)
    assert line.hears


def test_nothing_is_begun_before_one_that_has_waited_long(line: Line, clock: FakeClock) -> None:
    line.refused(task(1), "r1")
    clock.advance(1.0)
    line.refused(task(2), "r2")
    clock.advance(10 * EVERY - 2.0)
    assert line.kept_for() is None
    clock.advance(1.0)
    assert line.kept_for() == task(1)
    assert not line.hears
    assert line.again(1) == [(task(1), "r1")]
    line.settled(task(1))
    clock.advance(1.0)
    assert line.kept_for() == task(2)


def test_room_is_not_kept_free_for_ever(line: Line, clock: FakeClock) -> None:
    line.refused(task(1), "r1")
    clock.advance(70 * EVERY - 1.0)
    assert line.kept_for() == task(1)
    clock.advance(1.0)
    assert line.kept_for() is None
    assert line.hears
    line.refused(task(1), "r2")
    clock.advance(9 * EVERY)
    assert line.kept_for() is None


def test_what_was_refused_for_want_of_hosts_is_looked_at_when_one_joins(line: Line) -> None:
    line.left(task(1), "r1")
    line.left(task(2), "r2")
    assert line.again(0) == []
    line.settled(task(2))
    assert line.again(0, 1) == [(task(1), "r1")]
    assert line.again(0, 1) == []
    for number in range(20):
        line.left(task(number), "r")
    assert len(line.again(0, 2)) == 8, "bells come again by themselves"
