"""What stands beside a step whose ranks lie on several hosts: the doors that lead to the others.

`mpirun` gets there by the broker (`simagent.cluster.broker`), a companion step on this host. It has
a folder of its own beneath the attempt's ``doors``, and is found again, kept up and ended like the
step itself.
"""

import os
import signal
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import structlog

from simagent.cluster import broker, launch
from simagent.cluster.messages import Enter
from simagent.cluster.ssh import SshError
from simagent.domain.reasons import Reason
from simagent.domain.spec import Spec
from simagent.ports.runtime import Runtime, Step, StepPlan
from simagent.ports.store import StoreError
from simagent.telemetry.metrics import Sample
from simagent.worker.context import Context
from simagent.worker.endings import StepLostError
from simagent.worker.head import spanning
from simagent.worker.journal import ARTIFACTS, Journal, steps_folder
from simagent.worker.orders import Detached, Orders, Preempted
from simagent.worker.plans import Over, Planned
from simagent.worker.ranks import signal_name
from simagent.worker.spanning import pinned_image, shared_name

LOOK_EVERY = 0.5
"""Seconds between two looks at what the broker tells."""

_READY_WITHIN = 60.0
_READY_POLL = 0.02
_LEAVE_GRACE = broker.LEAVE_LIMIT + 5.0
_LEAVE_WITHIN = _LEAVE_GRACE + 5.0
_SHARE_TO_LEAVE = 1 / 3  # of the time left, where the machine goes away
_DAEMON_GRACE = 5.0
_ENDED_BY_LEAVING = 4.0
_OWN_FAULTS = frozenset(
    {
        *(signal.SIGSEGV, signal.SIGBUS, signal.SIGABRT, signal.SIGFPE),
        *(signal.SIGILL, signal.SIGTRAP, signal.SIGSYS),
    }
)
_NUMBER = 0
_MOST_SAMPLES = 10_000

log = structlog.get_logger()


class Doors:
    """The broker of one step, and what it tells of the other hosts.

    ``sampled_before`` is the Unix time up to which samples were taken over already.
    """

    def __init__(
        self,
        ctx: Context,
        spec: Spec,
        journal: Journal,
        planned: Planned,
        over: Over,
        *,
        sampled_before: float,
    ) -> None:
        self._ctx = ctx
        self._spec = spec
        self._journal = journal
        self._step_plan = planned.step
        self._over = over
        self._sampled_before = sampled_before
        self._folder = door_folder(journal.folder, planned.step.number)
        self._closed = self._folder / "closed"
        self._runtime: Runtime = ctx.runtimes["process"]
        self._broker: Step | None = None
        self._closing: float | None = None
        self._offset = 0
        self._ready = False
        self._samples: deque[Sample] = deque(maxlen=_MOST_SAMPLES)
        self.lost = ""
        """Which host was lost, or refused, and why; empty where none was."""
        self.gone = ""
        """That the broker ended by itself, and with it all there was elsewhere; else empty."""
        self.died = ""
        """On which host MPI's own daemon was ended from outside; empty where none was."""
        self.crashed = ""
        """On which host it ended by a fault of its own, as it would again; empty where none did."""
        self.dismissed = False
        """Whether `mpirun` told a daemon to end: it lived to see the job's end."""
        self.departs: Preempted | None = None
        """That a host is about to go away, if one is."""

    def open(self) -> None:
        """Start the broker, and wait until it takes asks. Raises `StepLostError`, OSError.

        `RuntimeFailedError` where it cannot be started.
        """
        plan = self._step_plan
        user = self._journal.entry.user or (os.geteuid(), os.getegid())
        above = self._over.folder.parent
        above.mkdir(exist_ok=True)
        above.chmod(0o711)  # whatever the umask: mpirun may be another user's
        launch.lay(self._over.folder, uid=user[0], gid=user[1], files=self._over.files)
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        broker.write_plan(self._folder, self._over.folder, dict(self._peers()))
        log.debug("doors opened", task=self._journal.entry.task, step=plan.number)
        self._broker = self._runtime.start(self._plan())
        deadline = self._ctx.clock.now() + _READY_WITHIN
        while not self._ready:
            exit_ = self._broker.wait(_READY_POLL)
            self.look()
            if not self._ready and (exit_ is not None or self._ctx.clock.now() > deadline):
                why = f"the broker of commands[{plan.number}] did not start: see {self._folder}"
                raise StepLostError(Reason.AGENT_ERROR, why)

    def attach(self) -> None:
        """Find the broker that an earlier incarnation started. Raises `RuntimeFailedError`."""
        self._broker = self._runtime.attach(self._plan())
        with suppress(FileNotFoundError):
            self._closing = self._closed.stat().st_mtime
        self.look()

    def look(self) -> None:
        """Take in what the broker told since the last look."""
        ended = self._broker is None or self._broker.wait(0.0) is not None
        try:
            events, self._offset = broker.read_events(self._folder, self._offset)
        except OSError as error:
            log.warning("hosts not looked at", path=str(self._folder), error=str(error))
            return
        for event in events:
            self._take(event)
        if ended and self._closing is None:
            self.gone = "the broker that leads to the other hosts is gone"

    def close(self, orders: Orders) -> None:
        """End what is left on the other hosts, and the broker; what it then says is final.

        Raises `Detached` where that came meanwhile: the next incarnation goes on.
        """
        self.look()
        if self._closing is None:
            # Written down for an incarnation that reads the same again: a daemon that was left
            # then looks like one that was killed.
            with suppress(OSError):
                self._closed.touch()
            self._closing = self._ctx.clock.wall()
        if self._broker is None:
            return
        now = self._ctx.clock.now()
        self._broker.stop(orders.time_for(_LEAVE_GRACE, now, _SHARE_TO_LEAVE))
        deadline = now + orders.time_for(_LEAVE_WITHIN, now, _SHARE_TO_LEAVE)
        while (left := deadline - self._ctx.clock.now()) > 0:
            if self._broker.wait(left, orders.wake) is not None:
                break
            orders.wake.clear()
            if isinstance(orders.interrupted, Detached):
                raise orders.interrupted
        if orders.to_end or orders.interrupted is not None:
            orders.wake.set()
        self.look()

    def take_samples(self) -> list[Sample]:
        """Take away the samples of the other hosts so far. Any thread may."""
        taken = []
        with suppress(IndexError):
            while True:
                taken.append(self._samples.popleft())
        return taken

    def _take(self, event: broker.Happening) -> None:
        host = event.host
        match event.event:
            case "ready":
                self._ready = True
            case "sampled" if event.sample is not None:
                if event.at > self._sampled_before:
                    self._samples.append(event.sample | {"host": host})
            case "departs" if event.left is not None:
                late = max(0.0, self._ctx.clock.wall() - event.at)
                until = self._ctx.clock.now() + max(0.0, event.left - late)
                self.departs = self.departs or Preempted(f"host {host}: {event.why}", until)
                self._doubt(host, event.why)
            case "lost" | "refused":
                why = f"host {host}: {event.why}"
                log.warning("host lost", task=self._journal.entry.task, host=host, error=event.why)
                self.lost = self.lost or why
                self._doubt(host, event.why)
            case "exited" if event.code == 0:
                self.dismissed = True
            case "exited" if event.signal is not None and not self._was_left(event):
                more = event.why and f": {event.why}"
                by = signal_name(event.signal)
                what = f"host {host}: MPI's daemon there was ended by {by}{more}"
                if event.signal in _OWN_FAULTS:
                    self.crashed = self.crashed or what
                else:
                    self.died = self.died or what

    def _was_left(self, event: broker.Happening) -> bool:
        """Whether its end is that of all daemons that are left."""
        if self._closing is None:
            return False
        late = event.at > self._closing + _ENDED_BY_LEAVING
        return late or event.signal == signal.SIGTERM

    def _doubt(self, host: str, why: str) -> None:
        head = self._ctx.head
        for place in self._over.hosts:
            if head is not None and place.name == host:
                head.doubt(place, why)

    def _peers(self) -> Iterator[tuple[str, broker.Peer]]:
        head = self._ctx.head
        if head is None:
            why = f"the agent does not lead cluster {self._journal.entry.cluster} any more"
            raise StepLostError(Reason.MPI_HOST_LOST, why)
        enter = self._enter()
        for place in self._over.hosts:
            try:
                ssh = head.ssh(place)
            except (SshError, StoreError) as error:
                raise StepLostError(Reason.MPI_HOST_LOST, str(error)) from error
            yield place.address, broker.Peer(name=place.name, ssh=ssh, enter=enter)

    def _enter(self) -> Enter:
        entry, plan = self._journal.entry, self._step_plan
        each = self._over.each
        box = plan.sandbox if self._over.contained or each else None
        user = entry.user or (os.geteuid(), os.getegid())
        return Enter(
            entry=f"{entry.task}-{entry.epoch}-{plan.number}",
            attempt=spanning(entry),
            agent=entry.agent,
            step=plan.number,
            runtime="process" if box is None else entry.runtime,
            image=None if box is None else pinned_image(self._spec, entry),
            folder=f"{shared_name(entry)}/{ARTIFACTS}",
            workdir=self._spec.commands[plan.number].workdir,
            uid=user[0],
            gid=user[1],
            env=dict(self._over.env),
            program=plan.argv if each else (),
            ranks=each,
            grace=min(self._spec.grace, _DAEMON_GRACE),
            shm_bytes=None if box is None else box.shm_bytes,
            memory_bytes=plan.limits.memory_bytes,
            cpus=plan.limits.cpus,
            gpus=0 if box is None else box.gpus,
            sample_every=self._ctx.settings.pace.sample,
        )

    def _plan(self) -> StepPlan:
        entry = self._journal.entry
        passed = ("PATH", "HOME", "LANG", "TZ")
        marks = {
            "SIMAGENT_TASK_ID": entry.task,
            "SIMAGENT_EPOCH": str(entry.epoch),
            "SIMAGENT_DOORS": str(self._step_plan.number),
        }
        return StepPlan(
            folder=self._folder / "steps",
            number=_NUMBER,
            argv=broker.command(self._folder),
            env={name: os.environ[name] for name in passed if name in os.environ} | marks,
            cwd=self._folder,
            stdout=self._folder / "log",
            stderr=self._folder / "log",
            grace=_LEAVE_GRACE,
            orphan_limit=self._ctx.settings.orphan_limit,
        )


def door_folder(attempt: Path, number: int) -> Path:
    """Tell where the broker of a step has its files, under a name that no other's has."""
    return attempt / "doors" / f"{attempt.name}.{number}"


def keep_alive(ctx: Context, journal: Journal) -> None:
    """Tell what an attempt runs on this host that an agent looks after it."""
    keep_folder_alive(ctx, journal.folder)


def keep_folder_alive(ctx: Context, attempt: Path) -> None:
    """Do the same by an attempt's folder alone."""
    folders = [steps_folder(attempt)]
    with suppress(OSError):  # it is being removed: nothing of it is left to be kept alive
        folders += _records(attempt)
    for runtime in ctx.runtimes.values():
        for folder in folders:
            runtime.keep_alive(folder)


def end_doors(ctx: Context, attempt: Path, time_for: Callable[[float], float]) -> None:
    """End the brokers of an attempt, by its folder alone, and with them what runs elsewhere.

    ``time_for`` tells how many seconds something may take. Raises `RuntimeFailedError`.
    """
    nothing = Path(os.devnull)
    for folder in _records(attempt):
        plan = StepPlan(
            folder=folder, number=_NUMBER, argv=(), cwd=attempt, stdout=nothing, stderr=nothing
        )
        step = ctx.runtimes["process"].attach(plan)
        if step is not None and step.wait(0.0) is None:
            step.stop(time_for(_LEAVE_GRACE))
            step.wait(time_for(_LEAVE_WITHIN))


def _records(attempt: Path) -> list[Path]:
    return sorted((attempt / "doors").glob("*/steps"))
