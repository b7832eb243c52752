"""The broker of a step over several hosts: enters them for `mpirun`, which has no key for it.

It runs beside the step, from before its start until after its end, as a step of its own:
``python -m simagent.cluster.broker FOLDER``. The folder is private to the agent. What comes by
`simagent.cluster.launch` is from the task, and not trusted: it names one of the plan's addresses,
and what to run there, which is no more than the task may run there anyhow.

On SIGTERM it ends what it started on all hosts, tells within `LEAVE_LIMIT` seconds how that went
for each, and ends.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from simagent.cluster.messages import Enter
from simagent.domain.state import Record

LEAVE_LIMIT: Final = 20.0
"""Seconds; who stops the broker gives it a few more before SIGKILL."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Peer:
    """A host that can be entered: its name for people, and the command line to its relay.

    ``enter`` is what it is asked for; the broker adds the command, and what makes ``entry`` unique.
    """

    name: str
    ssh: tuple[str, ...]
    enter: Enter


class Happening(Record):
    """A line of what the broker tells: something that happened on a ``host``, by its name.

    ``ready`` comes first, and is of no host. ``lost`` and ``refused`` say ``why``; ``refused`` has
    a Reason's value as ``reason``. ``exited`` has a ``code`` or ``signal``. Neither follows for an
    entry that has come to one of these ends. ``at`` is Unix time.
    """

    event: Literal["ready", "entered", "sampled", "exited", "lost", "refused"]
    at: float
    host: str = ""
    address: str = ""
    entry: str = ""
    why: str = ""
    reason: str = ""
    code: int | None = None
    signal: int | None = None
    sample: dict[str, int | float | str | list[float] | None] | None = None


def write_plan(folder: Path, launch: Path, peers: Mapping[str, Peer]) -> None:
    """Write into ``folder`` what the broker needs: the laid folder, and the peers by address.

    Raises OSError.
    """
    raise NotImplementedError


def command(folder: Path) -> tuple[str, ...]:
    """Give the command line of a broker whose plan is in ``folder``."""
    raise NotImplementedError


def read_events(folder: Path, offset: int = 0) -> tuple[list[Happening], int]:
    """Read what the broker told from a byte offset on, and the offset to go on at.

    What it says of a host is final. Nothing, while there is no such file. Raises OSError.
    """
    raise NotImplementedError
