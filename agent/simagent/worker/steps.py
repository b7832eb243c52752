"""Runs the commands of a task, one after the other, and says how that ended."""

from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import structlog

from simagent.domain.events import Event
from simagent.domain.reasons import Reason
from simagent.domain.spec import Spec
from simagent.domain.state import Status, StepRecord
from simagent.ports.launcher import LaunchError
from simagent.ports.passing import passes
from simagent.ports.runtime import (
    Runtime,
    RuntimeFailedError,
    Step,
    StepExit,
    StepPlan,
)
from simagent.telemetry.metrics import Sample
from simagent.telemetry.spool import allot
from simagent.transfer.checkpoint import file_clock
from simagent.worker.context import Context
from simagent.worker.endings import Ending, Left, StepLostError, left_by
from simagent.worker.journal import Journal
from simagent.worker.judgement import LOST, StepJudge
from simagent.worker.orders import Detached, Interrupted, LeaseLost, Orders, Preempted
from simagent.worker.plans import Planned, plan_step
from simagent.worker.span import LOOK_EVERY, Doors
from simagent.worker.strangers import RankWatch

_STOP_MARGIN = 15.0
_LAST_WORDS = 1 << 16
_HASTY_GRACE = 5.0
_SHARE_TO_STOP = 1 / 3  # of the time left; the rest is for what is to be kept
_LOOK_AGAIN = 1.0

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Begun:
    """A command that runs: its number, and since when this agent has known, in Unix time."""

    number: int
    at: float


class StepRunner:
    """Runs the steps of one attempt, or goes on where an earlier incarnation left them."""

    def __init__(
        self, ctx: Context, spec: Spec, journal: Journal, orders: Orders, runtime: Runtime
    ) -> None:
        self._ctx = ctx
        self._spec = spec
        self._journal = journal
        self._orders = orders
        self._runtime = runtime
        self._judge = StepJudge(ctx, spec, journal, orders)
        self._step: Step | None = None
        self._stopping: Reason | None = None
        self._told_at = 0
        self._beside: Doors | None = None
        self._untaken: deque[Sample] = deque()
        """Samples that were left when a step ended."""
        # Before this incarnation takes any itself.
        self._sampled_before = _modified(journal.metrics)
        self.save: Callable[[Callable[[], bool]], None] = lambda _over: None
        """Called before a step is ended as its machine goes away, with what tells that it is over.

        It may take its time to keep what the step has to keep.
        """
        self.left: Left | None = None
        """How the last command ended; None where none did, or nobody knows how."""
        self.records: tuple[StepRecord, ...] = ()
        self.begun: Begun | None = None
        """The command that runs."""

    def pids(self) -> list[int]:
        """List the processes of the running step."""
        step = self._step
        return step.pids() if step is not None else []

    def signal(self, number: int) -> bool:
        """Send a signal to those of the running step that heed it; tell whether there were any."""
        step = self._step
        return step is not None and step.signal(number)

    def samples(self) -> list[Sample]:
        """Take away the samples of the other hosts of the step since the last call."""
        beside = self._beside  # the next step has others, or none
        taken = list(beside.take_samples()) if beside is not None else []
        with suppress(IndexError):
            while True:
                taken.append(self._untaken.popleft())
        return taken

    def run(self) -> Ending:
        """Run all steps; the first that fails ends them.

        Raises `Interrupted` when an order came (the running step was ended then, but for
        `Detached`), and `StepLostError`.
        """
        entry = self._journal.entry
        if entry.steps_started is None:
            started = self._ctx.clock.now()
            self._journal.write(steps_started=started, boot_id=self._ctx.identity.boot_id)
            with suppress(OSError):  # it is a convenience
                allot(self._journal.logs / "stderr", _LAST_WORDS)
        elif entry.boot_id != self._ctx.identity.boot_id:
            raise StepLostError(Reason.SHIM_LOST, "the machine was rebooted while the steps ran")
        for number in range(len(self._spec.commands)):
            ending = self._run(number)
            if ending is not None:
                return ending
        return Ending(Status.SUCCEEDED)

    def _run(self, number: int) -> Ending | None:
        try:
            planned = plan_step(self._ctx, self._spec, self._journal, number)
            plan, doors = planned.step, self._doors(planned)
            # What already runs has to be ended, whatever orders have come: only then look at them.
            step = self._find(plan)
            if step is not None:
                if doors is not None:
                    doors.attach()
            else:
                ending = self._before()
                if ending is not None:
                    if doors is not None:  # an earlier incarnation may have opened them already
                        doors.attach()
                        doors.close(self._orders)
                    return ending
                step = self._start(plan, doors)
        except LaunchError as error:
            return Ending(Status.FAILED, Reason.MPI_UNAVAILABLE, f"commands[{number}]: {error}")
        except RuntimeFailedError as error:
            if error.reason in (Reason.AGENT_ERROR, Reason.RUNTIME_FAILED):
                raise StepLostError(error.reason, f"commands[{number}]: {error}") from error
            return Ending(Status.FAILED, error.reason, f"commands[{number}]: {error}")
        self._log(Event.STEP_STARTED, step=number, argv=planned.shown)
        self._step, self.left, self._beside = step, None, doors
        self.begun = Begun(number, self._ctx.clock.wall())
        try:
            mpi = self._spec.commands[number].mpi
            watched = mpi is not None and not mpi.force
            exit_ = self._wait(step, doors, RankWatch(self._ctx.clock) if watched else None)
        finally:
            self._step = self.begun = None
        if exit_.reason not in LOST:
            self.left = left_by(exit_, told_at=self._told_at)
        self._record(number, planned, exit_)
        self._log(
            Event.STEP_ENDED,
            step=number,
            exit_code=exit_.exit_code,
            signal=exit_.signal,
            seconds=round(exit_.seconds, 3),
        )
        if doors is not None:  # they tell, too, why mpirun failed
            doors.close(self._orders)
            self._untaken.extend(doors.take_samples())
        stopping = self._stopping or self._journal.entry.stopping
        return self._judge.judge(number, planned, exit_, stopping, doors)

    def _doors(self, planned: Planned) -> Doors | None:
        if planned.over is None:
            return None
        return Doors(
            self._ctx,
            self._spec,
            self._journal,
            planned,
            planned.over,
            sampled_before=self._sampled_before,
        )

    def _find(self, plan: StepPlan) -> Step | None:
        """Find a step that was started before, waiting while its engine does not tell.

        Given back meanwhile, it would run twice. Raises `RuntimeFailedError`, and `Interrupted`.
        """
        waits = False
        while True:
            try:
                step = self._runtime.attach(plan)
            except (RuntimeFailedError, OSError) as error:
                if not _is_passing(error):
                    raise
                if not waits:
                    task = self._journal.entry.task
                    log.warning("not known whether the step runs", task=task, error=str(error))
                waits = True
                self._orders.wake.clear()
                self._orders.check()
                self._ctx.clock.wait(_LOOK_AGAIN, self._orders.wake)
            else:
                if waits:
                    self._orders.wake.set()  # for orders that came meanwhile
                return step

    def _start(self, plan: StepPlan, doors: Doors | None) -> Step:
        """Start a step. Raises `RuntimeFailedError` where it does not run, and `Interrupted`."""
        try:
            if doors is not None:
                doors.open()
            return self._runtime.start(plan)
        except (RuntimeFailedError, OSError) as error:
            step = self._find(plan) if _is_passing(error) else None
            if step is None:
                if doors is not None:
                    doors.close(self._orders)
                raise
            return step  # it was done, but the engine went away, or no file could be opened, then

    def _before(self) -> Ending | None:
        self._orders.check()
        if self._orders.kill is not None:
            return self._judge.killed()
        if self._orders.no_space is not None:
            return self._judge.out_of_space()
        if self._time_left() == 0.0:
            return self._judge.timed_out()
        return None

    def _wait(self, step: Step, doors: Doors | None, watch: RankWatch | None) -> StepExit:
        """Wait for the step's end, obeying orders, and looking at its ranks and their hosts."""
        stopped = False
        while True:
            waits = [
                None if stopped else self._time_left(),
                None if doors is None else LOOK_EVERY,
                None if stopped or watch is None else watch.left(),
            ]
            timeout = min((seconds for seconds in waits if seconds is not None), default=None)
            exit_ = step.wait(timeout, self._orders.wake)
            if exit_ is not None:
                return exit_
            self._orders.wake.clear()
            if doors is not None:
                doors.look()
                if doors.departs is not None and not stopped:
                    self._orders.interrupt(doors.departs)
            if self._orders.interrupted is not None:
                self._leave(step, doors, self._orders.interrupted)
            if stopped:
                continue
            if self._orders.kill is not None:
                self._stop(step, self._grace(), Reason.KILLED)
                stopped = True
            elif self._orders.no_space is not None:
                self._stop(step, min(self._spec.grace, _HASTY_GRACE), Reason.DISK_FULL)
                stopped = True
            elif self._time_left() == 0.0:
                self._stop(step, self._spec.grace, Reason.TIME_LIMIT)
                stopped = True
            elif doors is not None and (doors.lost or doors.gone):
                # Those that are left wait for it without end, and are of no use to anybody.
                self._stop(step, min(self._spec.grace, _HASTY_GRACE), Reason.MPI_HOST_LOST)
                stopped = True
            elif watch is not None and (wrong := watch.look(step.pids)):
                log.warning("ranks of another MPI", task=self._journal.entry.task, error=wrong)
                self._stop(step, min(self._spec.grace, _HASTY_GRACE), Reason.MPI_MISMATCH)
                stopped = True

    def _leave(self, step: Step, doors: Doors | None, order: Interrupted) -> NoReturn:
        if isinstance(order, Preempted):
            self.save(lambda: step.wait(0.0) is not None)
            order = self._orders.interrupted or order
        if isinstance(order, Detached):
            raise order
        grace = self._spec.grace
        if isinstance(order, LeaseLost):
            grace = min(grace, _HASTY_GRACE)
        now = self._ctx.clock.now()
        grace = self._orders.time_for(grace, now, _SHARE_TO_STOP)
        self._stop(step, grace, order.reason)
        deadline = now + grace + self._orders.time_for(_STOP_MARGIN, now, _SHARE_TO_STOP)
        while (left := deadline - self._ctx.clock.now()) > 0:
            exit_ = step.wait(left)
            if exit_ is not None:
                self.left = left_by(exit_, told_at=self._told_at)
                break
        if doors is not None:
            doors.close(self._orders)
        raise order

    def _stop(self, step: Step, grace: float, why: Reason) -> None:
        """Tell the step to end; first write down why, for an agent that only sees it ended."""
        self._stopping = why
        try:
            self._journal.write(stopping=why)
        except OSError as error:
            log.warning("not written down", task=self._journal.entry.task, error=str(error))
        self._log(Event.TASK_STOPPING, why=why.value)
        self._told_at = self._told_at or file_clock()
        step.stop(grace)

    def _log(self, event: Event, **fields: object) -> None:
        entry = self._journal.entry
        log.info(event, task=entry.task, epoch=entry.epoch, **fields)

    def _grace(self) -> float:
        kill = self._orders.kill
        return self._spec.grace if kill is None or kill.grace is None else kill.grace

    def _time_left(self) -> float | None:
        if self._spec.time_limit is None:
            return None
        started = self._journal.entry.steps_started
        assert started is not None
        return max(0.0, started + self._spec.time_limit - self._ctx.clock.now())

    def _record(self, number: int, planned: Planned, exit_: StepExit) -> None:
        record = StepRecord(
            number=number,
            argv=planned.shown,
            exit_code=exit_.exit_code,
            signal=exit_.signal,
            started=exit_.started,
            seconds=exit_.seconds,
            user_seconds=exit_.user_seconds,
            system_seconds=exit_.system_seconds,
            max_rss_bytes=exit_.max_rss_bytes,
        )
        self.records = (*self.records, record)


def _is_passing(error: RuntimeFailedError | OSError) -> bool:
    """Tell whether a step may be found, or known not to be there, in a while."""
    if isinstance(error, OSError):
        return passes(error)
    return error.reason is Reason.RUNTIME_FAILED


def _modified(path: Path) -> float:
    """Tell when a file was last written to; 0 where there is none."""
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0
