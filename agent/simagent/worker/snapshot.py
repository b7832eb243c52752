"""How an agent stands, at one moment: what `simagent status` and Prometheus are told.

Made of what the agent knows already: nothing here was asked of the store or the queue for it.
Moments are Unix times, for people; ages are seconds.
"""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import Any

from simagent.domain.quantities import size_text
from simagent.worker.orders import Detached, Interrupted

FORMAT = 1

HANGS_AFTER = 25.0
"""Seconds without a turn of the main loop: it takes ten at most where all is well."""


class Stage(StrEnum):
    """What an agent is at."""

    STARTING = "starting"
    TAKING_TASKS = "taking_tasks"
    DRAINING = "draining"
    WAITING_FOR_STORE = "waiting_for_store"
    WAITING_FOR_QUEUE = "waiting_for_queue"
    GIVING_BACK = "giving_back"
    LETTING_GO = "letting_go"


def stage_of(
    order: Interrupted | None, *, draining: bool, store_fails: bool, queue_fails: bool
) -> Stage:
    """Tell what an agent is at that has begun to work."""
    if order is not None:
        return Stage.LETTING_GO if isinstance(order, Detached) else Stage.GIVING_BACK
    if store_fails:
        return Stage.WAITING_FOR_STORE
    if queue_fails:
        return Stage.WAITING_FOR_QUEUE
    return Stage.DRAINING if draining else Stage.TAKING_TASKS


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineView:
    """The store or the queue.

    ``answered`` is the age of its last answer, None: there was none. ``failing`` is for how long it
    has not answered, None: it does.
    """

    name: str
    url: str = ""
    answered: float | None = None
    failing: float | None = None
    error: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskView:
    """An attempt that goes on here.

    ``step`` counts from 0, ``since`` and ``step_since`` are when it was claimed, and its command
    begun. ``beat`` is the age of its last renewed lease. ``user`` is whom it runs as, None: as the
    agent. ``cpu_cores`` and ``memory_bytes`` are what its processes here use.
    """

    project: str
    id: str
    epoch: int
    status: str
    since: float
    step: int | None = None
    steps: int = 0
    step_since: float | None = None
    slot: int = 0
    user: int | None = None
    runtime: str = ""
    beat: float | None = None
    late: bool = False
    cpu_cores: float | None = None
    memory_bytes: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RunView:
    """What a member runs for the head of its cluster; ``age`` is since it began."""

    project: str
    task: str
    epoch: int
    entry: str
    age: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ImagesView:
    """The images that a runtime has fetched."""

    runtime: str
    count: int
    size_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class DiskView:
    """The disk of the state folder; None: it could not be seen. ``floor`` is `min_free`."""

    path: str
    free: int | None = None
    total: int | None = None
    floor: int = 0
    images: tuple[ImagesView, ...] = ()

    @property
    def shortage(self) -> str:
        """Tell that too little is free to take tasks; empty: it is not."""
        if self.free is None or self.free >= self.floor:
            return ""
        free, floor = size_text(self.free), size_text(self.floor)
        return f"{free} free in {self.path}, less than min_free ({floor}): no task is taken"


@dataclass(frozen=True, slots=True, kw_only=True)
class CountView:
    """A sum over the life of the agent: `simagent.telemetry.tally.Count`."""

    name: str
    labels: tuple[str, ...] = ()
    value: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """An agent, a member of a cluster, or a `simagent run`.

    ``text`` is what systemd is told, for people. ``turned`` is the age of the main loop's last
    turn; None: it has not begun. ``unsettled`` are attempts of an earlier incarnation that are
    still to be looked at. ``notices`` are lines for people.
    """

    format: int = FORMAT
    role: str
    stage: Stage
    agent: str = ""
    incarnation: str = ""
    group: str = ""
    cluster: str = ""
    text: str = ""
    pid: int
    at: float
    started: float
    uptime: float
    turned: float | None = None
    slots: int = 0
    busy: int = 0
    unsettled: int = 0
    tasks: tuple[TaskView, ...] = ()
    runs: tuple[RunView, ...] = ()
    engines: tuple[EngineView, ...] = ()
    disk: DiskView | None = None
    versions: Mapping[str, str] = field(default_factory=dict)
    notices: tuple[str, ...] = ()
    counts: tuple[CountView, ...] = ()

    @property
    def hangs(self) -> bool:
        """Whether the main loop has not turned for too long."""
        return self.turned is not None and self.turned > HANGS_AFTER

    def as_dict(self) -> dict[str, Any]:
        """Give it as JSON has it."""
        return {**asdict(self), "stage": self.stage.value, "hangs": self.hangs}


Source = Callable[[], Snapshot]
"""Takes a snapshot. Any thread may call it, and it waits for nothing."""
