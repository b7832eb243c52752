"""What runs a step, so that it outlives the agent and is found again by the next one."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Final, Literal, Protocol

from simagent.domain.reasons import Reason
from simagent.ports.clock import Waitable


class RuntimeFailedError(Exception):
    """The step could not be started at all; the message says why, `reason` names it."""

    def __init__(self, reason: Reason, message: str) -> None:
        super().__init__(message)
        self.reason = reason


@dataclass(frozen=True, slots=True, kw_only=True)
class StepLimits:
    """What a step may use of the machine; None is no limit.

    ``memory_bytes``, ``cpus`` (cores, also parts of one) and ``processes`` (threads count) are
    meant for all its processes together, ``file_bytes`` for each file it writes. docs/limits.md
    tells what becomes of them where the machine offers less. ``cores`` are the numbers of those
    that a process of the host is bound to; none: the runtime chooses.
    """

    memory_bytes: int | None = None
    cpus: float | None = None
    processes: int | None = None
    file_bytes: int | None = None
    cores: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Mount:
    """A file or folder of this host that a container sees at ``target``."""

    source: Path
    target: PurePosixPath
    writable: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Sandbox:
    """The container that a step runs in, and all it sees of this machine.

    ``image`` is the handle of a `simagent.ports.images.Image`. ``uid`` and ``gid`` are the
    step's, whatever the image says; ``shm_bytes`` is the size of /dev/shm. ``gpu_ids`` names the
    ``gpus`` that it gets; none: any. Containers that an engine keeps carry ``labels``.
    """

    image: str
    uid: int
    gid: int
    mounts: tuple[Mount, ...] = ()
    network: Literal["none", "host"] = "none"
    shm_bytes: int | None = None
    gpus: int = 0
    gpu_ids: tuple[str, ...] = ()
    labels: Mapping[str, str] = field(default_factory=dict)


RANK: Final = ("/bin/sh", "-c", 'exec /bin/sh "$SIMAGENT_RANK"')
"""What stands for the program in the command line of a `Launch`: each host has its own way."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Launch:
    """A program of the host that starts the step's ranks, each in a container of its own.

    ``argv`` runs `RANK` as ``np`` ranks on this host and others: an `mpirun`; or it is the daemon
    that an `mpirun` elsewhere has here. ``env`` is for itself; the ranks have the step's, and of
    it only what an MPI tells its ranks. ``mpi`` says what it is, such as ``Open MPI 4.1.4``: where
    the image's MPI does not go with that, the step says so and ends, as a guarded command does
    (`simagent.ports.launcher.guard_said`). Empty: the image is not looked at.
    """

    argv: tuple[str, ...]
    np: int
    env: Mapping[str, str] = field(default_factory=dict)
    mpi: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class StepPlan:
    """All that a step needs to run without the agent.

    ``folder`` is where the runtime keeps the records of the attempt's steps; ``number`` counts
    from 0. ``env`` is the whole environment, in a ``sandbox`` beside what the image sets. ``cwd``
    is a path in the sandbox where there is one. ``stdout`` and ``stderr``, paths of this host, are
    appended to by the step itself. With ``launch`` it is run by a program of the host as ranks,
    each in a ``sandbox``. ``user`` is whom a step runs as that has no sandbox, by user and group
    number, and without a way to more rights; None: as the agent does. ``grace`` and
    ``orphan_limit`` are seconds: how long the step may take to end after SIGTERM, and after how
    long without any agent it is ended.
    """

    folder: Path
    number: int
    argv: tuple[str, ...]
    env: Mapping[str, str] = field(default_factory=dict)
    cwd: Path
    stdin: bytes | None = None
    stdout: Path
    stderr: Path
    grace: float = 30.0
    orphan_limit: float = 1800.0
    limits: StepLimits = StepLimits()
    sandbox: Sandbox | None = None
    launch: Launch | None = None
    user: tuple[int, int] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class StepExit:
    """How a step ended.

    ``exit_code`` or ``signal`` is set where the program ran; ``reason`` where there is more to say
    than they do (`command_not_found`, `not_executable`, `oom`, `shim_lost`). ``message`` explains
    it, or tells what else is known of a failure. Times are seconds, ``max_rss_bytes`` is of the
    largest process of the step's tree.
    """

    exit_code: int | None = None
    signal: int | None = None
    reason: Reason | None = None
    message: str = ""
    started: float | None = None
    ended: float | None = None
    seconds: float = 0.0
    user_seconds: float = 0.0
    system_seconds: float = 0.0
    max_rss_bytes: int = 0
    stopped: bool = False
    """It ended because `Step.stop` asked for it, or because no agent came for too long."""


class Step(Protocol):
    """A step that was started, perhaps by an earlier incarnation of the agent."""

    def wait(self, timeout: float | None, *wakes: Waitable) -> StepExit | None:
        """Give the step's end as soon as it is known.

        None after ``timeout`` seconds, or when one of ``wakes`` is ready.
        """

    def stop(self, grace: float) -> None:
        """Ask for the end of the whole process tree: SIGTERM, ``grace`` seconds, SIGKILL.

        Returns at once; the end shows in `wait`. Goes on without the agent. A later call can
        only shorten the grace.
        """

    def signal(self, number: int) -> bool:
        """Send a signal to those of the step's processes that have a use for it.

        Those are the outermost ones that it does not end. Tells whether there were any.
        """

    def pids(self) -> list[int]:
        """List the processes of the step's tree that run on this host."""


class Runtime(Protocol):
    """Starts steps and finds them again."""

    name: str

    def trouble(self) -> str | None:
        """Tell why no step can be started now, None where one can; never raises."""

    def about(self) -> list[str]:
        """Tell, for people, what it is, and then what of it could work better; never raises."""

    def start(self, plan: StepPlan) -> Step:
        """Start the step, or attach where it was started before: never runs a step twice.

        Raises `RuntimeFailedError`.
        """

    def attach(self, plan: StepPlan) -> Step | None:
        """Find a step that was started before; None if it never was."""

    def keep_alive(self, folder: Path) -> None:
        """Tell the steps whose records are in ``folder`` that an agent looks after them.

        To be called more often than any step's ``orphan_limit``.
        """

    def reap(self, known: Callable[[Path], bool]) -> int:
        """End and remove what no attempt knows; tell how much that was.

        ``known`` tells of a ``folder`` of a `StepPlan` whether an attempt has it.
        """
