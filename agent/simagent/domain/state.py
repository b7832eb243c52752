"""state.json, the truth about a task: its statuses, the legal changes, its fields."""

from collections.abc import Mapping
from enum import StrEnum
from types import MappingProxyType
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field

from simagent.domain.reasons import Reason

FORMAT = 1
MAX_ATTEMPT_RECORDS = 20


class Status(StrEnum):
    """Where a task stands. docs/states.md tells who sets each."""

    SUBMITTED = "submitted"
    """The client has begun to submit it: its inputs may still be on their way."""
    QUEUED = "queued"
    """It is complete and waits for an agent."""
    PREPARING = "preparing"
    """An agent holds it and fetches its image and inputs."""
    RUNNING = "running"
    """Its commands run."""
    FINALIZING = "finalizing"
    """Its commands are over, the outcome is fixed, the outputs are being uploaded."""
    SUCCEEDED = "succeeded"
    """Every command exited with 0 and the outputs are published."""
    FAILED = "failed"
    """A command failed, or its inputs were refused; what there was of outputs is published."""
    KILLED = "killed"
    """Somebody asked for its end."""
    TIMED_OUT = "timed_out"
    """It ran longer than its time limit."""
    ERROR = "error"
    """The platform could not run it."""
    DELETED = "deleted"
    """It was deleted; only this tombstone is left."""


HELD = frozenset({Status.PREPARING, Status.RUNNING, Status.FINALIZING})
OUTCOMES = frozenset(
    {Status.SUCCEEDED, Status.FAILED, Status.KILLED, Status.TIMED_OUT, Status.ERROR}
)
TERMINAL = OUTCOMES | {Status.DELETED}

_CLOSED = frozenset({Status.KILLED, Status.ERROR})
TRANSITIONS: Mapping[Status, frozenset[Status]] = MappingProxyType(
    {
        Status.SUBMITTED: frozenset({Status.QUEUED}) | _CLOSED,
        Status.QUEUED: frozenset({Status.PREPARING}) | _CLOSED,
        # From a held status: forward by the holder, back to `queued` by its requeue, to
        # `preparing` by another agent's claim once the holder is proven dead.
        Status.PREPARING: frozenset(
            {Status.PREPARING, Status.RUNNING, Status.FINALIZING, Status.QUEUED}
        )
        | _CLOSED,
        Status.RUNNING: frozenset({Status.PREPARING, Status.FINALIZING, Status.QUEUED}) | _CLOSED,
        Status.FINALIZING: frozenset({Status.PREPARING}) | OUTCOMES,
        **{outcome: frozenset({Status.DELETED}) for outcome in OUTCOMES},
        Status.DELETED: frozenset(),
    }
)


class Record(BaseModel):
    """Base of the stored models: immutable; fields of newer writers are kept on rewrite."""

    model_config = ConfigDict(extra="allow", frozen=True)

    def with_(self, **changes: object) -> Self:
        """Copy with some fields changed."""
        return self.model_copy(update=changes)


class Document(Record):
    """Base of those that are changed by compare-and-swap; ``write_id`` tells the last writer."""

    format: int
    write_id: str = ""


class Lease(Record):
    """The right to run a task now. ``beat`` grows with every renewal."""

    agent: str
    incarnation: str
    beat: int = 0


class Kill(Record):
    """The wish that a task end. ``at`` is Unix time, ``grace`` seconds (None: the spec's)."""

    by: str
    at: float
    grace: float | None = None


class Counters(Record):
    """How often attempts ended without an outcome."""

    losses: int = 0
    errors: int = 0
    preemptions: int = 0


class StepRecord(Record):
    """One step of an attempt, as far as it came. Times are seconds, ``started`` is Unix time."""

    number: int
    argv: tuple[str, ...]
    exit_code: int | None = None
    signal: int | None = None
    started: float | None = None
    seconds: float | None = None
    user_seconds: float | None = None
    system_seconds: float | None = None
    max_rss_bytes: int | None = None


class Timing(Record):
    """One operation of the timeline."""

    seconds: float
    bytes: int | None = None
    started: float | None = None


class Output(Record):
    """What an attempt published: in one ``archive``, or as single files beneath a ``folder``."""

    epoch: int
    layout: Literal["archive", "files"] = "archive"
    archive: str = ""
    folder: str = ""
    manifest: str
    manifest_sha256: str
    files: int
    bytes: int
    archive_bytes: int = 0


class Attempt(Record):
    """One claim of the task by one agent."""

    epoch: int
    agent: str
    version: str
    machine: dict[str, str | int | float] = Field(default_factory=dict)
    price: str | None = None
    started: float
    ended: float | None = None
    image_digest: str | None = None
    steps: tuple[StepRecord, ...] = ()
    timings: dict[str, Timing] = Field(default_factory=dict)
    ran_seconds: float | None = None
    reason: Reason | None = None
    message: str = ""
    restart: int | None = None
    """The attempt whose checkpoint it went on from."""
    note: str = ""
    """What a person should know of its start."""
    partial: Output | None = None
    """What there was of outputs when it was given back."""


class Checkpoint(Record):
    """Files from which a later attempt goes on, as attempt ``epoch`` had left them ``at`` a time.

    One archive of them all, ``bytes`` unpacked. ``number`` rises over the task's whole life.
    """

    epoch: int
    number: int
    archive: str
    sha256: str
    archive_bytes: int
    files: int
    bytes: int
    at: float


class State(Document):
    """The whole of state.json."""

    format: Annotated[int, Field(ge=1)] = FORMAT
    status: Status
    epoch: int = 0
    lease: Lease | None = None
    kill: Kill | None = None
    outcome: Status | None = None
    reason: Reason | None = None
    message: str = ""
    stderr_tail: str = ""
    counters: Counters = Counters()
    attempts: tuple[Attempt, ...] = ()
    checkpoint: Checkpoint | None = None
    output: Output | None = None
    submitted_by: str = ""
    submitted_at: float
    ended_at: float | None = None
    retry_of: str | None = None
    spec_sha256: str
    bell_at: float | None = None
    write_id: str = ""

    @property
    def terminal(self) -> bool:
        """Whether the task has ended for good."""
        return self.status in TERMINAL

    @property
    def judged(self) -> "Judged":
        """What a verdict about the task's holder rests on."""
        return Judged.of(self)


class Judged(BaseModel):
    """What an observer saw when it judged a task: the precondition of what it does about it."""

    model_config = ConfigDict(frozen=True)

    status: Status
    epoch: int
    agent: str | None
    incarnation: str | None
    beat: int | None

    @classmethod
    def of(cls, state: State) -> Self:
        """Take it from the state."""
        lease = state.lease
        return cls(
            status=state.status,
            epoch=state.epoch,
            agent=lease.agent if lease else None,
            incarnation=lease.incarnation if lease else None,
            beat=lease.beat if lease else None,
        )


class Holder(BaseModel):
    """One incarnation of an agent, holding one attempt."""

    model_config = ConfigDict(frozen=True)

    agent: str
    incarnation: str
    epoch: int
