"""What agents tell of themselves in the store: that they live, and which tasks they cannot run."""

from pydantic import Field

from simagent.domain.state import Record

FORMAT = 1


class Heartbeat(Record):
    """An agent, as it shows itself about once a minute. ``beat`` counts up in an incarnation.

    ``at`` is Unix time, for people alone: that an agent lives shows in what changes. ``runtimes``
    are the names of those that work.
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


class Refused(Record):
    """An incarnation of an agent cannot run a task, and never will. ``at`` is Unix time."""

    format: int = FORMAT
    agent: str
    incarnation: str
    why: str
    at: float = 0.0
