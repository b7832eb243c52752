"""The fields of a task as keywords of Python: what docs/spec.md tells, for type checkers."""

from collections.abc import Mapping, Sequence
from os import PathLike
from typing import Any, Literal, TypedDict

Argv = Sequence[str]
Table = Mapping[str, Any]


class SpecFields(TypedDict, total=False):
    """What a task may be given as keywords; each is explained in docs/spec.md.

    Durations are seconds or text as "2h", sizes bytes or text as "4GB".
    """

    name: str
    image: str | None
    runtime: Literal["auto", "docker", "apptainer", "process"]
    commands: Sequence[str | Argv | Table]
    inputs: Sequence[str | PathLike[str] | Table]
    outputs: Table
    resources: Table
    network: Literal["none", "host"] | None
    env: Mapping[str, str | int | float]
    time_limit: float | str | None
    grace: float | str
    max_attempts: int
    max_preemptions: int
    on_preempt: Literal["requeue", "fail"]
    on_partition: Literal["continue", "stop"]
    checkpoint: Table | None
    watches: Sequence[Table]
    progress: str | None
    require: Sequence[str]
    group: str
    project: str
    tags: Mapping[str, str | int | float]
    priority: int
    array: Table | None
    depends_on: Sequence[str]
    expires_at: float | None
    retention: float | str | None
    idempotency_key: str | None
