"""What goes wrong within one attempt: nothing it started is left behind, and it comes to an end."""

import errno
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
from structlog.testing import capture_logs

from fakes.faults import UNAVAILABLE, Faults, FaultyStore
from fakes.rig import Rig
from fakes.steps import alive
from simagent.domain.events import Event
from simagent.domain.keys import TaskKeys
from simagent.ledger import Ledger
from simagent.ports.clock import SystemClock, Waitable, Wake
from simagent.ports.runtime import Step, StepExit, StepPlan
from simagent.ports.store import StoreForbiddenError
from simagent.runtimes.process import ProcessRuntime
from simagent.wiring.agent import open_context
from simagent.worker.attempt import AttemptRun
from simagent.worker.context import Context
from simagent.worker.orders import Detached, Preempted
from simagent.worker.recovery import recover
from simagent.worker.threads import Threads

SLEEPER = {"run": "echo $$; exec sleep 300", "shell": True}


@pytest.fixture
def rig(tmp_path: Path) -> Rig:
    return Rig(tmp_path)


def pid_of(rig: Rig, task: TaskKeys) -> int:
    return int(rig.until(lambda: rig.log(task) or None).split()[0])


def end(rig: Rig, task: TaskKeys) -> None:
    rig.client.kill(task, by="the test", grace=0.5)
    rig.finish(task)


def epochs_running(task: TaskKeys) -> set[int]:
    """Tell of which attempts of a task commands run."""
    found = set()
    for process in psutil.process_iter():
        try:
            environ = process.environ()
        except psutil.Error:
            continue
        if environ.get("SIMAGENT_TASK_ID") == task.id:
            found.add(int(environ["SIMAGENT_EPOCH"]))
    return found


class BadRuntime:
    """A runtime in which looking at a step fails once."""

    name = "process"

    def __init__(self) -> None:
        self._good = ProcessRuntime()
        self._failed = False

    def trouble(self) -> str | None:
        return self._good.trouble()

    def about(self) -> list[str]:
        return self._good.about()

    def start(self, plan: StepPlan) -> Step:
        step = self._good.start(plan)
        if self._failed:
            return step
        self._failed = True
        return BadStep(step)

    def attach(self, plan: StepPlan) -> Step | None:
        return self._good.attach(plan)

    def keep_alive(self, folder: Path) -> None:
        self._good.keep_alive(folder)

    def reap(self, known: Callable[[Path], bool]) -> int:
        return self._good.reap(known)


class BadStep:
    """A step that cannot be waited for."""

    def __init__(self, good: Step) -> None:
        self._good = good

    def wait(self, timeout: float | None, *wakes: Waitable) -> StepExit | None:
        raise OSError(errno.EIO, "injected")

    def stop(self, grace: float) -> None:
        self._good.stop(grace)

    def signal(self, number: int) -> bool:
        return self._good.signal(number)

    def pids(self) -> list[int]:
        return self._good.pids()


def test_what_is_given_back_for_an_error_of_the_agents_runs_on_nowhere(rig: Rig) -> None:
    runtime = BadRuntime()
    with rig.agent(change=lambda ctx: replace(ctx, runtimes={"process": runtime})):
        task = rig.submit(SLEEPER)
        state = rig.until(lambda: s if (s := rig.client.state(task)).epoch == 2 else None)
        rig.until(lambda: 2 in epochs_running(task))
        assert epochs_running(task) == {2}
        assert state.attempts[0].reason == "agent_error"
        end(rig, task)


def test_what_a_step_was_ended_for_is_known_to_the_next_agent(rig: Rig) -> None:
    """The agent ends the step as the machine goes away, and dies before it can say so."""
    with rig.agent() as agent:
        task = rig.submit(SLEEPER)
        pid = pid_of(rig, task)
        agent.interrupt(Detached("the agent stops"))
    ctx = open_context(rig.config())
    faults = Faults(SystemClock())
    ctx = replace(ctx, ledger=Ledger(FaultyStore(ctx.ledger.store, faults)))
    (journal,) = ctx.journals.all()
    recovered = recover(ctx, journal)
    assert recovered is not None
    run = AttemptRun(ctx, Threads(Wake()), journal, *recovered)

    thread = threading.Thread(target=run.run)
    with capture_logs() as logs:
        thread.start()
        rig.until(lambda: any(line["event"] == Event.STEP_STARTED for line in logs))
    faults.plan = lambda call, key: UNAVAILABLE if key == task.state else None
    run.orders.interrupt(Preempted("the machine goes away"))
    rig.until(lambda: not alive(pid))
    run.orders.interrupt(Detached("as by kill -9"))
    thread.join(60)
    assert not thread.is_alive()
    assert rig.client.state(task).epoch == 1

    with rig.agent():
        state = rig.until(lambda: s if (s := rig.client.state(task)).epoch == 2 else None)
        assert (state.attempts[0].reason, state.counters.preemptions) == ("preempted", 1)
        end(rig, task)


def test_outputs_that_end_the_agent_again_and_again_are_given_up(rig: Rig) -> None:
    crashes: list[str] = []

    def crash(call: str, key: str) -> None:
        if key.endswith("output.zip"):
            crashes.append(key)
            raise RuntimeError("a bug in the agent")

    def fragile(ctx: Context) -> Context:
        faults = Faults(SystemClock(), before=crash)
        return replace(ctx, ledger=Ledger(FaultyStore(ctx.ledger.store, faults)))

    task = rig.submit("true")
    for number in (1, 2, 3):
        with pytest.raises(RuntimeError, match="a bug"), rig.agent(change=fragile):
            rig.until(lambda number=number: len(crashes) == number)  # type: ignore[misc]
    with rig.agent(change=fragile):
        state = rig.finish(task)
    assert len(crashes) == 3
    assert (state.status, state.reason, state.epoch) == ("error", "output_failed", 1)
    assert "again and again" in state.message


def test_outputs_wait_for_a_permission_that_was_taken_away(rig: Rig) -> None:
    tried: list[str] = []

    def forbid(call: str, key: str) -> None:
        if call == "upload" and len(tried) < 3:
            tried.append(key)
            raise StoreForbiddenError("s3:PutObject on it is not allowed")

    def forbidden(ctx: Context) -> Context:
        faults = Faults(SystemClock(), before=forbid)
        return replace(ctx, ledger=Ledger(FaultyStore(ctx.ledger.store, faults)))

    with rig.agent(change=forbidden):
        state = rig.finish(rig.submit({"run": "echo made > made.txt", "shell": True}))
    assert len(tried) == 3
    assert state.status == "succeeded"
    assert state.output is not None


def test_a_task_with_outside_effects_is_ended_while_the_store_is_away(rig: Rig) -> None:
    faults = Faults(SystemClock())

    def cut_off(ctx: Context) -> Context:
        ledger = Ledger(FaultyStore(ctx.ledger.store, faults))
        return replace(ctx, ledger=ledger, lease_ledger=ledger)

    with rig.agent(change=cut_off):
        task = rig.submit(SLEEPER, on_partition="stop", grace=0.5)
        pid = pid_of(rig, task)
        faults.plan = lambda call, key: UNAVAILABLE
        rig.until(lambda: not alive(pid))
        faults.plan = lambda call, key: None
        state = rig.until(lambda: s if (s := rig.client.state(task)).counters.errors else None)
        assert state.attempts[0].reason == "partitioned"
        end(rig, task)
