"""Runs the commands of a task, one after the other, and says how that ended."""

import math
import os
import signal
from collections.abc import Callable
from dataclasses import dataclass

import structlog

from simagent.domain.events import Event
from simagent.domain.reasons import Reason
from simagent.domain.spec import Command, Mpi, Spec
from simagent.domain.state import Status, StepRecord
from simagent.ports.launcher import LaunchError, Ranks
from simagent.ports.runtime import (
    Runtime,
    RuntimeFailedError,
    Step,
    StepExit,
    StepLimits,
    StepPlan,
)
from simagent.worker.context import Context
from simagent.worker.journal import Journal
from simagent.worker.orders import Detached, LeaseLost, Orders

_STOP_MARGIN = 15.0
_LOST_GRACE = 5.0

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Ending:
    """How the steps ended: the outcome, and why where it is not `succeeded`."""

    outcome: Status
    reason: Reason | None = None
    message: str = ""


class StepLostError(Exception):
    """A step was not run to its own end, through no fault of the task; `reason` names why."""

    def __init__(self, reason: Reason, message: str) -> None:
        super().__init__(message)
        self.reason = reason


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
        self._step: Step | None = None
        self.records: tuple[StepRecord, ...] = ()

    def pids(self) -> list[int]:
        """List the processes of the running step."""
        step = self._step
        return step.pids() if step is not None else []

    def run(self) -> Ending:
        """Run all steps; the first that fails ends them.

        Raises `Interrupted` when an order came (the running step was ended then, but for
        `Detached`), and `StepLostError`.
        """
        entry = self._journal.entry
        if entry.steps_started is None:
            self._journal.write(steps_started=self._ctx.clock.now())
        elif entry.boot_id != self._ctx.identity.boot_id:
            raise StepLostError(Reason.SHIM_LOST, "the machine was rebooted while the steps ran")
        for number, command in enumerate(self._spec.commands):
            ending = self._before() or self._run(number, command)
            if ending is not None:
                return ending
        return Ending(Status.SUCCEEDED)

    def _before(self) -> Ending | None:
        self._orders.check()
        if self._orders.kill is not None:
            return self._stopped()
        if self._time_left() == 0.0:
            return self._timed_out()
        return None

    def _run(self, number: int, command: Command) -> Ending | None:
        try:
            plan = self._plan(number, command)
            self._step = self._runtime.start(plan)
        except LaunchError as error:
            return Ending(Status.FAILED, Reason.MPI_UNAVAILABLE, f"commands[{number}]: {error}")
        except RuntimeFailedError as error:
            if error.reason is Reason.AGENT_ERROR:
                raise StepLostError(error.reason, f"commands[{number}]: {error}") from error
            return Ending(Status.FAILED, error.reason, f"commands[{number}]: {error}")
        task, epoch = self._journal.entry.task, self._journal.entry.epoch
        log.info(Event.STEP_STARTED, task=task, epoch=epoch, step=number, argv=plan.argv)
        try:
            exit_, asked = self._wait(self._step)
        finally:
            self._step = None
        self._record(number, plan, exit_)
        log.info(
            Event.STEP_ENDED,
            task=task,
            epoch=epoch,
            step=number,
            exit_code=exit_.exit_code,
            signal=exit_.signal,
            seconds=round(exit_.seconds, 3),
        )
        return self._judge(number, plan, exit_, asked)

    def _wait(self, step: Step) -> tuple[StepExit, Callable[[], Ending] | None]:
        """Wait for the step's end, obeying orders; also tell what it was asked to end for."""
        asked: Callable[[], Ending] | None = None
        while True:
            timeout = None if asked is not None else self._time_left()
            exit_ = step.wait(timeout, self._orders.wake)
            if exit_ is not None:
                return exit_, asked
            self._orders.wake.clear()
            if self._orders.interrupted is not None:
                self._leave(step)
            if asked is not None:
                continue
            if self._orders.kill is not None:
                asked = self._stopped
                self._stop(step, self._grace(), "killed")
            elif self._time_left() == 0.0:
                asked = self._timed_out
                self._stop(step, self._spec.grace, "time limit")

    def _leave(self, step: Step) -> None:
        order = self._orders.interrupted
        assert order is not None
        if isinstance(order, Detached):
            raise order
        grace = _LOST_GRACE if isinstance(order, LeaseLost) else self._spec.grace
        self._stop(step, min(grace, self._spec.grace), type(order).__name__)
        deadline = self._ctx.clock.now() + grace + _STOP_MARGIN
        while (left := deadline - self._ctx.clock.now()) > 0:
            if step.wait(left) is not None:
                break
        raise order

    def _stop(self, step: Step, grace: float, why: str) -> None:
        entry = self._journal.entry
        log.info(Event.TASK_STOPPING, task=entry.task, epoch=entry.epoch, why=why)
        step.stop(grace)

    def _grace(self) -> float:
        kill = self._orders.kill
        return self._spec.grace if kill is None or kill.grace is None else kill.grace

    def _time_left(self) -> float | None:
        if self._spec.time_limit is None:
            return None
        started = self._journal.entry.steps_started
        assert started is not None
        return max(0.0, started + self._spec.time_limit - self._ctx.clock.now())

    def _stopped(self) -> Ending:
        assert self._orders.kill is not None
        return Ending(Status.KILLED, Reason.KILLED, f"killed by {self._orders.kill.by}")

    def _timed_out(self) -> Ending:
        limit = self._spec.time_limit
        return Ending(Status.TIMED_OUT, Reason.TIME_LIMIT, f"time_limit of {limit:g} s reached")

    def _judge(
        self, number: int, plan: StepPlan, exit_: StepExit, asked: Callable[[], Ending] | None
    ) -> Ending | None:
        if asked is not None and exit_.stopped:
            return asked()
        if exit_.reason in (Reason.SHIM_LOST, Reason.ORPHANED):
            raise StepLostError(exit_.reason, exit_.message)
        where = f"commands[{number}] ({plan.argv[0]})"
        if exit_.reason is not None:
            return Ending(Status.FAILED, exit_.reason, f"{where}: {exit_.message}")
        more = exit_.message and f": {exit_.message}"
        if exit_.signal is not None:
            ended = f"{where} was ended by {_signal_name(exit_.signal)}{more}"
            return Ending(Status.FAILED, Reason.SIGNAL, ended)
        if exit_.exit_code:
            exited = f"{where} exited with code {exit_.exit_code}{more}"
            return Ending(Status.FAILED, Reason.EXIT_CODE, exited)
        return None

    def _record(self, number: int, plan: StepPlan, exit_: StepExit) -> None:
        record = StepRecord(
            number=number,
            argv=plan.argv,
            exit_code=exit_.exit_code,
            signal=exit_.signal,
            started=exit_.started,
            seconds=exit_.seconds,
            user_seconds=exit_.user_seconds,
            system_seconds=exit_.system_seconds,
            max_rss_bytes=exit_.max_rss_bytes,
        )
        self.records = (*self.records, record)

    def _plan(self, number: int, command: Command) -> StepPlan:
        entry = self._journal.entry
        settings = self._ctx.settings
        env = {name: os.environ[name] for name in settings.pass_env if name in os.environ}
        own = {**self._spec.env, **command.env}
        own |= {"SIMAGENT_TASK_ID": entry.task, "SIMAGENT_EPOCH": str(entry.epoch)}
        argv = command.argv()
        if command.mpi is not None:
            argv = self._launch(command.mpi, argv, tuple(own))
        return StepPlan(
            folder=self._journal.steps,
            number=number,
            argv=argv,
            env=env | own,
            cwd=self._journal.artifacts / command.workdir,
            stdin=command.stdin_bytes(),
            stdout=self._journal.logs / "stdout",
            stderr=self._journal.logs / "stderr",
            grace=self._spec.grace,
            orphan_limit=settings.orphan_limit,
            limits=self._limits(),
        )

    def _limits(self) -> StepLimits:
        asked = self._spec.resources
        return StepLimits(
            memory_bytes=asked.memory,
            cpus=asked.cpus,
            processes=self._ctx.settings.max_processes,
            file_bytes=self._ctx.settings.max_file_bytes,
        )

    def _launch(self, mpi: Mpi, argv: tuple[str, ...], env: tuple[str, ...]) -> tuple[str, ...]:
        launcher = self._ctx.launcher
        if launcher is None:
            raise LaunchError("no mpirun was found on this machine: install MPICH")
        cores = len(os.sched_getaffinity(0))
        most = min(cores, math.ceil(self._spec.resources.cpus or cores))
        np = most if mpi.np == "max" else mpi.np
        ranks = Ranks(np=np, env=env, bind=mpi.bind, args=mpi.args)
        return launcher.command(ranks, argv)


def _signal_name(number: int) -> str:
    try:
        return f"{signal.Signals(number).name} (signal {number})"
    except ValueError:  # a real-time signal
        return f"signal {number}"
