"""The checkpoint thread of an attempt: every so often it keeps what a later attempt goes on from.

A set is copied on this machine, packed and uploaded under the attempt's own epoch, read back, and
only then named in the task's state, by its holder alone. So wherever this is interrupted, the state
names a set that is whole; older ones are removed after it does.
"""

import os
import signal
import threading
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import TypeVar

import structlog

from simagent.domain.events import Event
from simagent.domain.mutations import SupersededError
from simagent.domain.spec import Spec
from simagent.domain.state import Checkpoint
from simagent.ledger import CorruptError, TooNewError
from simagent.ports.clock import Wake
from simagent.ports.retry import InterruptedRetryError, Retry, retrying
from simagent.ports.store import StoreError
from simagent.transfer.checkpoint import FileSet, UnsettledError
from simagent.worker.checkpoint_sets import SETTLED, CheckpointSets
from simagent.worker.context import Context
from simagent.worker.endings import Left
from simagent.worker.journal import Journal
from simagent.worker.orders import Detached, LeaseLost, Orders
from simagent.worker.threads import CoreThread, Threads

_NICE = 10
_NOT_BEGUN = 0.5
"""Seconds between two looks whether the first step was started."""
_SHORTEST_HUNT, _LONGEST_HUNT = 10.0, 300.0
"""Seconds in which a set that nothing writes to is looked for."""
_SAVE_WITHIN = 60.0
_SHARE_TO_SAVE = 1 / 3  # of the time left
"""Seconds that a simulator has to write a set before it is told to end."""
_LAST_WITHIN = 45.0
_SHARE_OF_LAST = 0.75  # of the time left; then the task is given back
"""Seconds that a task which is given back may wait for its last set to be stored."""
_JOIN_SECONDS = 10.0
_SHARE_TO_JOIN = 0.1
_LONGEST_PAUSE = 30.0

_T = TypeVar("_T")

log = structlog.get_logger()


class _StoppedError(Exception):
    """There is no point in going on with a set."""


class _OverError(Exception):
    """The command has ended."""


class Checkpoints:
    """Keeps checkpoints of one attempt: every so often while `run` runs, and a last one.

    ``latest`` is what the task's state names when the attempt is begun or taken up again.
    ``signal`` sends a signal to the command that runs, and tells whether anything there heeds it.
    """

    def __init__(
        self,
        ctx: Context,
        spec: Spec,
        journal: Journal,
        orders: Orders,
        latest: Checkpoint | None,
        *,
        signal: Callable[[int], bool] = lambda _number: False,
    ) -> None:
        assert spec.checkpoint is not None
        self._ctx = ctx
        self._journal = journal
        self._orders = orders
        self._every = spec.checkpoint.every
        self._asks_by = spec.checkpoint.signal
        self._signal = signal
        self._sets = CheckpointSets(ctx, spec, journal, latest)
        self._saved: FileSet | None = None
        self._stop = Wake()
        self._stopped = False
        self._thread: CoreThread | None = None

    def start(self, threads: Threads) -> None:
        """Keep sets in a thread of its own."""
        self._thread = threads.start(f"checkpoints {self._journal.entry.task}", self.run)

    def stop(self, within: float) -> bool:
        """End the thread, and give up what it is at; tell whether it has ended in so many seconds.

        A call of the store's may hang.
        """
        self._stopped = True
        self._stop.set()
        if self._thread is not None:
            self._thread.join(within)
        return self._thread is None or not self._thread.is_alive()

    def make_room(self) -> None:
        """Give up the set that is being kept, and the room it takes: the task needs it.

        Any thread may call it.
        """
        self._sets.make_room()

    def run(self) -> None:
        """Keep sets until `stop`, on whatever the machine has to spare."""
        with suppress(OSError):  # the threads that pack take it over
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICE)
        counted = self._ctx.clock.now()
        due: float | None = None
        while not self._stopped:
            started = self._journal.entry.steps_started
            if due is None and started is not None:
                due = max(min(started, counted), self._sets.last_at()) + self._every
            pause = _NOT_BEGUN if due is None else max(0.0, due - self._ctx.clock.now())
            if self._ctx.clock.wait(pause, self._stop):
                return
            if due is None or self._ctx.clock.now() < due:
                continue
            if not self._keep_one():
                return
            due = self._ctx.clock.now() + self._every

    # --- The last one -------------------------------------------------------------------------

    def save(self, over: Callable[[], bool]) -> None:
        """Have a simulator that can be asked to write a set, and copy that, before it has to end.

        It has a share of the time that is left, less where it is ``over``. `last` stores the set.
        """
        now = self._ctx.clock.now()
        within = self._orders.time_for(_SAVE_WITHIN, now, _SHARE_TO_SAVE)
        if self._asks_by is None:
            return
        self._end_thread()
        try:
            before = self._sets.find()
            if not self._ask():
                return
            within -= self._ctx.clock.now() - now
            pause = partial(self._pause_last, over)
            check = partial(self._check_last, now + within)
            found = self._sets.settled(within, pause, check, unlike=before)
            self._saved = found and found[1]
        except _OverError:  # `last` looks at what it has left
            return
        except (UnsettledError, OSError, _StoppedError) as error:
            self._miss(str(error))
        except (Detached, LeaseLost):  # who called it looks at what stands now
            return

    def last(self, left: Left | None) -> Checkpoint | None:
        """Store a set of a task that is given back, after its steps were ended.

        None where there is nothing new, where files may have been left half-written (then what
        the state names already is better), and where there is no time for it. Raises `Detached`
        and `LeaseLost`.
        """
        now = self._ctx.clock.now()
        deadline = now + self._orders.time_for(_LAST_WITHIN, now, _SHARE_OF_LAST)
        if self._saved is None:
            self._end_thread()
        try:
            check = partial(self._check_last, deadline)
            copies = self._saved or self._left_behind(left, check)
            if copies is None:
                return None
            retry: Retry = partial(retrying, clock=self._ctx.clock, deadline=deadline)
            began, threads = self._ctx.clock.now(), self._ctx.settings.pack_threads
            checkpoint = self._sets.store(copies, retry, check, threads=threads)
        except (StoreError, UnsettledError, OSError, _StoppedError) as error:
            self._miss(str(error))
            return None
        self._tell(checkpoint, began)
        return checkpoint

    def _left_behind(self, left: Left | None, check: Callable[[], None]) -> FileSet | None:
        """Copy what the commands left, where that is a set. Raises as `CheckpointSets.copy`."""
        files = self._sets.find()
        if left is None or not self._sets.is_new(files):
            return None
        if not (left.by_itself or files.quiet_since(left.told_at - int(SETTLED * 1e9))):
            self._miss("the command was ended while it may have been writing")
            return None
        return self._sets.copy(files, check)

    def _end_thread(self) -> None:
        """End the thread; where a call of the store's hangs, go on without it."""
        within = self._orders.time_for(_JOIN_SECONDS, self._ctx.clock.now(), _SHARE_TO_JOIN)
        if not self.stop(within):
            self._sets = self._sets.beside()

    # --- One set ------------------------------------------------------------------------------

    def _keep_one(self) -> bool:
        """Keep a set where there is a new one; False where that has become pointless."""
        began, sets = self._ctx.clock.now(), self._sets
        try:
            within = min(max(self._every, _SHORTEST_HUNT), _LONGEST_HUNT)
            before = sets.find() if self._asks_by is not None else None
            asked_for = before if self._ask() else None
            found = sets.settled(within, self._pause, self._check, unlike=asked_for)
            if found is None:
                return True
            files, copies = found
            checkpoint = sets.store(copies, self._retry, self._check)
            sets.publish(checkpoint, files, self._retry)
        except (_StoppedError, InterruptedRetryError):
            return False
        except (SupersededError, CorruptError, TooNewError) as error:
            log.debug("no more checkpoints", task=self._journal.entry.task, error=str(error))
            return False  # the lease's thread finds out, too
        except (StoreError, UnsettledError, OSError) as error:
            self._miss(str(error))
            return True
        self._tell(checkpoint, began)
        if not self._stopped:  # a newer one may be on its way
            sets.remove_older(checkpoint)
        return True

    def _ask(self) -> bool:
        """Ask the simulator to write a set; tell whether it may."""
        if self._asks_by is None:
            return False
        asked = self._signal(signal.Signals[f"SIG{self._asks_by}"])
        if not asked:
            self._miss(f"nothing that runs heeds SIG{self._asks_by}")
        return asked

    # --- Whether to go on ---------------------------------------------------------------------

    def _retry(self, call: Callable[[], _T]) -> _T:
        return retrying(call, clock=self._ctx.clock, wake=self._stop, cap=_LONGEST_PAUSE)

    def _pause(self, seconds: float) -> None:
        if self._ctx.clock.wait(seconds, self._stop):
            raise _StoppedError

    def _pause_last(self, over: Callable[[], bool], seconds: float) -> None:
        if over():
            raise _OverError
        self._ctx.clock.wait(seconds)

    def _check(self) -> None:
        if self._stopped:
            raise _StoppedError
        self._sets.check_room()

    def _check_last(self, deadline: float) -> None:
        if isinstance(self._orders.interrupted, Detached | LeaseLost):
            raise self._orders.interrupted
        if self._ctx.clock.now() >= deadline:
            raise _StoppedError("it took too long to store")
        self._sets.check_room()

    # --- What others learn --------------------------------------------------------------------

    def _tell(self, checkpoint: Checkpoint, began: float) -> None:
        entry = self._journal.entry
        log.info(
            Event.CHECKPOINT_KEPT,
            task=entry.task,
            epoch=entry.epoch,
            files=checkpoint.files,
            bytes=checkpoint.bytes,
            seconds=round(self._ctx.clock.now() - began, 3),
        )

    def _miss(self, why: str) -> None:
        entry = self._journal.entry
        log.warning(Event.CHECKPOINT_MISSED, task=entry.task, epoch=entry.epoch, error=why)


def open_checkpoints(
    ctx: Context,
    spec: Spec,
    journal: Journal,
    orders: Orders,
    latest: Checkpoint | None,
    *,
    signal: Callable[[int], bool],
) -> Checkpoints | None:
    """Make what keeps the checkpoints of a task that asks for them."""
    if spec.checkpoint is None:
        return None
    return Checkpoints(ctx, spec, journal, orders, latest, signal=signal)
