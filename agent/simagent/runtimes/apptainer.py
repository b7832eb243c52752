"""Runs steps in Apptainer containers: each ``apptainer exec`` is a step of `ProcessRuntime`.

Ranks that a program of the host starts have a container each: `apptainer_ranks` tells of those.
A step has a shim, and is found again, stopped, limited and cleaned up after as any other program.
Root's agent runs Apptainer as the task's user, who has no privileges; Apptainer needs none.
"""

import os
import pwd
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath

from simagent.domain.reasons import Reason
from simagent.ports.clock import Waitable
from simagent.ports.runtime import Mount, RuntimeFailedError, Sandbox, StepExit, StepPlan
from simagent.runtimes import records
from simagent.runtimes.apptainer_box import Box, one_line
from simagent.runtimes.apptainer_program import ApptainerProgram
from simagent.runtimes.apptainer_ranks import FLAGS, forget_memory, shared_memory
from simagent.runtimes.exit_codes import signal_of
from simagent.runtimes.process import ProcessRuntime, ProcessStep
from simagent.runtimes.static_shell import SHELLS, static_shell
from simagent.runtimes.workplace import remove_folder

_SAID_BYTES = 4096
_FLAGS = (
    "--containall",  # no folder, process, IPC object or variable of the host is seen
    "--no-home",
    "--writable-tmpfs",
    "--no-mount=/etc/localtime",  # or a host without it could run nothing
    "--pwd=/",
)
_NO_NETWORK = ("--net", "--network=none")
_SAYINGS = (
    ("no space left on device", Reason.DISK_FULL),
    ("disk quota exceeded", Reason.DISK_FULL),
    ("/bin/sh", Reason.IMAGE_UNUSABLE),
    ("could not open image", Reason.IMAGE_CORRUPT),
    ("image format not recognized", Reason.IMAGE_CORRUPT),
    ("squashfs", Reason.IMAGE_CORRUPT),
)
_NO_SHELL = "the image has no /bin/sh: install busybox-static on the agent's machine"


class ApptainerStep:
    """A step in a container: what its end means is another thing than for a plain program."""

    def __init__(self, step: ProcessStep, box: Box) -> None:
        self._step = step
        self._box = box
        self._exit: StepExit | None = None

    def wait(self, timeout: float | None, *wakes: Waitable) -> StepExit | None:
        """Give the step's end as soon as it is known.

        None after ``timeout`` seconds (a day at most), or when one of ``wakes`` is ready.
        """
        if self._exit is None:
            ended = self._step.wait(timeout, *wakes)
            if ended is not None:
                self._exit = _told(ended, self._box)
                # Where it was killed, an image that it had unpacked is left.
                remove_folder(self._box.home)
                if self._box.plan.launch is not None:
                    forget_memory(self._box.plan)
        return self._exit

    def stop(self, grace: float) -> None:
        """Ask for the end of the whole process tree: SIGTERM, ``grace`` seconds, SIGKILL."""
        self._step.stop(grace)

    def signal(self, number: int) -> bool:
        """Send a signal to those in the container that have a use for it; tell of any."""
        return self._step.signal(number)

    def pids(self) -> list[int]:
        """List the processes in the container, and those that keep it up."""
        return self._step.pids()


class ApptainerRuntime:
    """Runs steps in Apptainer containers. `Runtime` tells what each method does."""

    name = "apptainer"

    def __init__(
        self, program: str, process: ProcessRuntime, *, shells: Sequence[str] = SHELLS
    ) -> None:
        """The first of ``shells`` that runs in any image is used; else the image's own."""
        self.program = ApptainerProgram(program)
        self._process = process
        self._shell = static_shell(shells)

    def trouble(self) -> str | None:
        """Tell why no step can be started now, None where one can; never raises."""
        return self.program.setup().trouble

    def about(self) -> list[str]:
        """Tell which Apptainer it is, and what of it could work better."""
        setup = self.program.setup()
        return [setup.trouble] if setup.trouble else [f"Apptainer {setup.version}", *setup.notes]

    def start(self, plan: StepPlan) -> ApptainerStep:
        """Start the step, or attach where it was started before: never runs a step twice.

        Raises `RuntimeFailedError`.
        """
        step = self.attach(plan)
        if step is not None:
            return step
        box = Box(plan)
        outer = self._outer(plan, box)
        assert outer.sandbox is not None
        _check_user(outer.sandbox.uid)
        _check_reachable(outer.sandbox, box.folder.parent)
        try:
            box.write()
            if plan.launch is not None:
                self._write_launch(plan, box)
        except OSError as error:
            raise RuntimeFailedError(
                Reason.AGENT_ERROR, f"cannot prepare the container: {error}"
            ) from error
        return ApptainerStep(self._process.start(outer), box)

    def attach(self, plan: StepPlan) -> ApptainerStep | None:
        """Find a step that was started before; None if it never was.

        None also where the plan tells of no sandbox: to be ended, it is found as a process.
        """
        if plan.sandbox is None:
            return None
        box = Box(plan)
        step = self._process.attach(self._outer(plan, box))
        return None if step is None else ApptainerStep(step, box)

    def keep_alive(self, folder: Path) -> None:
        """Tell the steps whose records are in ``folder`` that an agent looks after them."""
        self._process.keep_alive(folder)

    def reap(self, known: Callable[[Path], bool]) -> int:
        """Nothing: the shim of a step whose attempt is gone ends it, and its container."""
        return self._process.reap(known)

    def _outer(self, plan: StepPlan, box: Box) -> StepPlan:
        """Plan the process of a step: an ``apptainer exec``, or what starts one for each rank."""
        if plan.launch is None:
            inside = box.command(self._shell, confined=self._process.confines)
            command = self._container(plan, box, inside)
        else:
            command = ["/bin/sh", str(box.launcher)]
        # By their variables, what a lost shim leaves is found.
        marks = {name: text for name, text in plan.env.items() if name.startswith("SIMAGENT_")}
        env = self.program.env(box.home) | marks
        return replace(plan, argv=tuple(command), env=env, cwd=Path("/"))

    def _write_launch(self, plan: StepPlan, box: Box) -> None:
        """Write what starts the ranks. Raises OSError, `RuntimeFailedError`."""
        assert plan.sandbox is not None
        if plan.sandbox.network == "none":
            raise RuntimeFailedError(
                Reason.UNSUPPORTED,
                "network: ranks that mpirun of the host starts need it: set it to host",
            )
        inside = box.command(self._shell, confined=self._process.confines)
        look = box.look(self._shell)
        box.write_launch(
            self._container(plan, box, inside), self._container(plan, box, look) if look else ()
        )

    def _container(self, plan: StepPlan, box: Box, inside: Sequence[str]) -> list[str]:
        """Give the command line of a container in which ``inside`` is run."""
        sandbox = plan.sandbox
        assert sandbox is not None
        mounts = [*sandbox.mounts, *box.mounts(self._shell)]
        if plan.launch is None:
            command = self.program.command("exec", *_FLAGS)
        else:
            command = self.program.command("exec", *FLAGS)
            # What it is told to mount from /dev, Apptainer looks for in its own.
            memory = Path("/proc/self/root", *shared_memory(plan).parts[1:])
            mounts.append(Mount(source=memory, target=PurePosixPath("/dev/shm")))  # noqa: S108
        if sandbox.network == "none":
            command += _NO_NETWORK
        if sandbox.gpus:
            command.append(_gpu_flag())
        if sandbox.uid == 0:
            command += ["--userns", "--no-privs"]
        for mount in mounts:
            command += ["--mount", _mount(mount)]
        return [*command, sandbox.image, *inside]


def _mount(mount: Mount) -> str:
    fields = ["type=bind", f"source={mount.source}", f"destination={mount.target}"]
    quoted = [f'"{field.replace(chr(34), chr(34) * 2)}"' for field in fields]
    return ",".join([*quoted, *([] if mount.writable else ["ro"])])


def _gpu_flag() -> str:
    return "--rocm" if os.path.exists("/dev/kfd") else "--nv"


def _check_user(uid: int) -> None:
    """See that the user has a name, which Apptainer insists on. Raises `RuntimeFailedError`."""
    try:
        pwd.getpwuid(uid)
    except KeyError:
        raise RuntimeFailedError(
            Reason.RUNTIME_FAILED,
            f"Apptainer needs a name of its user, and {uid} has none: add one to /etc/passwd",
        ) from None


def _check_reachable(sandbox: Sandbox, attempt: Path) -> None:
    """See that a user whom root's agent runs Apptainer as gets to the files.

    Raises `RuntimeFailedError`.
    """
    if os.geteuid() != 0 or sandbox.uid == 0:
        return
    for path in (Path(sandbox.image), attempt, *(mount.source for mount in sandbox.mounts)):
        for folder in reversed(path.absolute().parents):
            try:
                status = folder.stat()
            except OSError:
                break
            if sandbox.uid == status.st_uid:
                may = status.st_mode & 0o100
            elif sandbox.gid == status.st_gid:
                may = status.st_mode & 0o010
            else:
                may = status.st_mode & 0o001
            if not may:
                raise RuntimeFailedError(
                    Reason.RUNTIME_FAILED,
                    f"the task's user ({sandbox.uid}) may not pass {folder}: chmod o+x {folder}",
                )


def _told(ended: StepExit, box: Box) -> StepExit:
    """Tell what the end of an ``apptainer exec`` says of the step's program."""
    unbegun = box.never_ran()
    if unbegun is None:
        return _by_signal(ended)
    reason, message = unbegun
    if reason is None:
        if ended.stopped or ended.reason in (Reason.ORPHANED, Reason.SHIM_LOST):
            return ended
        if box.plan.launch is not None and "FATAL" not in _said(box.plan):
            return _by_signal(ended)  # what was to start the ranks
        reason, message = _failed(ended, box)
    return replace(ended, exit_code=None, signal=None, reason=reason, message=message)


def _by_signal(ended: StepExit) -> StepExit:
    number = signal_of(ended.exit_code)
    return ended if number is None else replace(ended, exit_code=None, signal=number)


def _failed(ended: StepExit, box: Box) -> tuple[Reason, str]:
    """Tell why Apptainer did not get as far as the program."""
    if ended.reason in (Reason.COMMAND_NOT_FOUND, Reason.NOT_EXECUTABLE):
        return Reason.RUNTIME_FAILED, ended.message
    said = _said(box.plan)
    fatal = [line.partition(":")[2].strip() for line in said.splitlines() if "FATAL" in line]
    text = fatal[-1] if fatal else said.strip().rpartition("\n")[2]
    reason = next((r for part, r in _SAYINGS if part in text.lower()), Reason.RUNTIME_FAILED)
    if reason is Reason.IMAGE_UNUSABLE:
        return reason, _NO_SHELL
    code = ended.exit_code if ended.signal is None else f"signal {ended.signal}"
    return reason, f"apptainer: {one_line(text) or f'ended with {code}'}"


def _said(plan: StepPlan) -> str:
    """Read what Apptainer wrote to the step's stderr, which holds nothing else yet."""
    try:
        started = records.read(plan, "started") or {}
        with plan.stderr.open("rb") as file:
            end = file.seek(0, os.SEEK_END)
            file.seek(max(int(started.get("stderr_offset", 0)), end - _SAID_BYTES))
            return file.read().decode(errors="replace")
    except (OSError, ValueError):
        return ""
