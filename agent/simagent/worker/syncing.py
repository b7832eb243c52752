"""Syncs: what a running task has made so far goes into the store, when somebody asks for it.

One at a time, in a thread of its own: whoever asked asks again how far it is. What was fetched, and
what nobody asks about any more, is removed.
"""

import os
import threading
from contextlib import suppress
from functools import partial
from pathlib import Path

import structlog

from simagent.domain.keys import STREAMS
from simagent.domain.live import Answer, Request, Synced
from simagent.domain.spec import Spec
from simagent.ports.clock import Wake
from simagent.ports.retry import InterruptedRetryError, Retry, retrying
from simagent.ports.store import StoreError
from simagent.transfer.globs import Globs
from simagent.transfer.outputs import EMPTY, Selection, Snapshot, select
from simagent.transfer.publishing import Uploaded, upload_outputs
from simagent.worker.context import Context
from simagent.worker.journal import ARTIFACTS, Journal
from simagent.worker.threads import CoreThread, Threads

_NICE = 10
_FORGOTTEN = 60.0
"""Seconds after which a sync that nobody asks about is given up."""
_FETCHED_WITHIN = 300.0
"""Seconds that whoever asked has to fetch it, before another sync may take its place."""
_PATIENCE = 300.0
_OVER = (
    "its commands are over: wait for its end, then `simagent download` fetches what it published"
)

log = structlog.get_logger()


class _GivenUpError(Exception):
    """Nobody waits for the sync any more, or the task's commands are over."""


class _Job:
    """One sync. Written by its thread, read by the one that answers."""

    def __init__(self, request: Request, now: float) -> None:
        self.name = request.sync
        self.patterns = request.patterns or ("**",)
        self.asked = now
        self.sent = 0
        self.uploaded: Uploaded | None = None
        self.error = ""
        self.thread: CoreThread | None = None

    @property
    def running(self) -> bool:
        """Whether it is not done."""
        return self.uploaded is None and not self.error


class Syncing:
    """The syncs of one attempt."""

    def __init__(self, ctx: Context, spec: Spec, journal: Journal, threads: Threads) -> None:
        self._ctx = ctx
        self._spec = spec
        self._journal = journal
        self._threads = threads
        self._job: _Job | None = None
        self._stop = Wake()
        self._stopped = False
        self._lock = threading.Lock()

    def answer(self, request: Request, *, waits: bool) -> Answer | None:
        """Begin a sync, or tell how far it is; None while there is nothing to tell."""
        if self._stopped:
            return self._refuse(_OVER)
        if self._journal.entry.steps_started is None:
            return self._refuse("its commands have not begun: there is nothing yet")
        job, now = self._job, self._ctx.clock.now()
        if request.over:
            if job is not None and job.name == request.sync:
                self._job = None
                self._remove(job)
            return Answer(epoch=self._journal.entry.epoch)
        if job is None or job.name != request.sync:
            if job is not None and now - job.asked < (
                _FORGOTTEN if job.running else _FETCHED_WITHIN
            ):
                return self._refuse("another sync of it is under way: try again when that is done")
            job = self._begin(request, now, instead_of=job)
            if job is None:
                return self._refuse(_OVER)
        job.asked = now
        if job.running and waits:
            return None
        return self._tell(job)

    def stop(self, within: float) -> None:
        """Give up what is under way, for ``within`` seconds, and remove what was not fetched."""
        with self._lock:  # none begins from now on
            self._stopped = True
            job, self._job = self._job, None
        self._stop.set()
        if job is None:
            return
        if job.thread is not None:
            job.thread.join(within)
        self._remove(job)

    def _begin(self, request: Request, now: float, *, instead_of: _Job | None) -> _Job | None:
        """Begin a sync; None where the commands are over by now."""
        if instead_of is not None:
            self._remove(instead_of)
        with self._lock:
            if self._stopped:
                return None
            job = self._job = _Job(request, now)
            name = f"sync {self._journal.entry.task}"
            job.thread = self._threads.start(name, partial(self._run, job))
        return job

    def _tell(self, job: _Job) -> Answer:
        epoch = self._journal.entry.epoch
        if job.error:
            return Answer(epoch=epoch, error="failed", message=job.error)
        done = job.uploaded
        output, changed = (None, 0) if done is None else (done.output, len(done.changed))
        return Answer(epoch=epoch, sync=Synced(sent=job.sent, output=output, changed=changed))

    def _refuse(self, why: str) -> Answer:
        entry = self._journal.entry
        message = f"task {entry.task}: {why}"
        return Answer(epoch=entry.epoch, error="refused", message=message)

    def _run(self, job: _Job) -> None:
        with suppress(OSError):  # the threads that pack take it over
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICE)
        try:
            job.uploaded = self._upload(job)
        except (OSError, StoreError, InterruptedRetryError, _GivenUpError) as error:
            job.error = f"not synced: {error}"
        except Exception as error:  # it is the answer, and not the task's problem
            log.warning("sync failed", error=repr(error), exc_info=True)
            job.error = f"not synced: {error}"
        if job is not self._job:
            self._remove(job)

    def _upload(self, job: _Job) -> Uploaded:
        ctx, entry = self._ctx, self._journal.entry
        globs = Globs(job.patterns)
        made = select(self._journal.base, self._inputs(), self._spec.outputs, beneath=ARTIFACTS)
        members = []
        for member in made.members:  # where there are many, of many patterns, that takes long
            self._check(job)
            if globs.match(member.path):
                members.append(member)
        logs: dict[str, Path] = {f"{name}.txt": self._journal.logs / name for name in STREAMS}

        def on_progress(count: int) -> None:
            job.sent += count
            self._check(job)

        clock = ctx.clock
        deadline = clock.now() + _PATIENCE
        retry: Retry = partial(retrying, clock=clock, wake=self._stop, deadline=deadline)
        return upload_outputs(
            ctx.ledger.store,
            entry.keys.attempt(entry.epoch).sync(job.name),
            Selection(members, []),
            {name: path for name, path in logs.items() if globs.match(name)},
            epoch=entry.epoch,
            threads=1,
            yields=lambda: True,
            retry=retry,
            clock=clock,
            on_progress=on_progress,
        )

    def _check(self, job: _Job) -> None:
        if self._stopped or job is not self._job:
            raise _GivenUpError("it was given up")
        if self._ctx.clock.now() - job.asked > _FORGOTTEN:
            raise _GivenUpError("nobody waits for it")

    def _inputs(self) -> Snapshot:
        try:
            return Snapshot.load(self._journal.inputs)
        except (OSError, ValueError):
            return EMPTY

    def _remove(self, job: _Job) -> None:
        """Remove what a sync has put into the store; what cannot be goes with the task."""
        entry, store = self._journal.entry, self._ctx.ledger.store
        try:
            for found in list(store.scan(entry.keys.attempt(entry.epoch).sync(job.name).root)):
                store.delete(found.key)
        except StoreError as error:
            log.debug("sync not removed", task=entry.task, error=str(error))
