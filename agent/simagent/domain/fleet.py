"""What agents tell of themselves in the store: that they live, and which tasks they cannot run."""

from pydantic import Field

from simagent.domain.state import Record

FORMAT = 1


class Carried(Record):
    """An attempt that an agent carries on; ``since`` is Unix time, of its claim."""

    project: str
    id: str
    epoch: int
    status: str
    since: float


class Heartbeat(Record):
    """An agent, as it shows itself about once a minute. ``beat`` counts up in an incarnation.

    ``at`` and ``started`` are Unix times, for people alone: that an agent lives shows in what
    changes. ``runtimes`` are the names of those that work. ``free`` of its ``slots`` are not taken;
    while it is ``draining`` it takes nothing all the same.
    """

    format: int = FORMAT
    agent: str
    incarnation: str
    group: str
    version: str = ""
    beat: int = 0
    at: float = 0.0
    machine: dict[str, str | int | float] = Field(default_factory=dict)
    runtimes: tuple[str, ...] = ()
    tags: tuple[str, ...] = ()
    slots: int = 1
    free: int = 1
    draining: bool = False
    tasks: tuple[Carried, ...] = ()
    started: float = 0.0

    @property
    def state(self) -> str:
        """What it does: `idle`, `busy` or `draining`."""
        if self.draining:
            return "draining"
        return "busy" if self.tasks or self.free < self.slots else "idle"


class Refused(Record):
    """An incarnation of an agent cannot run a task, and never will. ``at`` is Unix time."""

    format: int = FORMAT
    agent: str
    incarnation: str
    why: str
    at: float = 0.0
