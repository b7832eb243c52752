"""Runs steps as processes of this host, each under a step shim that needs no agent."""

import errno
import importlib.util
import marshal
import os
import select
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from simagent import shim
from simagent.domain.reasons import Reason
from simagent.ports.clock import Waitable, poll_timeout
from simagent.ports.passing import passes
from simagent.ports.runtime import RuntimeFailedError, StepExit, StepPlan
from simagent.runtimes import cgroups, records
from simagent.runtimes.heeding import heeding
from simagent.runtimes.leftovers import end_leftovers
from simagent.runtimes.limits import cores, explain, rlimits
from simagent.runtimes.spawning import SHIM, read_answer, spawn, start_failure

_START_LIMIT = 30.0
_START_POLL = 0.005
_READ_AGAIN = 0.5


class ProcessStep:
    """A step under its shim, which need not be a child of this process."""

    def __init__(self, plan: StepPlan, started: dict[str, Any], shim_fd: int | None) -> None:
        self._plan = plan
        self._started = started
        self._shim = shim_fd
        self._exit: StepExit | None = None

    def __del__(self) -> None:
        if self._shim is not None:
            os.close(self._shim)

    def wait(self, timeout: float | None, *wakes: Waitable) -> StepExit | None:
        """Give the step's end as soon as it is known.

        None after ``timeout`` seconds (a day at most), or when one of ``wakes`` is ready.
        """
        if self._exit is None and self._over(timeout, *wakes):
            self._reap()
            try:
                self._exit = self._read_exit()
            except OSError as error:
                if not passes(error):
                    raise
                time.sleep(_READ_AGAIN)
                return None
            if self._started.get("cgroup"):
                cgroups.remove(Path(self._started["cgroup"]))
        return self._exit

    def stop(self, grace: float) -> None:
        """Ask for the end of the whole process tree: SIGTERM, ``grace`` seconds, SIGKILL."""
        if self._over(0):
            return
        # On a full disk the order is sent without its grace: the plan's counts then.
        with suppress(OSError):
            self._order(grace)
        assert self._shim is not None
        with suppress(ProcessLookupError):
            signal.pidfd_send_signal(self._shim, signal.SIGTERM)

    def signal(self, number: int) -> bool:
        """Send a signal to those of the step's processes that have a use for it; tell of any."""
        tree = self._tree()
        if self._plan.sandbox is not None and self._plan.launch is None:
            tree = [process for process in tree if shim.inside(process)]
        return sum([shim.send(process, number) for process in heeding(tree, number)]) > 0

    def pids(self) -> list[int]:
        """List the processes of the step's tree."""
        return [process.pid for process in self._tree()]

    def _order(self, grace: float) -> None:
        with suppress(ValueError, LookupError, TypeError):
            order = records.read(self._plan, "stop")  # the shim may not have read it yet
            grace = grace if order is None else min(grace, order["grace"])
        records.replace(self._plan.folder / f"step-{self._plan.number}.stop", {"grace": grace})

    def _tree(self) -> list[shim.Process]:
        found = shim.descendants(self._started["shim"]["pid"])
        # Only while the shim lives is its number sure to be its own.
        return [] if self._over(0) else found

    def _over(self, timeout: float | None, *wakes: Waitable) -> bool:
        if self._shim is None:
            return True
        poller = select.poll()
        for fd in (self._shim, *(wake.fileno() for wake in wakes)):
            poller.register(fd, select.POLLIN)
        return any(fd == self._shim for fd, _ in poller.poll(poll_timeout(timeout)))

    def _reap(self) -> None:
        if self._shim is not None:
            with suppress(ChildProcessError):  # an earlier agent started it
                os.waitid(os.P_PIDFD, self._shim, os.WEXITED | os.WNOHANG)

    def _read_exit(self) -> StepExit:
        try:
            record = records.read(self._plan, "exit")
            if record is not None:
                return _step_exit(record, self._plan)
        except (ValueError, LookupError, TypeError):
            return self._lost("the record of its end is corrupt")
        if self._started["boot_id"] != shim.boot_id():
            return self._lost("the machine was restarted")
        if self._started.get("cgroup"):
            cgroups.kill(Path(self._started["cgroup"]))
        count = end_leftovers(self._plan, self._started["step"])
        return self._lost(f"its supervisor was killed; {count} processes left over were ended")

    def _lost(self, why: str) -> StepExit:
        message = f"how the step ended is unknown: {why}"
        return StepExit(reason=Reason.SHIM_LOST, message=message, started=self._started["started"])


class ProcessRuntime:
    """Runs steps as processes of this host. `Runtime` tells what each method does.

    A plan's ``sandbox`` is not made here: its argv is the program that makes it, run as its user.
    """

    name = "process"

    def __init__(
        self, confinement: cgroups.Cgroups | None = None, *, start_limit: float = _START_LIMIT
    ) -> None:
        """Each step gets a cgroup by ``confinement``; without, it is limited by rlimits.

        A start that takes longer than ``start_limit`` seconds has failed.
        """
        self._confinement = confinement
        self._start_limit = start_limit
        # A script is compiled at each start, which would take half of the shim's time.
        source = Path(shim.__file__)
        code = compile(source.read_bytes(), str(source), "exec", dont_inherit=True)
        self._shim = importlib.util.MAGIC_NUMBER + bytes(12) + marshal.dumps(code)

    def trouble(self) -> str | None:
        """Tell of nothing: this machine runs programs."""
        return None

    def about(self) -> list[str]:
        """Tell what it is."""
        return ["programs of this machine"]

    def start(self, plan: StepPlan) -> ProcessStep:
        """Start the step, or attach where it was started before: never runs a step twice.

        Raises `RuntimeFailedError`.
        """
        step = self.attach(plan)
        if step is not None:
            return step
        try:
            self._write(plan)
            pid, answer = spawn(plan)
        except OSError as error:
            full = error.errno in (errno.ENOSPC, errno.EDQUOT)
            raise RuntimeFailedError(
                Reason.DISK_FULL if full else Reason.AGENT_ERROR, f"cannot start the step: {error}"
            ) from error
        said = read_answer(answer, self._start_limit)
        step, failure = None, None
        try:
            step = self.attach(plan)
        except RuntimeFailedError as error:
            failure = error
        if step is None or step._started["shim"]["pid"] != pid:
            # Once the start is called failed, or another's, this one must not happen any more.
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
        step = step or self.attach(plan)
        if step is None:
            raise failure or start_failure(plan, said)
        return step

    def attach(self, plan: StepPlan) -> ProcessStep | None:
        """Find a step that was started before; None if it never was.

        Raises `RuntimeFailedError` where its records contradict each other, and OSError where they
        cannot be read.
        """
        deadline = time.monotonic() + self._start_limit
        while True:
            alive = records.locked(plan)  # looked at first: once it is free, the records are final
            try:
                started = records.read(plan, "started")
            except ValueError as error:
                raise RuntimeFailedError(Reason.AGENT_ERROR, f"corrupt record: {error}") from None
            if started is None and not alive:
                return None
            if started is not None:
                shim_fd = _open_shim(started)
                if shim_fd is not None or not alive:
                    return ProcessStep(plan, started, shim_fd)
            if time.monotonic() > deadline:
                raise RuntimeFailedError(
                    Reason.AGENT_ERROR, f"a step's supervisor in {plan.folder} does not answer"
                )
            time.sleep(_START_POLL)

    @property
    def confines(self) -> bool:
        """Tell whether steps get cgroups."""
        return self._confinement is not None

    def keep_alive(self, folder: Path) -> None:
        """Tell the steps whose records are in ``folder`` that an agent looks after them."""
        # A disk that is full or read-only just now is no reason to end the agent.
        with suppress(OSError):
            if folder.is_dir():
                (folder / shim.ATTENTION).touch(mode=0o600)

    def reap(self, known: Callable[[Path], bool]) -> int:
        """Nothing: the shim of a step whose attempt is gone ends it and leaves nothing."""
        del known
        return 0

    def _write(self, plan: StepPlan) -> None:
        plan.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.keep_alive(plan.folder)
        name = f"step-{plan.number}"
        attempt = plan.folder.parent.name
        cgroup = self._confinement and self._confinement.create(attempt, plan.limits)
        contained = plan.sandbox is not None
        user = _other_user(plan)
        uid = plan.sandbox.uid if plan.sandbox is not None else user and user[0]
        stdin = plan.folder / f"{name}.stdin" if plan.stdin is not None else Path(os.devnull)
        record = {
            "format": shim.FORMAT,
            "argv": plan.argv,
            "env": dict(plan.env),
            "cwd": str(plan.cwd),
            "stdin": str(stdin),
            "stdout": str(plan.stdout),
            "stderr": str(plan.stderr),
            "grace": plan.grace,
            "orphan_limit": plan.orphan_limit,
            "rlimits": rlimits(
                plan.limits, confined=cgroup is not None, uid=uid, contained=contained
            ),
            "cpus": cores(plan.limits, attempt),
            "cgroup": cgroup and str(cgroup),
            "user": user,
            # What makes a container may need a setuid program for it, such as fusermount3.
            "no_new_privs": user is not None and not contained,
            "contained": contained,
            "launches": plan.launch is not None,
        }
        records.replace(plan.folder / SHIM, self._shim)
        if plan.stdin is not None:
            records.replace(stdin, plan.stdin)
        records.replace(plan.folder / f"{name}.json", record)


def _other_user(plan: StepPlan) -> tuple[int, int] | None:
    box = plan.sandbox
    user = plan.user if box is None else (box.uid, box.gid)
    if user is None or os.geteuid() != 0 or user[0] == 0:
        return None
    return user


def _step_exit(record: dict[str, Any], plan: StepPlan) -> StepExit:
    reason, message = explain(record, plan.limits)
    return StepExit(
        exit_code=record["exit_code"],
        signal=record["signal"],
        reason=reason,
        message=message,
        started=record["started"],
        ended=record["ended"],
        seconds=record["seconds"],
        user_seconds=record["user_seconds"],
        system_seconds=record["system_seconds"],
        max_rss_bytes=record["max_rss_bytes"],
        stopped=record["stopped"] is not None,
    )


def _open_shim(started: dict[str, Any]) -> int | None:
    """Open the shim's process; None if it has ended, whoever has its number now. Raises OSError."""
    if started["boot_id"] != shim.boot_id():
        return None
    try:
        fd = os.pidfd_open(started["shim"]["pid"])
    except ProcessLookupError:
        return None
    process = shim.look(started["shim"]["pid"])
    if process is None and not _has_ended(fd):
        os.close(fd)
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
    if process is None or process.start != started["shim"]["start"]:
        os.close(fd)
        return None
    return fd


def _has_ended(pidfd: int) -> bool:
    poller = select.poll()
    poller.register(pidfd, select.POLLIN)
    return bool(poller.poll(0))
