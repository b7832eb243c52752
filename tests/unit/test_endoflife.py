"""When an agent ends by itself, and what it does where that fails."""

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from fakes.clock import FakeClock
from simagent.ports.cloud import CloudError, StaysError
from simagent.worker.endoflife import EndFailedError, EndOfLife, EndRefusedError, Exit, Terms
from simagent.worker.ends import Command, Terminate


class Ending:
    """Does what it is told to, in turn; then it works."""

    name = "poweroff"

    def __init__(self, *errors: EndFailedError) -> None:
        self._errors = list(errors)
        self.asked: list[bool] = []

    def __call__(self, *, idle: bool) -> None:
        self.asked.append(idle)
        if self._errors:
            raise self._errors.pop(0)


def begun(what: Callable[[], None]) -> None:
    what()


def living(
    clock: FakeClock,
    end: Ending,
    *,
    idle: float | None = None,
    lifetime: float | None = None,
    grace: float | None = None,
) -> EndOfLife:
    terms = Terms(idle=idle, lifetime=lifetime, grace=grace, born=clock.now())
    return EndOfLife(terms, end, clock, begun)


def test_without_terms_there_is_no_end() -> None:
    clock, end = FakeClock(), Ending()
    life = living(clock, end)
    clock.advance(1e9)
    assert life.look(busy=False) is None
    assert (life.closing, life.over, life.status, end.asked) == (False, False, "", [])
    assert life.left == 86_400.0


def test_an_agent_that_has_nothing_to_do_ends() -> None:
    clock, end = FakeClock(), Ending()
    life = living(clock, end, idle=600.0)
    life.look(busy=False)
    assert life.left == 600.0
    assert life.status == "poweroff at 22:23:20 UTC if nothing comes"
    clock.advance(599.0)
    life.look(busy=False)
    assert not life.closing
    clock.advance(1.0)
    life.look(busy=False)
    assert life.over
    assert life.closing
    assert end.asked == [True]


def test_the_time_begins_anew_with_whatever_is_there_to_do() -> None:
    clock, end = FakeClock(), Ending()
    life = living(clock, end, idle=600.0)
    clock.advance(10_000.0)
    assert life.look(busy=True) is None
    clock.advance(599.0)
    life.look(busy=False)
    assert not life.closing
    clock.advance(1.0)
    life.look(busy=False)
    assert life.over


def test_who_is_wanted_is_not_idle_but_its_lifetime_passes() -> None:
    clock, end = FakeClock(), Ending()
    life = living(clock, end, idle=600.0, lifetime=3600.0)
    for _ in range(6):
        clock.advance(599.0)
        life.look(busy=False, wanted=True)
        assert (life.closing, life.status) == (False, "")
    clock.advance(6.0)
    life.look(busy=False, wanted=True)
    assert life.over
    assert end.asked == [False]


def test_it_takes_nothing_while_it_ends_and_is_asked_once() -> None:
    clock, waiting, asked = FakeClock(), list[Callable[[], None]](), Ending()
    life = EndOfLife(Terms(idle=1.0), asked, clock, waiting.append)
    clock.advance(2.0)
    for _ in range(3):
        life.look(busy=False)
        assert life.closing
        assert not life.over
        assert life.status == "nothing to do for 1 s: poweroff is under way"
    (end,) = waiting
    end()
    assert life.over


def test_a_failure_is_told_of_and_tried_again_ever_later_while_tasks_are_taken() -> None:
    clock, end = FakeClock(), Ending(*[EndFailedError("no bus")] * 8)
    life = living(clock, end, idle=60.0)
    clock.advance(60.0)
    pauses = []
    while not life.over:
        before = clock.now()
        life.look(busy=False)
        assert life.closing == life.over
        if not life.over:
            assert life.status.startswith("poweroff: no bus; again at ")
            pauses.append(life.left)
            clock.advance(life.left)
            assert clock.now() > before
    assert pauses == [30.0, 60.0, 120.0, 240.0, 480.0, 900.0, 900.0, 900.0]


def test_a_task_between_makes_it_forget_the_failure() -> None:
    clock, end = FakeClock(), Ending(EndFailedError("no bus"))
    life = living(clock, end, idle=10.0)
    clock.advance(10.0)
    life.look(busy=False)
    life.look(busy=True)
    assert life.status == ""
    clock.advance(10.0)
    life.look(busy=False)
    assert life.over


def test_a_machine_that_has_to_stay_carries_on_and_asks_after_another_idle_time() -> None:
    clock, end = FakeClock(), Ending(EndRefusedError("the group has its least size"))
    life = living(clock, end, idle=600.0)
    clock.advance(600.0)
    life.look(busy=False)
    assert not life.closing
    assert "the group has its least size" in life.status
    clock.advance(599.0)
    life.look(busy=False)
    assert len(end.asked) == 1
    clock.advance(1.0)
    life.look(busy=False)
    assert life.over


def test_after_its_lifetime_it_takes_nothing_and_ends_with_what_runs() -> None:
    clock, end = FakeClock(), Ending()
    life = living(clock, end, lifetime=3600.0)
    clock.advance(3599.0)
    life.look(busy=True)
    assert not life.closing
    assert life.left == 1.0
    clock.advance(1.0)
    assert life.look(busy=True) is None
    assert life.closing
    assert life.status == "the lifetime of 3600 s is over"
    clock.advance(1e6)
    assert life.look(busy=True) is None
    life.look(busy=False)
    assert life.over
    assert end.asked == [False]


def test_after_the_grace_what_runs_is_given_back() -> None:
    clock = FakeClock()
    life = living(clock, Ending(), lifetime=3600.0, grace=600.0)
    clock.advance(3600.0)
    assert life.look(busy=True) is None
    assert life.left == 600.0
    clock.advance(600.0)
    order = life.look(busy=True)
    assert str(order) == "the lifetime of 3600 s is over, and the grace after it"
    assert life.left == 86_400.0
    life.look(busy=False)
    assert life.over


def test_a_lifetime_that_is_over_stays_over_though_the_end_fails() -> None:
    clock, end = FakeClock(), Ending(EndRefusedError("another activity is under way"))
    life = living(clock, end, idle=10.0, lifetime=100.0)
    clock.advance(100.0)
    life.look(busy=False)
    assert life.closing
    assert not life.over
    clock.advance(30.0)
    life.look(busy=False)
    assert life.over
    assert end.asked == [False, False]


# --- What is done then ------------------------------------------------------------------------


def test_exit_does_nothing() -> None:
    Exit()(idle=True)


def test_a_program_is_run_with_its_arguments(tmp_path: Path) -> None:
    Command("command", ["touch", str(tmp_path / "a b; c")])(idle=True)
    assert [path.name for path in tmp_path.iterdir()] == ["a b; c"]


@pytest.mark.parametrize(
    ("code", "within", "text"),
    [
        ("raise SystemExit('Failed to talk\\n to init')", 60.0, "with 1: Failed to talk to init"),
        ("raise SystemExit(3)", 60.0, "ended with 3"),
        ("import time; time.sleep(60)", 0.5, "had not ended after 0.5 s"),
    ],
)
def test_a_program_that_fails_says_why(code: str, within: float, text: str) -> None:
    with pytest.raises(EndFailedError, match=text):
        Command("command", [sys.executable, "-c", code], within=within)(idle=True)


def test_a_program_that_is_not_there_is_named() -> None:
    with pytest.raises(EndFailedError, match="there is no program no-such-program"):
        Command("command", ["no-such-program"])(idle=True)


class Cloud:
    """Answers what it is told to."""

    def __init__(self, answer: bool | CloudError) -> None:
        self._answer = answer
        self.asked: list[bool] = []

    def terminate(self, *, replace: bool) -> bool:
        self.asked.append(replace)
        if isinstance(self._answer, CloudError):
            raise self._answer
        return self._answer


@pytest.mark.parametrize("idle", [True, False])
def test_only_a_machine_that_is_needed_is_replaced(idle: bool, tmp_path: Path) -> None:
    cloud, off = Cloud(True), tmp_path / "off"
    Terminate(cloud, Command("poweroff", ["touch", str(off)]))(idle=idle)
    assert cloud.asked == [not idle]
    assert not off.exists()


def test_a_machine_that_the_cloud_does_not_look_after_powers_itself_off(tmp_path: Path) -> None:
    off = tmp_path / "off"
    Terminate(Cloud(False), Command("poweroff", ["touch", str(off)]))(idle=True)
    assert off.exists()


def test_a_refusal_is_told_from_a_failure() -> None:
    off = Command("poweroff", ["false"])
    with pytest.raises(EndRefusedError, match="least"):
        Terminate(Cloud(StaysError("least size")), off)(idle=True)
    with pytest.raises(EndFailedError, match="denied") as caught:
        Terminate(Cloud(CloudError("denied")), off)(idle=True)
    assert not isinstance(caught.value, EndRefusedError)
