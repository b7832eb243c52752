"""The checkpoint thread of an attempt: every so often it keeps what a later attempt goes on from.

A set is copied on this machine, packed and uploaded under the attempt's own epoch, read back, and
only then named in the task's state, by its holder alone. So wherever this is interrupted, the state
names a set that is whole; older ones are removed after it does.
"""

import os
import threading
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TypeVar

import structlog

from simagent.domain import mutations
from simagent.domain.events import Event
from simagent.domain.mutations import SupersededError
from simagent.domain.spec import Spec
from simagent.domain.state import Checkpoint
from simagent.ledger import CorruptError, TooNewError
from simagent.ports.clock import Wake
from simagent.ports.retry import InterruptedRetryError, Retry, retrying
from simagent.ports.store import StoreError
from simagent.transfer.checkpoint import (
    FileSet,
    UnsettledError,
    copy,
    drop,
    file_clock,
    find,
    store_set,
)
from simagent.transfer.outputs import EMPTY, Snapshot
from simagent.worker.context import Context
from simagent.worker.endings import Left
from simagent.worker.journal import ARTIFACTS, Journal
from simagent.worker.laying import remove_checkpoints
from simagent.worker.orders import Detached, LeaseLost, Orders
from simagent.worker.threads import CoreThread, Threads

_NICE = 10
_NOT_BEGUN = 0.5
"""Seconds between two looks whether the first step was started."""
_SETTLED = 1.0
"""Seconds for which no file of a set may have changed before it is read."""
_LOOK_EVERY = 0.25
_LOOKS_SHARE = 4.0
"""How many times longer than a look through many files the pause after it is."""
_SHORTEST_HUNT, _LONGEST_HUNT = 10.0, 300.0
"""Seconds in which such a moment is looked for."""
_LAST_WITHIN = 45.0
_SHARE_OF_LAST = 0.8  # of the time left; then the task is given back
"""Seconds that a task which is given back may wait for its last set to be stored."""
_JOIN_SECONDS = 10.0
_LONGEST_PAUSE = 30.0

_T = TypeVar("_T")

log = structlog.get_logger()


class _StoppedError(Exception):
    """There is no point in going on with a set."""


class Checkpoints:
    """Keeps checkpoints of one attempt: every so often while `run` runs, and a last one.

    ``latest`` is what the task's state names when the attempt is begun or taken up again.
    """

    def __init__(
        self, ctx: Context, spec: Spec, journal: Journal, orders: Orders, latest: Checkpoint | None
    ) -> None:
        assert spec.checkpoint is not None
        self._ctx = ctx
        self._journal = journal
        self._orders = orders
        self._paths = spec.checkpoint.paths
        self._every = spec.checkpoint.every
        self._number = latest.number if latest is not None else 0
        self._replaced = latest
        self._kept: Snapshot | None = None
        self._stop = Wake()
        self._stopped = False
        self._crowded = False
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
        self._crowded = True
        self._clear()

    def run(self) -> None:
        """Keep sets until `stop`, on whatever the machine has to spare."""
        with suppress(OSError):  # the threads that pack take it over
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICE)
        counted = self._ctx.clock.now()
        due: float | None = None
        while not self._stopped:
            started = self._journal.entry.steps_started
            if due is None and started is not None:
                due = max(min(started, counted), self._last_at()) + self._every
            pause = _NOT_BEGUN if due is None else max(0.0, due - self._ctx.clock.now())
            if self._ctx.clock.wait(pause, self._stop):
                return
            if due is None or self._ctx.clock.now() < due:
                continue
            if not self._keep_one():
                return
            due = self._ctx.clock.now() + self._every

    def last(self, left: Left | None) -> Checkpoint | None:
        """Store a set of a task that is given back, after its steps were ended.

        None where there is nothing new, where files may have been left half-written (then what
        the state names already is better), and where there is no time for it. Raises `Detached`
        and `LeaseLost`.
        """
        now = self._ctx.clock.now()
        deadline = now + self._orders.time_for(_LAST_WITHIN, now, _SHARE_OF_LAST)
        if not self.stop(_JOIN_SECONDS) or left is None:
            return None
        try:
            files = self._find()
            if not files.members or self._is_kept(files):
                return None
            if not (left.by_itself or files.quiet_since(left.told_at - int(_SETTLED * 1e9))):
                self._miss("the command was ended while it may have been writing")
                return None
            check = partial(self._check_last, deadline)
            copies = self._copy(files, check)
            retry: Retry = partial(retrying, clock=self._ctx.clock, deadline=deadline)
            return self._store(copies, retry, check)
        except (StoreError, UnsettledError, OSError, _StoppedError) as error:
            self._miss(str(error))
            return None

    # --- One set ------------------------------------------------------------------------------

    def _keep_one(self) -> bool:
        """Keep a set where there is a new one; False where that has become pointless."""
        began = self._ctx.clock.now()
        try:
            found = self._settled()
            if found is None:
                return True
            files, copies = found
            checkpoint = self._store(copies, self._retry, self._check)
            self._publish(checkpoint, files)
        except (_StoppedError, InterruptedRetryError):
            return False
        except (SupersededError, CorruptError, TooNewError) as error:
            log.debug("no more checkpoints", task=self._journal.entry.task, error=str(error))
            return False  # the lease's thread finds out, too
        except (StoreError, UnsettledError, OSError) as error:
            self._miss(str(error))
            return True
        entry = self._journal.entry
        log.info(
            Event.CHECKPOINT_KEPT,
            task=entry.task,
            epoch=entry.epoch,
            files=checkpoint.files,
            bytes=checkpoint.bytes,
            seconds=round(self._ctx.clock.now() - began, 3),
        )
        self._remove_older(checkpoint)
        return True

    def _settled(self) -> tuple[FileSet, FileSet] | None:
        """Copy a set that nothing writes to; None where there is nothing new.

        Raises `UnsettledError` where there is no such moment for some time, and OSError.
        """
        clock = self._ctx.clock
        began = quiet_since = clock.now()
        seen: FileSet | None = None
        while clock.now() - began < min(max(self._every, _SHORTEST_HUNT), _LONGEST_HUNT):
            look = clock.now()
            files = self._find()
            if not files.members or self._is_kept(files):
                return None
            if seen is None or files.marks != seen.marks:
                seen, quiet_since = files, look
            elif look - quiet_since >= _SETTLED:
                with suppress(UnsettledError):
                    copies = self._copy(files, self._check)
                    if self._find().marks == files.marks:
                        return files, copies
                seen = None
            self._pause(max(_LOOK_EVERY, _LOOKS_SHARE * (clock.now() - look)))
        raise UnsettledError(f"its files were never left alone for {_SETTLED:g} s")

    def _find(self) -> FileSet:
        return find(self._journal.base, self._inputs(), self._paths, beneath=ARTIFACTS)

    def _inputs(self) -> Snapshot:
        try:
            return Snapshot.load(self._journal.inputs)
        except (OSError, ValueError):
            return EMPTY

    def _copy(self, files: FileSet, check: Callable[[], None]) -> FileSet:
        self._crowded = False
        free = self._ctx.free_bytes(self._journal.folder)
        if free - files.bytes < self._ctx.settings.min_free:
            raise OSError(f"no room on the disk to copy {files.bytes} bytes")
        self._clear()
        self._copies.mkdir(parents=True)
        try:
            return copy(files, self._copies, check)
        except BaseException:
            self._clear()
            raise

    @property
    def _copies(self) -> Path:
        return self._journal.scratch / "checkpoint"

    def _clear(self) -> None:
        drop(self._copies)

    def _store(self, copies: FileSet, retry: Retry, check: Callable[[], None]) -> Checkpoint:
        """Upload a set that was copied, under a key that was never used."""
        self._number += 1
        entry = self._journal.entry
        key = entry.keys.attempt(entry.epoch).checkpoint(self._number, entry.incarnation)
        try:
            if not self._journal.kept.exists():  # by it whoever ends the task knows of sets
                Snapshot({}).save(self._journal.kept)
            stored = store_set(self._ctx.ledger.store, key, copies, retry=retry, check=check)
        finally:
            self._clear()
        return Checkpoint(
            epoch=entry.epoch,
            number=self._number,
            archive=key,
            sha256=stored.sha256,
            archive_bytes=stored.archive_bytes,
            files=stored.files,
            bytes=stored.bytes,
            at=self._ctx.clock.wall(),
        )

    def _publish(self, checkpoint: Checkpoint, files: FileSet) -> None:
        me = self._journal.entry.holder
        keep = partial(mutations.keep_checkpoint, me=me, checkpoint=checkpoint)
        self._retry(lambda: self._ctx.ledger.change(self._journal.entry.keys, keep))
        self._kept = Snapshot(files.marks)
        with suppress(OSError):  # without it an agent that starts again keeps the same once more
            self._kept.save(self._journal.kept)

    def _remove_older(self, checkpoint: Checkpoint) -> None:
        """Remove what the state names no more, and what earlier tries have left."""
        task = self._journal.entry.keys
        epochs = {checkpoint.epoch} | ({self._replaced.epoch} if self._replaced else set())
        self._replaced = checkpoint
        try:
            remove_checkpoints(self._ctx, task, epochs, but=checkpoint.archive)
        except StoreError as error:
            log.debug("old checkpoint not removed", task=task.id, error=str(error))

    # --- Whether to go on ---------------------------------------------------------------------

    def _retry(self, call: Callable[[], _T]) -> _T:
        return retrying(call, clock=self._ctx.clock, wake=self._stop, cap=_LONGEST_PAUSE)

    def _pause(self, seconds: float) -> None:
        if self._ctx.clock.wait(seconds, self._stop):
            raise _StoppedError

    def _check(self) -> None:
        if self._stopped:
            raise _StoppedError
        self._check_room()

    def _check_room(self) -> None:
        if self._crowded:
            raise OSError("the disk runs full, and the copy gave way")

    def _check_last(self, deadline: float) -> None:
        if isinstance(self._orders.interrupted, Detached | LeaseLost):
            raise self._orders.interrupted
        if self._ctx.clock.now() >= deadline:
            raise _StoppedError("it took too long to store")
        self._check_room()

    # --- What is known of the last one --------------------------------------------------------

    def _is_kept(self, files: FileSet) -> bool:
        if self._kept is None:  # not before: it is noted, too, where a set was laid back
            self._load()
        return self._kept is not None and dict(self._kept.marks) == dict(files.marks)

    def _load(self) -> None:
        try:
            self._kept = Snapshot.load(self._journal.kept)
        except (OSError, ValueError):
            self._kept = Snapshot({})

    def _last_at(self) -> float:
        """Tell when the last set was kept, as far as it is known: in seconds of the clock."""
        try:
            age = (file_clock() - self._journal.kept.stat().st_mtime_ns) / 1e9
        except OSError:
            return 0.0
        return self._ctx.clock.now() - max(0.0, age)

    def _miss(self, why: str) -> None:
        entry = self._journal.entry
        log.warning(Event.CHECKPOINT_MISSED, task=entry.task, epoch=entry.epoch, error=why)
