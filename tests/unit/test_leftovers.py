"""What an attempt still runs is ended: within the time that its machine has left."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from fakes.clock import FakeClock
from fakes.rig import Rig
from simagent.ports.clock import Waitable
from simagent.ports.runtime import StepExit, StepPlan
from simagent.wiring.agent import open_context
from simagent.worker.orders import Orders, Preempted
from simagent.worker.recovery import stop_leftovers


class Undying:
    """A step that nothing ends, as one that waits for a file server that is gone."""

    def __init__(self, clock: FakeClock, graces: list[float]) -> None:
        self._clock = clock
        self._graces = graces

    def wait(self, timeout: float | None, *wakes: Waitable) -> StepExit | None:
        self._clock.wait(timeout, *wakes)
        return None

    def stop(self, grace: float) -> None:
        self._graces.append(grace)

    def signal(self, number: int) -> bool:
        return False

    def pids(self) -> list[int]:
        return []


class Undead:
    """A runtime in which all that was ever begun still runs."""

    name = "process"

    def __init__(self, clock: FakeClock) -> None:
        self._clock = clock
        self.graces: list[float] = []

    def trouble(self) -> str | None:
        return None

    def about(self) -> list[str]:
        return []

    def start(self, plan: StepPlan) -> Undying:
        raise AssertionError(plan)

    def attach(self, plan: StepPlan) -> Undying:
        return Undying(self._clock, self.graces)

    def keep_alive(self, folder: Path) -> None:
        raise AssertionError(folder)

    def reap(self, known: Callable[[Path], bool]) -> int:
        raise AssertionError(known)


@pytest.mark.parametrize(
    ("left", "takes", "graces"),
    [
        (None, (50.0, 50.0), [5.0, 25.0]),
        (300.0, (50.0, 50.0), [5.0, 25.0]),
        (30.0, (0.0, 10.0), [5.0, 0.0]),
        (6.0, (0.0, 2.0), [2.0, 0.0]),
        (-1.0, (0.0, 0.0), [0.0, 0.0]),
    ],
    ids=["no notice", "plenty of time", "half a minute", "seconds", "too late"],
)
def test_what_does_not_end_takes_a_third_of_the_time_that_the_machine_has_left(
    tmp_path: Path, left: float | None, takes: tuple[float, float], graces: list[float]
) -> None:
    clock, orders, attempt = FakeClock(), Orders(), tmp_path / "attempt"
    runtime = Undead(clock)
    config = Rig(tmp_path).config()
    config.state_dir.mkdir()
    ctx = open_context(config)
    ctx = replace(ctx, clock=clock, runtimes={"process": runtime})
    for folder in (attempt / "steps", attempt / "doors" / "T.1.0" / "steps"):
        folder.mkdir(parents=True)
        (folder / "step-0.json").touch()
    if left is not None:
        orders.interrupt(Preempted("the machine goes away", clock.now() + left))
    before = clock.now()
    stop_leftovers(ctx, attempt, orders)
    least, most = takes
    assert least <= clock.now() - before <= most
    assert runtime.graces == graces
