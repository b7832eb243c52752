"""What the worker's operations work with: made once by the wiring, handed down, never changed."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from simagent.domain.times import Times
from simagent.ledger import Ledger
from simagent.ports.clock import Clock
from simagent.ports.cloud import Cloud
from simagent.ports.images import Images
from simagent.ports.launcher import Launchers
from simagent.ports.queue import Queue
from simagent.ports.runtime import Runtime
from simagent.telemetry.contact import Contact
from simagent.telemetry.pump import LOCAL_PACE, Pace
from simagent.telemetry.tally import Tally
from simagent.transfer.unpack import Limits
from simagent.worker.caretaker import ImageMarks
from simagent.worker.choice import CONTAINERS
from simagent.worker.control import LOCAL_LOOKS, Looks
from simagent.worker.disk import free_bytes
from simagent.worker.head import Head
from simagent.worker.hybrid import Mode
from simagent.worker.journal import Journals
from simagent.worker.users import TaskUsers


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """Who this agent is: the same ``agent`` after every restart, a new ``incarnation`` each."""

    agent: str
    incarnation: str
    boot_id: str
    version: str
    machine: Mapping[str, str | int | float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """How attempts are run. Times in seconds."""

    group: str = "default"
    allow_process: bool = True
    pass_env: tuple[str, ...] = ("PATH", "HOME", "USER", "LOGNAME", "LANG", "LC_ALL", "TZ")
    orphan_limit: float = 1800.0
    pack_threads: int = 1
    allow_file_inputs: bool = True
    looks: Looks = LOCAL_LOOKS
    pace: Pace = LOCAL_PACE
    inputs: Limits = field(default_factory=Limits)
    max_processes: int | None = None
    max_file_bytes: int | None = None
    users: TaskUsers = field(default_factory=TaskUsers)
    """Whom tasks run as."""
    gpus: tuple[str, ...] = ()
    """The GPUs that tasks may have; none named: those that are found."""
    mpi_slots: int | None = None
    """Ranks that this machine takes; None: one for each core."""
    mpi_mode: Mode = "auto"
    """What starts the ranks of images."""
    tags: tuple[str, ...] = ()
    """What tasks can require of an agent."""
    allow_root_images: bool = False
    pull_patience: float = 300.0
    """Time in which an image that cannot be had just now is asked for again."""
    marks: ImageMarks = field(default_factory=ImageMarks)
    prefetch: tuple[str, ...] = ()
    """Images that are to be here before a task asks for them, and stay."""
    containers: tuple[str, ...] = CONTAINERS
    """The runtimes of images, the preferred one first."""
    max_log_bytes: int | None = None
    min_free: int = 0
    """Bytes kept free on the disk of the state folder."""
    room_wait: float = 60.0
    """Time to wait for room to publish outputs in; ten times as long after a run that succeeded."""
    stop_within: float = 8.0
    """Time the attempts get to flush when the agent detaches."""
    give_back_within: float = 90.0
    """Time the attempts get to stop their steps and give their tasks back."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Context:
    """The agent's engines, clock, identity and settings."""

    ledger: Ledger
    lease_ledger: Ledger
    """The lease's own client, with short timeouts, so that it never waits behind other work."""
    queue: Queue
    clock: Clock
    times: Times
    identity: Identity
    journals: Journals
    runtimes: Mapping[str, Runtime]
    images: Mapping[str, Images] = field(default_factory=dict)
    """Of each runtime that runs containers, by its name."""
    launchers: Launchers
    settings: Settings = field(default_factory=Settings)
    head: Head | None = None
    """Of the MPI cluster that the agent leads."""
    cloud: Cloud | None = None
    """What the machine is rented from; None where it is of no cloud."""
    tally: Tally = field(default_factory=Tally)
    """What the agent has done so far."""
    doubt: str = ""
    """Why the store could not be used when it was opened; empty: it could, or was not asked."""
    contacts: tuple[Contact, ...] = ()
    """How it stands with store and queue, where their calls are noted."""
    free_bytes: Callable[[Path], int] = free_bytes
    """Tells what is free on the disk of a folder."""
