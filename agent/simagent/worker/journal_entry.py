"""What the journal of an attempt says, and how it is read: a file that outlives versions.

An older one is read as this version's would be: what it does not say has its default. What a newer
one says may mean something else, so that it is left as it is.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from simagent.domain.keys import TaskKeys
from simagent.domain.reasons import Reason
from simagent.domain.state import Attempt, Holder, Record, Status
from simagent.ports.launcher import Host
from simagent.worker.shares import Share

FORMAT = 1
NAME = "journal.json"


class Place(Record):
    """A host that ranks of an attempt run on; the first of them is the head.

    ``agent`` is that of the host, ``slots`` are the ranks that it takes at most. ``interface`` is
    the name of MPI's network's, where that was chosen, and there is nothing faster than TCP.
    """

    name: str
    address: str
    slots: int
    agent: str
    interface: str = ""

    @property
    def host(self) -> Host:
        """The host as launchers see it."""
        return Host(address=self.address, slots=self.slots)


class Entry(Record):
    """What the journal of one attempt says.

    It is begun before the claim is written to the store, so whether the claim was applied is
    only told by the task's state. Once ``outcome`` is set, the steps are over.
    """

    format: int = FORMAT
    project: str
    task: str
    group: str
    epoch: int
    agent: str
    incarnation: str
    earlier: tuple[str, ...] = ()
    """Incarnations whose lease may still stand in the state, while a restart takes it over."""
    receipt: str | None = None
    boot_id: str
    steps_started: float | None = None
    """Boot time at which the first step was about to start; the time limit counts from here."""
    prepared: bool = False
    """The inputs are laid and the snapshot of them is taken."""
    attempt: Attempt
    share: Share = Share()
    """What of the machine was given to it."""
    runtime: str = "process"
    """What runs the steps, from the first one to the last."""
    image: str | None = None
    """The image they run in, by its handle."""
    user: tuple[int, int] | None = None
    """Whom they run as, in it or as programs of this host: user and group number; None: as the
    agent."""
    cluster: str | None = None
    """The cluster whose head the agent is, where steps run on several of its hosts."""
    hosts: tuple[Place, ...] = ()
    """The hosts of these steps, the head first: chosen once, so that plans stay the same."""
    shared: str | None = None
    """Where the task's files lie: a folder that these hosts share."""
    network: str | None = None
    """What ranks use to reach those on other hosts, as ADDRESS/BITS."""
    max_log_bytes: int | None = 10 * 10**9
    """What is kept of each stream: what was configured when the attempt began."""
    cut_at: Mapping[str, int] = {}
    """What is kept of a stream that there was no room for in the store."""
    stopping: Reason | None = None
    """Why the running step was told to end."""
    trial: bool = False
    """Whether it is the agent's own, of no task in the store: what is left of it goes."""
    crashes: int = 0
    """How often carrying the attempt on ended the agent."""
    outcome: Status | None = None
    reason: Reason | None = None

    @property
    def keys(self) -> TaskKeys:
        """Where the task lies in the store."""
        return TaskKeys(self.project, self.task)

    @property
    def holder(self) -> Holder:
        """Who holds the task, by this journal."""
        return Holder(agent=self.agent, incarnation=self.incarnation, epoch=self.epoch)


class NewerFormatError(ValueError):
    """A journal was written by a newer version of the agent, in a format that is not known here."""


@dataclass(frozen=True, slots=True)
class NewerJournal:
    """The folder of an attempt that a newer version began: nothing in it is ever changed.

    ``entry`` is what can be read of it with what is known here, None where that is not enough.
    """

    folder: Path
    task: TaskKeys
    epoch: int
    image: str | None
    shared: str | None
    entry: Entry | None


def read_entry(folder: Path) -> Entry:
    """Read the journal in a folder. Raises OSError, ValueError, RecursionError."""
    fields = read_fields(folder)
    if is_newer(fields):  # before anything else: all of it may mean something else there
        raise NewerFormatError(f"written in format {fields['format']}, by a newer version")
    return Entry.model_validate(fields)


def read_fields(folder: Path) -> dict[str, Any]:
    """Read what it says, whatever its format. Raises the same."""
    fields = json.loads((folder / NAME).read_bytes())
    if not isinstance(fields, dict):
        raise ValueError(f"{NAME} is not a JSON object")
    return fields


def is_newer(fields: Mapping[str, Any]) -> bool:
    """Tell whether it is of a format that is not known here."""
    version = fields.get("format")
    return isinstance(version, int) and version > FORMAT


def newer_journal(folder: Path, fields: Mapping[str, Any]) -> NewerJournal:
    """Tell what is known of such an attempt; its folder's name is as good as what it says."""
    project, task, epoch = folder.name.rsplit(".", 2)
    try:
        entry = Entry.model_validate({**fields, "format": FORMAT})
    except ValueError:
        entry = None
    image, shared = fields.get("image"), fields.get("shared")
    return NewerJournal(
        folder=folder,
        task=TaskKeys(project, task),
        epoch=int(epoch),
        image=image if isinstance(image, str) else None,
        shared=shared if isinstance(shared, str) else None,
        entry=entry,
    )
