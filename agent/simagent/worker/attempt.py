"""One attempt, from the claim to the end: prepares, runs the steps, publishes or gives back."""

import os
import threading
from collections.abc import Callable
from contextlib import suppress

import structlog

from simagent.domain.reasons import Reason
from simagent.domain.spec import Spec
from simagent.domain.state import Attempt, Output, State, Status, Timing
from simagent.ports.images import ImageError
from simagent.telemetry.timeline import Timeline
from simagent.transfer.errors import InputError
from simagent.worker.bells import BellKeeper
from simagent.worker.beside import Beside
from simagent.worker.containers import shut
from simagent.worker.context import Context
from simagent.worker.disk import is_no_space
from simagent.worker.endings import Ending, StepLostError
from simagent.worker.farewell import Farewell
from simagent.worker.gathering import gather, scatter
from simagent.worker.holding import Holding
from simagent.worker.imaging import fetch_image
from simagent.worker.journal import Journal
from simagent.worker.orders import Detached, Interrupted, LeaseLost, Orders, Partitioned, Preempted
from simagent.worker.prepare import prepare
from simagent.worker.publish import OutputFailedError, UnreadOutputsError, publish, stderr_tail
from simagent.worker.recovery import stop_leftovers
from simagent.worker.room import NoRoomError, Patience
from simagent.worker.snapshot import TaskView
from simagent.worker.steps import StepRunner
from simagent.worker.taskview import view_of
from simagent.worker.threads import Threads

_FLUSH_SECONDS = 10.0
_SHARE_TO_FLUSH = 1 / 3  # of the time left
_MOST_CRASHES, _NICE = 3, 10

log = structlog.get_logger()


class AttemptRun:
    """Carries one claimed task through to its end, or as far as orders let it."""

    def __init__(
        self,
        ctx: Context,
        threads: Threads,
        journal: Journal,
        state: State,
        spec: Spec,
        *,
        changed: Callable[[], None] = lambda: None,
        yields: Callable[[], bool] = lambda: False,
    ) -> None:
        """``changed`` is called when it begins another part of its work.

        ``yields`` tells whether commands of others run here, which go before what is done after
        its own.
        """
        self._ctx = ctx
        self._journal = journal
        self._spec = spec
        self._runtime = ctx.runtimes[journal.entry.runtime]
        self._changed = changed
        self._yields = yields
        self.finalizing = journal.entry.outcome is not None
        """Its commands are over, and that stands in the state."""
        self._timeline = Timeline.from_dict(ctx.clock, journal.entry.attempt.timings)
        self.task = journal.entry.keys
        self.orders = Orders()
        self.bell = BellKeeper(ctx.queue, ctx.clock, ctx.times, self.task, journal.entry.receipt)
        self._holding = Holding(ctx, journal, self.orders, self.bell)
        self._steps = StepRunner(ctx, spec, journal, self.orders, self._runtime)
        self._beside = Beside(
            ctx,
            journal,
            state,
            spec,
            threads=threads,
            orders=self.orders,
            steps=self._steps,
            progress=self._attempt,
        )
        self._lease, self._telemetry = self._beside.lease, self._beside.telemetry
        self._checkpoint = state.checkpoint
        if state.kill is not None:
            self.orders.ask_kill(state.kill)

    @property
    def status(self) -> Status:
        """Where it stands. Any thread may ask."""
        if self.finalizing:
            return Status.FINALIZING
        begun = self._journal.entry.steps_started is not None
        return Status.RUNNING if begun else Status.PREPARING

    def interrupt(self, order: Interrupted) -> None:
        """Do not go on here, as an order says; that the machine goes away is in the state first.

        Any thread may call it.
        """
        self.orders.interrupt(order)
        if isinstance(order, Preempted):
            self._lease.hurry()

    def view(self) -> TaskView:
        """Tell how it stands. Any thread may ask."""
        return view_of(
            self._journal.entry,
            self._spec,
            self.status,
            clock=self._ctx.clock,
            lease=self._lease,
            step=self._steps.begun,
            sample=self._telemetry.last,
        )

    def run(self) -> None:
        """Run to the end; returns early, with everything written down, when detached."""
        with self._beside.going():
            try:
                ending = self._to_ending()
                scatter(self._ctx, self._journal.entry)
                if ending is not None:
                    self._finalize(ending)
            except Detached:
                self._telemetry.stop(_FLUSH_SECONDS / 2, final=False)
            except LeaseLost as order:
                self._telemetry.stop(0.0, final=False)
                stop_leftovers(self._ctx, self._journal.folder, self.orders)
                scatter(self._ctx, self._journal.entry)
                self._holding.abandon(order)
            except Exception:
                # The next incarnation goes on; the count keeps that from happening for ever.
                with suppress(OSError):
                    self._journal.write(crashes=self._journal.entry.crashes + 1)
                raise

    def _to_ending(self) -> Ending | None:
        """Prepare and run; None where the task was given back."""
        entry = self._journal.entry
        if entry.outcome is not None:
            return Ending(entry.outcome, entry.reason, entry.attempt.message)
        try:
            return self._execute()
        except Preempted as order:
            if self._spec.on_preempt == "fail":
                return Ending(Status.FAILED, Reason.PREEMPTED, str(order))
            return self._give_back(Reason.PREEMPTED, str(order))
        except Partitioned as order:
            return self._give_back(Reason.PARTITIONED, str(order))
        except StepLostError as error:
            return self._give_back(error.reason, str(error))
        except Interrupted:
            raise
        except Exception as error:
            log.exception("attempt failed", task=self.task.id)
            return self._give_back(Reason.AGENT_ERROR, f"{type(error).__name__}: {error}")

    def _execute(self) -> Ending:
        try:
            fetch_image(self._ctx, self._spec, self._journal, self.orders, timeline=self._timeline)
            refused = gather(
                self._ctx, self._spec, self._journal, self.orders, timeline=self._timeline
            )
            if refused is not None:
                return refused
            if not self._journal.entry.prepared:
                prepare(
                    self._ctx,
                    self._spec,
                    self._journal,
                    self.orders,
                    timeline=self._timeline,
                    checkpoint=self._checkpoint,
                )
            if not self.orders.to_end:
                self._holding.start_running()
                self._changed()
            return self._steps.run()
        except InputError as error:
            return Ending(Status.FAILED, error.reason, str(error))
        except ImageError as error:
            if error.retryable:
                raise StepLostError(error.reason, str(error)) from error
            return Ending(Status.FAILED, error.reason, str(error))
        except OSError as error:
            if not is_no_space(error):
                raise
            stop_leftovers(self._ctx, self._journal.folder, self.orders)
            what = "to go on" if self._journal.entry.prepared else "for the inputs"
            return Ending(Status.FAILED, Reason.DISK_FULL, f"no room {what}: {error}")

    def _give_back(self, reason: Reason, message: str) -> Ending | None:
        stop_leftovers(self._ctx, self._journal.folder, self.orders)
        ended = self._ctx.clock.wall()
        farewell = Farewell(self._ctx, self._spec, self._journal, self.orders)
        kept, outputs = farewell.take(self._steps.left, self._telemetry, self._beside.checkpoints)
        attempt = self._attempt().with_(reason=reason, message=message, ended=ended)
        return self._holding.give_back(self._spec, attempt.with_(partial=outputs), kept)

    def _finalize(self, ending: Ending) -> None:
        """Fix the outcome, publish the outputs, end the task; each step may be repeated."""
        attempt = self._attempt().with_(reason=ending.reason, message=ending.message)
        tail = "" if ending.outcome is Status.SUCCEEDED else stderr_tail(self._journal)
        self._holding.fix(ending, attempt, tail)
        with suppress(OSError):  # else no harm is done that its own steps could not do
            shut(self._journal)
        self._make_way()
        self._beside.settle(_FLUSH_SECONDS)
        within = self.orders.time_for(_FLUSH_SECONDS, self._ctx.clock.now(), _SHARE_TO_FLUSH)
        if not self._telemetry.stop(within):
            self._ship_rest()
        output, attempt = self._publish(attempt)
        self._lease.end_quietly()
        self._holding.end(output, attempt)

    def _make_way(self) -> None:
        """From now on others may begin here, and their commands go before what is left to do.

        What this thread starts, to pack and upload, is as nice as it is (sched(7)).
        """
        self.finalizing = True
        with suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICE)
        self._changed()

    def _ship_rest(self) -> None:
        """Bring the rest of the telemetry into the store; what there is no room for is cut."""
        try:
            Patience(self._ctx, self._journal, self._holding.insist)(self._telemetry.finish)
        except NoRoomError as error:
            log.warning("no room for all of the logs", task=self.task.id, error=str(error))
            self._holding.persist(self._telemetry.cut)

    def _publish(self, attempt: Attempt) -> tuple[Output | None, Attempt]:
        output: Output | None = None
        try:
            if self._journal.entry.crashes >= _MOST_CRASHES:
                raise OutputFailedError("publishing them ended the agent again and again")
            output = publish(
                self._ctx,
                self._spec,
                self._journal,
                self._timeline,
                self._holding,
                yields=self._yields,
                orders=self.orders,
                reason=attempt.reason,
            )
        except OutputFailedError as error:
            output = error.output if isinstance(error, UnreadOutputsError) else None
            log.warning("outputs not published", task=self.task.id, error=str(error))
            if attempt.reason is None:
                attempt = attempt.with_(reason=error.reason, message=str(error))
            else:
                attempt = attempt.with_(message=f"{attempt.message}; {error}")
        timings = attempt.timings | self._timeline.as_dict()
        return output, attempt.with_(timings=timings, ended=self._ctx.clock.wall())

    def _attempt(self) -> Attempt:
        """What is to be told of this attempt so far."""
        steps = self._steps.records or self._journal.entry.attempt.steps
        ran = {
            f"step-{step.number}": Timing(seconds=step.seconds, started=step.started)
            for step in steps
            if step.seconds is not None
        }
        attempt = self._journal.entry.attempt.with_(
            steps=steps,
            timings=self._timeline.as_dict() | ran,
            ran_seconds=sum(timing.seconds for timing in ran.values()) if ran else None,
        )
        return self.orders.noted(attempt)
