"""The step shim: supervises one step, so that the step needs no agent.

Run as ``python -I -S shim FOLDER NUMBER``, with the standard library only and everything imported
at the start: an upgrade of the agent cannot break a shim that runs. It reads the plan
``step-N.json`` and leaves its records beside it:

``step-N.lock``     flocked for the shim's life, never by the step: held means alive
``step-N.started``  who runs, on disk before the program is executed: never executed again
``step-N.exit``     how it ended, on disk before the lock is free; missing then: the shim was lost
``step-N.stop``     written by the agent before it sends SIGTERM: ``{"grace": seconds}``
``agent``           touched by the agent as long as one looks after the steps

Its standard output is closed when the program was executed or could not be: whoever started it
reads to the end of it. What it reads there is why the step could not be started at all.
"""

import contextlib
import ctypes
import errno
import fcntl
import json
import os
import resource
import select
import signal
import sys
import time

FORMAT = 1
LEFTOVER_GRACE = 2.0
"""Seconds that processes get which are left over when their step's main process has ended."""
ATTENTION = "agent"

_RECORD_BYTES = 4096
_MESSAGE_CHARACTERS = 250  # twelve bytes each in JSON, at worst
_PR_SET_PDEATHSIG, _PR_SET_NAME, _PR_SET_CHILD_SUBREAPER = 1, 15, 36  # prctl(2)
_PR_SET_NO_NEW_PRIVS = 38
_WATCHED = (signal.SIGCHLD, signal.SIGTERM)
_IGNORED = "HUP INT QUIT PIPE ALRM USR1 USR2 TSTP TTIN TTOU"
_LOCK_TRIES, _LOCK_PAUSE = 50, 0.01
_START_PAUSE = 0.05
_MOST_FDS = 2**31 - 1
_TOO_LITTLE = b'["not_executable", "resources.memory is too little to start any program"]'
_PASSES, _KILL_PAUSE, _KILL_PAUSE_MOST = 100, 0.02, 1.0


class Process:
    """One process as /proc/PID/stat shows it; proc_pid_stat(5) explains the fields."""

    __slots__ = ("parent", "pid", "session", "start", "state")

    def __init__(self, pid: int, stat: bytes) -> None:
        fields = stat[stat.rindex(b")") + 2 :].split()
        self.pid = pid
        self.state = fields[0].decode()
        self.parent = int(fields[1])
        self.session = int(fields[3])
        self.start = int(fields[19])


def look(pid: int) -> Process | None:
    """Look at one process; None if there is none."""
    try:
        fd = os.open(f"/proc/{pid}/stat", os.O_RDONLY)
    except OSError:
        return None
    try:
        return Process(pid, os.read(fd, 4096))
    except (OSError, ValueError):  # it ended meanwhile
        return None
    finally:
        os.close(fd)


def processes() -> list[Process]:
    """List the processes that can be seen."""
    seen = (look(int(name)) for name in os.listdir("/proc") if name.isdigit())
    return [process for process in seen if process is not None]


def descendants(root: int) -> list[Process]:
    """List the living descendants of a process. Misses some whose parents end meanwhile."""
    below: dict[int, list[Process]] = {}
    for process in processes():
        below.setdefault(process.parent, []).append(process)
    found, todo = [], [root]
    while todo:
        children = below.pop(todo.pop(), [])
        found += children
        todo += [child.pid for child in children]
    return [process for process in found if process.state not in "ZX"]


def inside(process: Process) -> bool:
    """Tell whether a process is a program in a container, not one that keeps the container up."""
    try:
        with open(f"/proc/{process.pid}/status", "rb") as file:
            numbers = next(line.split()[1:] for line in file if line.startswith(b"NSpid:"))
    except (OSError, StopIteration):  # it ended meanwhile
        return False
    return numbers[1:2] not in ([], [b"1"])


def send(process: Process, number: int) -> bool:
    """Signal this very process, never another that got its number; tell whether it was there."""
    try:
        fd = os.pidfd_open(process.pid)
    except OSError:
        return False
    try:
        now = look(process.pid)
        if now is None or now.start != process.start:
            return False
        signal.pidfd_send_signal(fd, number)
    except (ProcessLookupError, PermissionError):
        return False
    finally:
        os.close(fd)
    return True


def boot_id() -> str:
    """Identify this boot of the machine."""
    with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
        return file.read().strip()


def read(folder: int, name: str) -> bytes | None:
    """Read a small file of the folder; None if there is none. Raises OSError."""
    try:
        fd = os.open(name, os.O_RDONLY, dir_fd=folder)
    except FileNotFoundError:
        return None
    with open(fd, "rb") as file:
        return file.read()


def write_record(folder: int, name: str, data: bytes) -> None:
    """Write a file of the folder, so that it survives a power cut. Raises OSError.

    First written over ``name.part``: what was reserved there is used.
    """
    part = f"{name}.part"
    fd = os.open(part, os.O_WRONLY | os.O_CREAT, 0o600, dir_fd=folder)
    try:
        written = 0
        while written < len(data):
            written += os.pwrite(fd, data[written:], written)
        os.ftruncate(fd, len(data))
        os.fsync(fd)
    finally:
        os.close(fd)
    os.rename(part, name, src_dir_fd=folder, dst_dir_fd=folder)
    os.fsync(folder)


class Plan:
    """What ``step-N.json`` asks for; `simagent.ports.runtime.StepPlan` explains it."""

    def __init__(self, number: int, text: bytes) -> None:
        fields = json.loads(text)
        self.number = number
        self.argv: list[str] = fields["argv"]
        self.env: dict[str, str] = fields["env"]
        self.cwd: str = fields["cwd"]
        self.stdin: str = fields["stdin"]
        self.stdout: str = fields["stdout"]
        self.stderr: str = fields["stderr"]
        self.grace: float = fields["grace"]
        self.orphan_limit: float = fields["orphan_limit"]
        self.rlimits: dict[str, int] = fields["rlimits"]
        self.cpus: list[int] = fields["cpus"]
        self.cgroup: str | None = fields["cgroup"]
        self.user: list[int] | None = fields["user"]
        self.no_new_privs: bool = fields["no_new_privs"]
        self.contained: bool = fields["contained"]
        self.launches: bool = fields.get("launches", False)


class Confinement:
    """The step's cgroup, where there is one; and how often the kernel lacked memory meanwhile.

    The shim stays outside of the cgroup, or it would be killed with what is in it.
    """

    def __init__(self, cgroup: str | None) -> None:
        self.cgroup = cgroup
        self._before = self._oom_kills()

    def join(self) -> None:
        """Bring the calling process into the cgroup. Raises `StartError`."""
        if self.cgroup is None:
            return
        try:
            self._write(self.cgroup, "cgroup.procs", b"0")
        except OSError as error:
            raise StartError("agent_error", f"cannot join {self.cgroup}: {error}") from None

    def kill(self) -> None:
        """Kill all that is in the cgroup at once. Linux can since 5.14."""
        with contextlib.suppress(OSError):
            self._write(self.cgroup or "", "cgroup.kill", b"1")

    def oom_kills(self) -> int | None:
        """Count the processes that the kernel has killed for lack of memory since the start.

        Those of the cgroup, else those of the whole machine; None where it does not tell.
        """
        now = self._oom_kills()
        return None if now is None or self._before is None else now - self._before

    def remove(self) -> None:
        """Remove the cgroup, which is empty but for what the kernel has not finished with."""
        for _ in range(_PASSES if self.cgroup else 0):
            try:
                os.rmdir(self.cgroup or "")
            except OSError as error:
                if error.errno != errno.EBUSY:
                    return
                self.kill()
                time.sleep(_KILL_PAUSE)
            else:
                return

    def _oom_kills(self) -> int | None:
        path = "/proc/vmstat" if self.cgroup is None else f"{self.cgroup}/memory.events"
        try:
            with open(path, encoding="ascii") as file:
                return next(int(line.split()[1]) for line in file if line.startswith("oom_kill "))
        except (OSError, ValueError, StopIteration):
            return None

    @staticmethod
    def _write(cgroup: str, name: str, text: bytes) -> None:
        fd = os.open(os.path.join(cgroup, name), os.O_WRONLY)
        try:
            os.write(fd, text)
        finally:
            os.close(fd)


class Attention:
    """Whether agents have left the step alone for ``limit`` seconds.

    The mark is only compared with itself. Only time that was seen to pass counts, so that neither
    a suspended machine nor a stepped clock looks like a missing agent.
    """

    def __init__(self, limit: float, now: float) -> None:
        self.period = min(30.0, limit / 4)
        self._limit = limit
        self._alone = 0.0
        self._mark: int | None = None
        self._looked = now

    def due(self, now: float) -> float:
        """Give the seconds until the next look."""
        return max(0.0, self._looked + self.period - now)

    def look(self, mark: int | None, now: float) -> bool:
        """Take note of the mark, which an agent changes; tell whether the limit is reached."""
        if mark is not None and mark != self._mark:
            self._mark, self._alone = mark, 0.0
        else:
            self._alone += min(now - self._looked, 2 * self.period)
        self._looked = now
        return self._alone >= self._limit


class Supervisor:
    """Waits for the step, ends it when asked to, and leaves nothing of it behind."""

    def __init__(self, folder: int, plan: Plan, step: int, confined: Confinement) -> None:
        self.status: int | None = None
        self.why: str | None = None
        self.leftovers = 0
        self.ended = 0.0
        self.ended_boot = 0.0
        self._folder = folder
        self._plan = plan
        self._step = step
        self._confined = confined
        self._attention = Attention(plan.orphan_limit, time.monotonic())
        self._told: set[tuple[int, int]] = set()
        self._deadline: float | None = None
        self._kill_pause = _KILL_PAUSE

    def run(self) -> None:
        """Return when no process of the step is left."""
        if self._stop_grace() is not None:
            self._stop()
        while self._reap():
            now = time.monotonic()
            if self.status is not None and self._deadline is None:
                self.leftovers += self._end(min(LEFTOVER_GRACE, self._plan.grace))
            if self._deadline is None and self._attention.due(now) == 0.0:
                self._look_for_agent(now)
            if self._deadline is not None and not self._told:  # the container was not up yet
                self._end(self._deadline - now)
            if self._deadline is not None and now >= self._deadline:
                self.kill()
                self._deadline = time.monotonic() + self._kill_pause
                self._kill_pause = min(2 * self._kill_pause, _KILL_PAUSE_MOST)
            self._sleep()

    def kill(self) -> None:
        """Kill the tree; what it forks meanwhile, too, as far as that can be outrun."""
        self._confined.kill()
        for _ in range(_PASSES):
            alive = descendants(os.getpid())
            if not sum([send(process, signal.SIGKILL) for process in alive]):
                return

    def _sleep(self) -> None:
        now = time.monotonic()
        waits = self._attention.due(now)
        if self._deadline is not None:
            waits = self._deadline - now if self._told else _START_PAUSE
        info = signal.sigtimedwait(_WATCHED, max(0.0, waits))
        if info is not None and info.si_signo == signal.SIGTERM:
            self._reap()
            self._stop()

    def _reap(self) -> bool:
        """Collect the dead; tell whether a child is left: each orphan of the tree becomes one."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return False
            if pid == 0:
                return True
            if pid == self._step:
                self.status = status
                self.ended, self.ended_boot = time.time(), _boot_time()

    def _stop_grace(self) -> float | None:
        try:
            order = read(self._folder, f"step-{self._plan.number}.stop")
            return None if order is None else max(0.0, float(json.loads(order)["grace"]))
        except (OSError, ValueError, LookupError, TypeError):
            return self._plan.grace

    def _stop(self) -> None:
        if self.status is None:
            self.why = self.why or "stop"
        grace = self._stop_grace()
        self._end(self._plan.grace if grace is None else grace)

    def _look_for_agent(self, now: float) -> None:
        try:
            mark = os.stat(ATTENTION, dir_fd=self._folder).st_mtime_ns
        except OSError:
            mark = None
        gone = os.fstat(self._folder).st_nlink == 0
        if self._attention.look(mark, now) or gone:
            self.why = "orphaned"
            self._end(self._plan.grace)

    def _meant(self) -> list[Process]:
        """List whom SIGTERM is for: what serves a container its files must not end before it."""
        found = descendants(os.getpid())
        if self._plan.launches and self.status is None:  # it tells its ranks, on other hosts, too
            return [process for process in found if process.pid == self._step]
        if self._plan.contained and self.status is None:
            return [process for process in found if inside(process)]
        return found

    def _end(self, grace: float) -> int:
        """SIGTERM to those who have not had it yet, SIGKILL in ``grace`` seconds, never later
        than said before. Returns how many got it now."""
        deadline = time.monotonic() + grace
        self._deadline = deadline if self._deadline is None else min(self._deadline, deadline)
        told = 0
        for _ in range(_PASSES):
            new = [p for p in self._meant() if (p.pid, p.start) not in self._told]
            if not new:
                break
            for process in new:
                self._told.add((process.pid, process.start))
                told += send(process, signal.SIGTERM)
                if process.state in "Tt":  # it acts on nothing but SIGKILL until it goes on
                    send(process, signal.SIGCONT)
        return told


class StartError(Exception):
    """The program cannot be executed; the arguments are the reason and the message."""


def execute(argv: list[str], env: dict[str, str]) -> None:
    """Become the program, looked up in the PATH of ``env``. Raises `StartError`."""
    program, found = argv[0], ""
    closed: list[str] = []
    folders = [""] if "/" in program else env.get("PATH", os.defpath).split(":")
    for path in [os.path.join(folder, program) for folder in folders]:
        try:
            os.execve(path, argv, env)  # noqa: S606
        except (OSError, ValueError) as error:
            if os.path.exists(path):
                found = found or f"{path}: {_why_not(path, error)}"
            elif isinstance(error, PermissionError):
                closed.append(os.path.dirname(path))
    if found:
        raise StartError("not_executable", found)
    where = "" if "/" in program else f" in PATH ({':'.join(folders)})"
    if closed:
        link = ", of which" if where else ", or"
        where += f"{link} user {os.geteuid()} may not look into {' and '.join(closed)}"
    raise StartError("command_not_found", f"{program}: no such program{where}")


def _why_not(path: str, error: OSError | ValueError) -> str:
    if os.path.isdir(path):
        return "is a folder"
    if isinstance(error, FileNotFoundError):
        return "the interpreter or loader that it names does not exist"
    if isinstance(error, PermissionError):
        return "permission denied: make it executable (chmod +x)"
    if isinstance(error, OSError) and error.errno == errno.ENOEXEC:
        return "neither a program for this machine nor a script with a #! line"
    return (error.strerror or "") if isinstance(error, OSError) else str(error)


def _limit(plan: Plan) -> None:
    """Take on the limits of the plan, none of them above what this process has already."""
    for name, wanted in plan.rlimits.items():
        which = getattr(resource, name)
        hard = resource.getrlimit(which)[1]
        value = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(which, (value, value))
    if cpus := os.sched_getaffinity(0).intersection(plan.cpus):
        os.sched_setaffinity(0, cpus)


def _become(
    plan: Plan, confined: Confinement, files: tuple[int, int, int], go: int, answer: int
) -> None:
    """Be the step: in a session of its own, with nothing inherited but the three files."""
    shim = os.getppid()
    os.setsid()
    confined.join()  # takes the kernel some milliseconds, in which the shim writes its record
    _lose_protection()
    if plan.user is not None:
        os.setgroups([])
        os.setgid(plan.user[1])
        os.setuid(plan.user[0])
    if plan.no_new_privs:
        _prctl(_PR_SET_NO_NEW_PRIVS, 1)
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)  # the kernel forgets it when the user changes
    if os.read(go, 1) == b"" or os.getppid() != shim:
        return
    for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    for fd, source in enumerate(files):
        os.dup2(source, fd)
    os.closerange(3, answer)
    os.closerange(answer + 1, _MOST_FDS)
    _limit(plan)
    try:
        os.chdir(plan.cwd)
    except OSError as error:
        message = f"cannot start in {plan.cwd}: {error.strerror}"
        raise StartError("not_executable", message) from None
    execute(plan.argv, plan.env)


def _lose_protection() -> None:
    """Be killed as any other where memory runs out: the agent's unit spares it, and its shims."""
    path = "/proc/self/oom_score_adj"
    with contextlib.suppress(OSError, ValueError):
        with open(path, encoding="ascii") as file:
            spared = int(file.read()) < 0
        if spared:
            with open(path, "w", encoding="ascii") as file:
                file.write("0")


def _fork(
    plan: Plan, confined: Confinement, files: tuple[int, int, int], lock: int
) -> tuple[int, int, int]:
    """Fork the step, which waits for a byte; give its pid, where to write that, its answer."""
    go, go_write = os.pipe()
    answer_read, answer = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.close(lock)
            os.close(go_write)
            _become(plan, confined, files, go, answer)
        except StartError as error:
            os.write(answer, _text(error.args))
        except MemoryError:
            os.write(answer, _TOO_LITTLE)
        except BaseException as error:  # noqa: BLE001  # whatever it is, the shim's code must not go on here
            os.write(answer, _text(("agent_error", repr(error))))
        finally:
            os._exit(127)
    for fd in (go, answer, *files):
        os.close(fd)
    return pid, go_write, answer_read


def _run(folder: int, plan: Plan, lock: int) -> dict[str, object]:
    """Run the step to its end; return the exit record. Raises OSError if it did not start."""
    log = os.O_WRONLY | os.O_APPEND | os.O_CREAT
    files = (os.open(plan.stdin, os.O_RDONLY), os.open(plan.stdout, log, 0o644),
             os.open(plan.stderr, log, 0o644))  # fmt: skip
    offsets = [os.fstat(fd).st_size for fd in files[1:]]
    reserve = os.open(_exit_file(plan) + ".part", os.O_WRONLY | os.O_CREAT, 0o600, dir_fd=folder)
    os.pwrite(reserve, b" " * _RECORD_BYTES, 0)  # so that the end can be told on a full disk
    os.close(reserve)
    confined = Confinement(plan.cgroup)
    step, go, answer = _fork(plan, confined, files, lock)
    started, started_boot = time.time(), _boot_time()
    write_record(folder, f"step-{plan.number}.started", _text({
        "format": FORMAT, "boot_id": boot_id(), "started": started,
        "shim": _identity(os.getpid()), "step": _identity(step),
        "stdout_offset": offsets[0], "stderr_offset": offsets[1], "cgroup": plan.cgroup,
    }))  # fmt: skip
    os.write(go, b"!")
    os.close(go)
    # On a file system that does not answer it may never be executed: a stop is heard all the same.
    while signal.SIGTERM not in signal.sigpending():
        if select.select([answer], [], [], _START_PAUSE)[0]:
            break
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    supervisor = Supervisor(folder, plan, step, confined)
    try:
        supervisor.run()
    except BaseException:
        supervisor.kill()
        raise
    with open(answer, "rb") as pipe:
        failure = pipe.read()
    oom_kills = confined.oom_kills()
    confined.remove()
    return {"started": started, "seconds": supervisor.ended_boot - started_boot,
            "oom_kills": oom_kills, "confined": plan.cgroup is not None,
            **_outcome(failure, supervisor)}  # fmt: skip


def _outcome(failure: bytes, supervisor: Supervisor) -> dict[str, object]:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    code = os.waitstatus_to_exitcode(supervisor.status or 0)
    reason, message = json.loads(failure) if failure else (None, "")
    return {
        "format": FORMAT, "reason": reason, "message": message[:_MESSAGE_CHARACTERS],
        "exit_code": code if code >= 0 and not failure else None,
        "signal": -code if code < 0 and not failure else None,
        "user_seconds": used.ru_utime, "system_seconds": used.ru_stime,
        "max_rss_bytes": used.ru_maxrss * 1024,
        "ended": supervisor.ended, "stopped": supervisor.why, "leftovers": supervisor.leftovers,
    }  # fmt: skip


def _conclude(folder: int, plan: Plan, record: dict[str, object]) -> None:
    """Write the exit record, however long that takes, unless its folder is gone."""
    while os.fstat(folder).st_nlink > 0:
        try:
            write_record(folder, _exit_file(plan), _text(record))
        except OSError:
            signal.sigtimedwait(_WATCHED, 1.0)
        else:
            return


def _lock(folder: int, number: int) -> int | None:
    """Take the step's lock; None if another shim has it. A probe holds it for a moment only."""
    fd = os.open(f"step-{number}.lock", os.O_RDWR | os.O_CREAT, 0o600, dir_fd=folder)
    for _ in range(_LOCK_TRIES):
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            time.sleep(_LOCK_PAUSE)
        else:
            return fd
    return None


def _settle() -> None:
    """Hold on to nothing of the parent's, and take no signal but those waited for."""
    for fd in range(3):
        try:
            os.fstat(fd)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
    os.closerange(3, _MOST_FDS)
    os.chdir("/")
    os.umask(0o022)
    for name in _IGNORED.split():
        signal.signal(signal.Signals[f"SIG{name}"], signal.SIG_IGN)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, _WATCHED)
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)
    _prctl(_PR_SET_NAME, b"simagent-shim")


def main(path: str, number: int) -> int:
    """Run the step, unless another shim does or did. Returns the exit code."""
    _settle()
    folder = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    lock = _lock(folder, number)
    if lock is None or read(folder, f"step-{number}.started") is not None:
        return 0
    plan = Plan(number, read(folder, f"step-{number}.json") or b"")
    try:
        record = _run(folder, plan, lock)
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        os.write(1, _text(("disk_full" if full else "agent_error", str(error))))
        return 1
    _conclude(folder, plan, record)
    return 0


def _prctl(option: int, argument: int | bytes) -> None:
    """Call prctl(2). Raises OSError."""
    value = argument if isinstance(argument, bytes) else ctypes.c_ulong(argument)
    if ctypes.CDLL(None, use_errno=True).prctl(option, value, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), f"prctl {option}")


def _identity(pid: int) -> dict[str, int]:
    process = look(pid)
    if process is None:
        raise ProcessLookupError(errno.ESRCH, f"process {pid} vanished")
    return {"pid": pid, "start": process.start}


def _exit_file(plan: Plan) -> str:
    return f"step-{plan.number}.exit"


def _text(value: object) -> bytes:
    return json.dumps(value).encode()


def _boot_time() -> float:
    return time.clock_gettime(time.CLOCK_BOOTTIME)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], int(sys.argv[2])))
