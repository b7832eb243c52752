"""One attempt, from the claim to the end: prepares, runs the steps, publishes or gives back."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import structlog

from simagent.domain import mutations
from simagent.domain.events import Event
from simagent.domain.mutations import SupersededError, is_mine
from simagent.domain.reasons import Reason
from simagent.domain.spec import Spec
from simagent.domain.state import Attempt, Output, State, Status
from simagent.ledger import CorruptError, TooNewError
from simagent.ports.queue import QueueError
from simagent.ports.retry import InterruptedRetryError, retrying
from simagent.ports.store import NotFoundError
from simagent.telemetry.timeline import Timeline
from simagent.transfer.inputs import InputError
from simagent.worker.bells import BellKeeper
from simagent.worker.context import Context
from simagent.worker.journal import Journal
from simagent.worker.lease import Lease
from simagent.worker.look import Look
from simagent.worker.orders import Detached, Interrupted, LeaseLost, Orders, Partitioned, Preempted
from simagent.worker.prepare import prepare
from simagent.worker.publish import OutputFailedError, publish, stderr_tail
from simagent.worker.steps import Ending, StepLostError, StepRunner
from simagent.worker.telemetry import Telemetry
from simagent.worker.threads import Threads

_FLUSH_SECONDS = 10.0
_T = TypeVar("_T")

log = structlog.get_logger()


class AttemptRun:
    """Carries one claimed task through to its end, or as far as orders let it."""

    def __init__(
        self, ctx: Context, threads: Threads, journal: Journal, state: State, spec: Spec
    ) -> None:
        assert state.lease is not None
        self._ctx = ctx
        self._threads = threads
        self._journal = journal
        self._spec = spec
        self._me = journal.entry.holder
        self._runtime = ctx.runtimes["process"]
        self._timeline = Timeline.from_dict(ctx.clock, journal.entry.attempt.timings)
        self.task = journal.entry.keys
        self.orders = Orders()
        self.bell = BellKeeper(ctx.queue, ctx.clock, ctx.times, self.task, journal.entry.receipt)
        self._steps = StepRunner(ctx, spec, journal, self.orders, self._runtime)
        self._telemetry = Telemetry(ctx, journal, self._steps.pids, threads.crashed)
        self._lease = Lease(
            ctx.lease_ledger,
            ctx.clock,
            ctx.times,
            task=self.task,
            me=self._me,
            beat=state.lease.beat,
            orders=self.orders,
            progress=self._attempt,
            stop_on_partition=spec.on_partition == "stop",
        )
        if state.kill is not None:
            self.orders.ask_kill(state.kill)

    def run(self) -> None:
        """Run to the end; returns early, with everything written down, when detached."""
        with self._companions():
            try:
                ending = self._to_ending()
                if ending is not None:
                    self._finalize(ending)
            except Detached:
                self._telemetry.stop(_FLUSH_SECONDS / 2, final=False)
            except LeaseLost as order:
                self._abandon(order)

    @contextmanager
    def _companions(self) -> Iterator[None]:
        """Run the threads that go along with an attempt."""
        look = Look(
            self._ctx.ledger,
            self._ctx.clock,
            task=self.task,
            orders=self.orders,
            every=self._ctx.settings.look_every,
            keep_alive=lambda: self._runtime.keep_alive(self._journal.steps),
        )
        threads = [
            self._threads.start(f"lease {self.task.id}", self._lease.run),
            self._threads.start(f"look {self.task.id}", look.run),
        ]
        self._telemetry.start()
        try:
            yield
        finally:
            look.stop()
            self._lease.stop()
            self._telemetry.stop(0.0, final=False)
            for thread in threads:
                thread.join(_FLUSH_SECONDS)

    # --- Until the outcome is known -----------------------------------------------------------

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
            return self._give_back(Reason.SHIM_LOST, str(error))
        except Interrupted:
            raise
        except Exception as error:
            log.exception("attempt failed", task=self.task.id)
            return self._give_back(Reason.AGENT_ERROR, f"{type(error).__name__}: {error}")

    def _execute(self) -> Ending:
        try:
            if not self._journal.entry.prepared:
                prepare(
                    self._ctx, self._spec, self._journal, self.orders, self._timeline, self._persist
                )
        except InputError as error:
            return Ending(Status.FAILED, error.reason, str(error))
        if self.orders.kill is None:
            self._change(lambda s: mutations.start_running(s, me=self._me))
        return self._steps.run()

    def _give_back(self, reason: Reason, message: str) -> Ending | None:
        """Give the task back for another attempt; where that is not possible, say how it ends."""
        self._telemetry.stop(_FLUSH_SECONDS)
        attempt = self._attempt().with_(
            reason=reason, message=message, ended=self._ctx.clock.wall()
        )
        change = self._requeue(attempt)
        try:
            self._persist(lambda: self._ctx.ledger.change(self.task, change))
        except SupersededError as error:
            state = self._persist(lambda: self._ctx.ledger.state(self.task))
            if not is_mine(state, self._me):
                raise LeaseLost(str(error)) from error
            if state.kill is not None:
                return Ending(Status.KILLED, Reason.KILLED, f"killed by {state.kill.by}")
            return Ending(Status.ERROR, reason, f"{message}; no attempt is left")
        log.info(Event.TASK_REQUEUED, task=self.task.id, epoch=self._me.epoch, reason=reason.value)
        self._ring()
        self._journal.remove()
        return None

    def _requeue(self, attempt: Attempt) -> Callable[[State], State]:
        return lambda s: mutations.requeue(
            s,
            me=self._me,
            spec=self._spec,
            attempt=attempt,
            checkpoint=None,
            bell_at=self._ctx.clock.wall(),
        )

    def _ring(self) -> None:
        try:
            self.bell.ring()
        except QueueError as error:
            log.warning("bell not rung; the sweep will", task=self.task.id, error=str(error))

    def _abandon(self, order: LeaseLost) -> None:
        """Stop here and report nothing: the task is another's. Local files are kept a while."""
        log.warning(Event.LEASE_LOST, task=self.task.id, epoch=self._me.epoch, error=str(order))
        self._telemetry.stop(0.0, final=False)
        self._ctx.journals.set_aside(self._journal.folder, str(order))

    # --- From the outcome to the end ----------------------------------------------------------

    def _finalize(self, ending: Ending) -> None:
        """Fix the outcome, publish the outputs, end the task; each step may be repeated."""
        attempt = self._attempt().with_(reason=ending.reason, message=ending.message)
        self._journal.write(outcome=ending.outcome, reason=ending.reason, attempt=attempt)
        tail = "" if ending.outcome is Status.SUCCEEDED else stderr_tail(self._journal)
        self._change(
            lambda s: mutations.begin_finalizing(
                s, me=self._me, outcome=ending.outcome, attempt=attempt, stderr_tail=tail
            )
        )
        log.info(
            Event.TASK_FINALIZING,
            task=self.task.id,
            epoch=self._me.epoch,
            outcome=ending.outcome.value,
            reason=ending.reason,
        )
        if not self._telemetry.stop(_FLUSH_SECONDS):
            self._persist(self._telemetry.finish)
        output, attempt = self._publish(attempt)
        state = self._end(output, attempt)
        log.info(
            Event.TASK_PUBLISHED, task=self.task.id, epoch=self._me.epoch, status=state.status.value
        )
        self._forget()

    def _publish(self, attempt: Attempt) -> tuple[Output | None, Attempt]:
        output: Output | None = None
        try:
            output = publish(self._ctx, self._spec, self._journal, self._timeline, self._persist)
        except OutputFailedError as error:
            log.warning("outputs not published", task=self.task.id, error=str(error))
            if attempt.reason is None:
                attempt = attempt.with_(reason=Reason.OUTPUT_FAILED, message=str(error))
        return output, attempt.with_(timings=self._timeline.as_dict(), ended=self._ctx.clock.wall())

    def _end(self, output: Output | None, attempt: Attempt) -> State:
        """Write the terminal state, and read it back."""
        self._lease.end_quietly()
        self._change(
            lambda s: mutations.finish(
                s, me=self._me, output=output, attempt=attempt, at=self._ctx.clock.wall()
            )
        )
        state = self._persist(lambda: self._ctx.ledger.state(self.task))
        if attempt not in state.attempts:
            raise LeaseLost("the terminal state does not show this attempt")
        return state

    def _forget(self) -> None:
        """Remove what only a task under way needs. The journal goes last."""
        self._persist(lambda: self._ctx.ledger.remove_marker(self._journal.entry.group, self.task))
        try:
            self.bell.silence()
        except QueueError as error:
            log.debug("bell not deleted", task=self.task.id, error=str(error))
        self._journal.remove()

    # --- Helpers ------------------------------------------------------------------------------

    def _attempt(self) -> Attempt:
        """What is to be told of this attempt so far."""
        steps = self._steps.records or self._journal.entry.attempt.steps
        return self._journal.entry.attempt.with_(
            steps=steps,
            timings=self._timeline.as_dict(),
            ran_seconds=sum(step.seconds or 0.0 for step in steps),
        )

    def _change(self, change: Callable[[State], State]) -> State:
        """Change the state as the holder. Raises `LeaseLost`, `Detached`."""
        try:
            return self._persist(lambda: self._ctx.ledger.change(self.task, change))
        except SupersededError as error:
            raise LeaseLost(str(error)) from error

    def _persist(self, call: Callable[[], _T]) -> _T:
        """Repeat a call through any outage of the store, until the agent stops or the task is lost.

        A kill or a notice of preemption does not end it: what is asked for needs the store.
        """
        while True:
            try:
                return retrying(call, clock=self._ctx.clock, wake=self.orders.wake)
            except InterruptedRetryError:
                self.orders.wake.clear()
                if isinstance(self.orders.interrupted, Detached | LeaseLost):
                    raise self.orders.interrupted from None
            except (NotFoundError, CorruptError, TooNewError) as error:
                raise LeaseLost(str(error)) from error
