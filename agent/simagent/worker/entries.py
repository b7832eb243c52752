"""What runs on a member for steps of its head, with records that outlive the agent."""

import re
import threading
from pathlib import Path

import structlog

from simagent.cluster.duties import RefusedError
from simagent.cluster.messages import Enter, Exited
from simagent.domain.cluster import Head, Spanning
from simagent.domain.events import Event
from simagent.domain.reasons import Reason
from simagent.ports.clock import Waitable
from simagent.ports.runtime import Runtime, RuntimeFailedError, Step, StepExit, StepPlan
from simagent.transfer.removal import remove_tree
from simagent.worker import entry_records
from simagent.worker.departure import Departure
from simagent.worker.entry import Entry, EntryHold
from simagent.worker.entry_plans import check_request, have_image, plan_entry
from simagent.worker.membership import Membership
from simagent.worker.snapshot import RunView

UNASKED = 60.0
"""Seconds for which a run may be without a connection before it is ended: agents are restarted."""
FRESH = 15.0
"""Seconds since the start of a run in which the head's record need not name its attempt."""
KEPT = 600.0
"""Seconds for which the end of a run is told again to who asks for it."""

_NAME = re.compile(r"[0-9A-Za-z][0-9A-Za-z._-]{0,199}")
_LOOK_AGAIN = 1.0

log = structlog.get_logger()


class Entries:
    """All that runs here for the head. Any thread may call any method."""

    def __init__(self, member: Membership) -> None:
        self._member = member
        self._entries: dict[str, Entry] = {}
        self._lock = threading.Lock()
        self._newer: set[str] = set()
        """Folders of runs that a newer version began: they end by themselves."""
        self.closed = ""
        """Why no more are begun; empty: they are."""
        self.departure = Departure(member.clock)
        member.entries.mkdir(mode=0o700, parents=True, exist_ok=True)
        for folder in sorted(member.entries.iterdir()):
            try:
                entry = entry_records.read(folder, member.clock)
            except entry_records.NewerRunError:
                self._newer.add(folder.name)
            else:
                if entry is not None:
                    self._entries[folder.name] = entry

    def enter(self, request: Enter, gone: Waitable) -> EntryHold:
        """Start a run, or give that which was started for the same entry before.

        Raises `RefusedError`.
        """
        entry = self._entry(request)
        with entry.lock:
            if self._entries.get(request.entry) is not entry:
                return self.enter(request, gone)  # forgotten while another connection had it
            if (entry.request.attempt, entry.request.command) != (request.attempt, request.command):
                why = f"entry: {request.entry} is another run's: name each run anew"
                raise RefusedError(Reason.AGENT_ERROR, why)
            if entry.exited is None and entry.step is None:
                try:
                    self._start(entry, gone)
                except RefusedError:
                    if not entry.recorded:
                        self._forget(entry)
                    raise
            return EntryHold(
                entry,
                self._conclude,
                host=self._member.host,
                workdir=self._member.folder,  # not the shared one: a file server may hang
                clock=self._member.clock,
            )

    def running(self) -> tuple[Spanning, ...]:
        """List the attempts that have runs here."""
        return tuple({it.request.attempt: None for it in self._all() if it.exited is None})

    def views(self) -> tuple[RunView, ...]:
        """Tell what runs."""
        now = self._member.clock.now()
        return tuple(
            RunView(
                project=entry.request.attempt.project,
                task=entry.request.attempt.task,
                epoch=entry.request.attempt.epoch,
                entry=entry.request.entry,
                age=now - entry.since,
            )
            for entry in self._all()
            if entry.exited is None
        )

    @property
    def count(self) -> int:
        """The number of runs."""
        return sum(entry.exited is None for entry in self._all())

    def holds(self, folder: Path) -> bool:
        """Tell whether a runtime's folder of records is that of a run which is not over."""
        if folder.parent.parent == self.root and folder.parent.name in self._newer:
            return True
        entry = self._entries.get(folder.parent.name)
        return entry is not None and entry.exited is None and entry.folder == folder.parent

    @property
    def root(self) -> Path:
        """Where their folders are."""
        return self._member.entries

    def handles(self) -> set[str]:
        """Give the handles of the images that runs use."""
        return {e.image for e in self._all() if e.image is not None and e.exited is None}

    def judge(self, head: Head | None, read_at: float) -> None:
        """End what the head does not name any more; None: there is no head.

        ``read_at`` is when the read of its record began: what was begun shortly before, or since,
        need not be in there.
        """
        named = set() if head is None else {(s.project, s.task, s.epoch) for s in head.attempts}
        for entry in self._all():
            attempt = entry.request.attempt
            known = (attempt.project, attempt.task, attempt.epoch) in named
            if not known and not entry.why and entry.since <= read_at - FRESH:
                entry.end("the head does not have its attempt any more", entry.request.grace)

    def tend(self) -> None:
        """Look after what no connection has a hold on; to be called every second or so."""
        now = self._member.clock.now()
        for entry in self._all():
            if entry.exited is None:
                runtime = self._member.runtimes.get(entry.request.runtime)
                if runtime is not None:
                    runtime.keep_alive(entry.folder / "steps")
            if not entry.lock.acquire(blocking=False):
                continue  # it is being started, or ended
            try:
                self._tend(entry, now)
            finally:
                entry.lock.release()

    def end_all(self, why: str, grace: float) -> None:
        """Have everything ended; returns at once."""
        for entry in self._all():
            entry.end(why, min(grace, entry.request.grace))

    # --- One of them --------------------------------------------------------------------------

    def _entry(self, request: Enter) -> Entry:
        """Find a run, or make a new one that is not begun yet. Raises `RefusedError`."""
        if not _NAME.fullmatch(request.entry):
            raise RefusedError(
                Reason.AGENT_ERROR, "entry: use up to 200 letters, digits, '.', '-' and '_'"
            )
        if request.entry in self._newer:
            why = f"{Reason.AGENT_TOO_OLD}: a newer version of the agent has begun it here"
            raise RefusedError(Reason.AGENT_ERROR, why)
        with self._lock:
            entry = self._entries.get(request.entry)
            if entry is None:
                if self.closed:
                    raise RefusedError(Reason.MPI_HOST_LOST, self.closed)
                folder = self._member.entries / request.entry
                entry = Entry(request, folder, self._member.clock)
                entry.alone_since = None  # whoever asked for it is here
                self._entries[request.entry] = entry
            return entry

    def _start(self, entry: Entry, gone: Waitable) -> None:
        """Start a run, or find it where it was started before. Raises `RefusedError`."""
        member, request = self._member, entry.request
        if not entry.recorded:
            check_request(member, request)
            entry.image = have_image(member, request.runtime, request.image, gone)
            plan = plan_entry(member, request, entry.folder, entry.image)
            try:
                entry_records.begin(entry, member.folder.parent)
            except OSError as error:
                remove_tree(entry.folder)
                why = f"{entry.folder}: {error.strerror or error}"
                raise RefusedError(Reason.AGENT_ERROR, why) from None
        else:
            plan = plan_entry(member, request, entry.folder, entry.image)
        entry.step = self._started(entry, plan, gone)
        attempt = request.attempt
        log.info(Event.RANKS_STARTED, task=attempt.task, epoch=attempt.epoch, entry=request.entry)
        entry.obey()

    def _started(self, entry: Entry, plan: StepPlan, gone: Waitable) -> Step:
        """Have the step of a plan run, waiting while its engine does not tell whether it does."""
        clock, runtime = self._member.clock, self._runtime(entry)
        deadline = clock.now() + UNASKED
        while True:
            try:
                return runtime.start(plan)
            except RuntimeFailedError as error:
                step, known = _attach(runtime, plan)
                if step is not None:
                    return step
                if known:
                    entry.recorded = False
                    remove_tree(entry.folder)
                    raise RefusedError(error.reason, str(error)) from None
                if clock.now() > deadline or clock.wait(_LOOK_AGAIN, gone):
                    raise RefusedError(error.reason, str(error)) from None

    def _runtime(self, entry: Entry) -> Runtime:
        name = entry.request.runtime
        if name not in self._member.runtimes:
            raise RefusedError(Reason.RUNTIME_FAILED, f"{name} is not set up here any more")
        return self._member.runtimes[name]

    def _tend(self, entry: Entry, now: float) -> None:
        if entry.exited is not None:
            if now - entry.since > KEPT:
                self._forget(entry)
            return
        if entry.step is None:
            self._adopt(entry)
        entry.obey()
        if entry.step is None or entry.alone_since is None:
            return
        exit_ = entry.step.wait(0.0)
        if exit_ is not None:
            self._conclude(entry, exit_)
        elif now - entry.alone_since > UNASKED and not entry.why:
            entry.end(f"nobody asked for it within {UNASKED:g} s", entry.request.grace)

    def _adopt(self, entry: Entry) -> None:
        """Find the step of a run that an earlier agent started; forget one that never was."""
        try:
            plan = plan_entry(self._member, entry.request, entry.folder, entry.image)
            step, known = _attach(self._runtime(entry), plan)
        except RefusedError as error:  # the settings are others now
            log.warning("ranks cannot be looked after", folder=str(entry.folder), error=str(error))
            return
        if step is not None:
            entry.step = step
        elif known:
            self._forget(entry)

    def _conclude(self, entry: Entry, exit_: StepExit) -> Exited:
        """Write down how a run ended, and remove what it leaves."""
        with entry.lock:
            if entry.exited is not None:
                return entry.exited
            exited = entry.told(exit_)
            entry_records.conclude(entry, exited)
            entry.exited, entry.since = exited, self._member.clock.now()
        attempt, request = entry.request.attempt, entry.request
        log.info(
            Event.RANKS_ENDED,
            task=attempt.task,
            epoch=attempt.epoch,
            entry=request.entry,
            exit_code=exited.code,
            signal=exited.signal,
            message=exited.message,
        )
        return exited

    def _forget(self, entry: Entry) -> None:
        """Forget a run; its lock is held. Only then a new one may have its name, and its folder."""
        remove_tree(entry.folder)
        with self._lock:
            self._entries.pop(entry.folder.name, None)

    def _all(self) -> list[Entry]:
        with self._lock:
            return list(self._entries.values())


def _attach(runtime: Runtime, plan: StepPlan) -> tuple[Step | None, bool]:
    """Find a step; the second tells whether it is known at all."""
    try:
        return runtime.attach(plan), True
    except RuntimeFailedError as error:
        return None, error.reason is not Reason.RUNTIME_FAILED
