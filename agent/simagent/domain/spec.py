"""The task spec: what a user asks for. JSON, TOML and YAML carry the same fields."""

import re
import shlex
from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Annotated, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    field_validator,
    model_validator,
)

from simagent.domain.ids import check_id, check_name, check_tag
from simagent.domain.images import ImageRef, parse_image
from simagent.domain.quantities import Bytes, Seconds

FORMAT = 1
MAX_RANKS = 65_536
_ENV_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


def check_relative(value: str) -> str:
    """Return a path that stays beneath the folder it is taken from. Raises ValueError."""
    if "\0" in value:
        raise ValueError("a path cannot contain a NUL character")
    path = PurePosixPath(value)
    if path.is_absolute():
        raise ValueError(f"{value!r} is absolute: write it relative to the task's folder")
    if ".." in path.parts:
        raise ValueError(f"{value!r} leads out of the task's folder: remove the '..'")
    return value


def _check_env(value: dict[str, str]) -> dict[str, str]:
    for name, text in value.items():
        if not _ENV_NAME.fullmatch(name):
            raise ValueError(f"{name!r} is no name of a variable: use letters, digits and '_'")
        if name.startswith("SIMAGENT_"):
            raise ValueError(f"{name} is the agent's own: variables SIMAGENT_* cannot be set")
        if "\0" in text:
            raise ValueError(f"the value of {name} contains a NUL character")
    return value


def _check_image(value: str) -> str:
    parse_image(value)
    return value


def _as_text(value: object) -> object:
    if isinstance(value, Mapping):
        return {
            k: str(v) if isinstance(v, int | float) and not isinstance(v, bool) else v
            for k, v in value.items()
        }
    return value


RelativePath = Annotated[str, AfterValidator(check_relative)]
Environment = Annotated[dict[str, str], BeforeValidator(_as_text), AfterValidator(_check_env)]
Name = Annotated[str, AfterValidator(check_name)]
Tag = Annotated[str, AfterValidator(check_tag)]
ImageName = Annotated[str, AfterValidator(_check_image)]


class Part(BaseModel):
    """Base of the spec's models: immutable, and an unknown field is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Mpi(Part):
    """How a command is started as MPI ranks."""

    np: Annotated[int, Field(ge=1, le=MAX_RANKS, strict=True)] | Literal["max"] = Field(
        description='Number of ranks, or "max" for one on every core.'
    )
    hosts: Annotated[int, Field(ge=1)] | None = Field(
        None, description="Number of hosts of the cluster; default: as few as the ranks need."
    )
    ranks_per_host: Annotated[int, Field(ge=1)] | None = Field(
        None, description="Ranks on each host; default: as many as it has slots."
    )
    bind: Literal["core", "hwthread", "socket", "none"] | None = Field(
        None, description="What each rank is bound to."
    )
    oversubscribe: bool = Field(False, description="Allow more ranks than there are cores.")
    args: tuple[str, ...] = Field((), description="Further options for mpirun.")
    version: str | None = Field(
        None,
        description="MPI version of the machine, whose mpirun then starts ranks in images, too.",
    )
    force: bool = Field(
        False, description="Start ranks although MPI versions of host and image do not fit."
    )


class Command(Part):
    """One step. In a spec it may also be a string (split as a shell would, never run by one)."""

    run: str | tuple[str, ...] = Field(description="The program and its arguments.")
    shell: bool = Field(False, description="Run the string by /bin/sh -c.")
    stdin: str | tuple[str, ...] | None = Field(
        None, description="Text for standard input; a list is one answer a line."
    )
    env: Environment = Field(default_factory=dict, description="Variables of this step only.")
    workdir: RelativePath = Field(".", description="Where it starts, beneath the task's folder.")
    mpi: Mpi | None = Field(None, description="Start the command as MPI ranks.")

    @model_validator(mode="before")
    @classmethod
    def _short_forms(cls, value: object) -> object:
        return {"run": value} if isinstance(value, str | list | tuple) else value

    @model_validator(mode="after")
    def _runnable(self) -> Self:
        if self.shell and not isinstance(self.run, str):
            raise ValueError("with shell: true, run must be one string")
        if self.shell and self.mpi is not None:
            raise ValueError("mpi starts programs, not shell lines: remove shell: true")
        argv = self.argv()
        if not argv or not argv[0].strip():
            raise ValueError("the command is empty: name a program")
        if any("\0" in word for word in argv):
            raise ValueError("the command contains a NUL character")
        return self

    def argv(self) -> tuple[str, ...]:
        """Give the program and its arguments, without the launcher. Raises ValueError."""
        if not isinstance(self.run, str):
            return self.run
        if self.shell:
            return ("/bin/sh", "-c", self.run) if self.run.strip() else ()
        try:
            return tuple(shlex.split(self.run))
        except ValueError as error:
            raise ValueError(f"cannot split {self.run!r} ({error}): close the quote") from None

    def stdin_bytes(self) -> bytes | None:
        """Give what the step reads from standard input; None is an empty input."""
        if self.stdin is None:
            return None
        text = self.stdin if isinstance(self.stdin, str) else "".join(f"{x}\n" for x in self.stdin)
        return text.encode()


class Input(Part):
    """Something laid into the task's folder before the first step.

    In a spec it may also be a string: the source alone.
    """

    source: str = Field(
        min_length=1,
        description="A folder, file or .zip on the submitting machine, or a URL: "
        "file://, http://, https://, task://ID/pattern.",
    )
    destination: RelativePath = Field(".", description="Where it goes, beneath the task's folder.")
    unpack: bool | None = Field(
        None, description="Unpack a .zip archive; by default where the name ends in .zip."
    )

    @model_validator(mode="before")
    @classmethod
    def _short_form(cls, value: object) -> object:
        return {"source": value} if isinstance(value, str) else value

    @property
    def scheme(self) -> str:
        """Tell the URL scheme, empty for a local path."""
        head, mark, _ = self.source.partition("://")
        return head if mark else ""


class Outputs(Part):
    """What is uploaded when the steps are over."""

    include: tuple[RelativePath, ...] = Field(("**",), description="Globs of what to upload.")
    exclude: tuple[RelativePath, ...] = Field((), description="Globs of what to leave out.")
    unchanged_inputs: bool = Field(False, description="Upload inputs the run did not change, too.")
    layout: Literal["archive", "files"] = Field("archive", description="One zip, or single files.")


class Resources(Part):
    """What the task needs of a machine."""

    cpus: Annotated[float, Field(gt=0)] | None = Field(None, description="Cores.")
    memory: Bytes | None = Field(None, description="Bytes of memory.")
    gpus: Annotated[int, Field(ge=0)] | None = Field(None, description="GPUs.")
    disk: Bytes | None = Field(None, description="Bytes of free disk.")
    shm: Bytes | None = Field(None, description="Bytes of /dev/shm.")


def _short_name(value: object) -> object:
    """Give a signal's name without the letters that all of them begin with."""
    return value.upper().removeprefix("SIG") if isinstance(value, str) else value


class Checkpoint(Part):
    """What a later attempt needs to go on where this one stopped."""

    paths: tuple[RelativePath, ...] = Field(min_length=1, description="Globs of the files.")
    every: Annotated[Seconds, Field(gt=0)] = Field(600.0, description="Seconds between uploads.")
    signal: Annotated[Literal["USR1", "USR2"], BeforeValidator(_short_name)] | None = Field(
        None, description="Signal at which the simulator writes one, and goes on."
    )


class Watch(Part):
    """Something to look out for while the task runs."""

    name: Name = Field(description="What the event is called.")
    file: RelativePath | None = Field(None, description="A file that shall appear.")
    regex: str | None = Field(None, description="A regular expression to find.")
    within: RelativePath | None = Field(None, description="The file searched; default: stdout.")


class Array(Part):
    """The same task many times, told apart by SIMAGENT_ARRAY_INDEX."""

    size: Annotated[int, Field(ge=1, le=100_000)] = Field(description="Number of tasks.")
    id: Annotated[str, AfterValidator(check_id)] | None = Field(
        None, description="The array a task is of: set when it is submitted."
    )
    index: Annotated[int, Field(ge=0)] | None = Field(
        None, description="Which of its tasks it is, from 0: set when it is submitted."
    )


class Spec(Part):
    """A task: an image, commands, inputs, outputs."""

    format: Annotated[int, Field(ge=1)] = Field(FORMAT, description="Version of this format.")
    name: Annotated[str, Field(max_length=200)] = Field("", description="For people to read.")
    image: ImageName | None = Field(None, description="Container image the commands run in.")
    runtime: Literal["auto", "docker", "apptainer", "process"] = Field(
        "auto", description="What runs the commands."
    )
    commands: tuple[Command, ...] = Field(
        min_length=1, max_length=10_000, description="The steps, in order."
    )
    inputs: tuple[Input, ...] = Field((), description="Laid into the task's folder, in order.")
    outputs: Outputs = Field(Outputs(), description="What is uploaded.")
    resources: Resources = Field(Resources(), description="What it needs.")
    network: Literal["none", "host"] | None = Field(
        None, description="Network of the commands; containers have none unless asked."
    )
    env: Environment = Field(default_factory=dict, description="Variables of every step.")
    time_limit: Annotated[Seconds, Field(gt=0)] | None = Field(
        None, description="Seconds the steps of one attempt may take."
    )
    grace: Seconds = Field(30.0, description="Seconds between SIGTERM and SIGKILL.")
    max_attempts: Annotated[int, Field(ge=1, le=1000)] = Field(
        3, description="Attempts that may be lost or fail retryably."
    )
    max_preemptions: Annotated[int, Field(ge=0, le=1000)] = Field(
        20, description="Times the machine may be taken away."
    )
    on_preempt: Literal["requeue", "fail"] = Field("requeue", description="What preemption does.")
    on_partition: Literal["continue", "stop"] = Field(
        "continue", description="What a step does while the store cannot be reached."
    )
    checkpoint: Checkpoint | None = Field(None, description="What a later attempt goes on from.")
    watches: tuple[Watch, ...] = Field((), description="Events to look out for.")
    progress: str | None = Field(None, description="Regular expression that finds the progress.")
    require: tuple[Tag, ...] = Field((), description="Tags an agent must have.")
    group: Name = Field("default", description="Machine group whose agents may run it.")
    project: Name = Field("default", description="Project it belongs to.")
    tags: Annotated[dict[str, str], BeforeValidator(_as_text)] = Field(
        default_factory=dict, description="For people and `list --tag`."
    )
    priority: Annotated[int, Field(ge=-100, le=100)] = Field(0, description="Higher goes first.")
    array: Array | None = Field(None, description="Submit the same task many times.")
    depends_on: tuple[Annotated[str, AfterValidator(check_id)], ...] = Field(
        (), description="Tasks that must have succeeded before."
    )
    expires_at: float | None = Field(None, description="Unix time after which it must not start.")
    retention: Seconds | None = Field(None, description="Seconds until it may be deleted.")
    idempotency_key: str | None = Field(None, description="Same key, same task.")

    @property
    def image_ref(self) -> ImageRef | None:
        """The image, None where the commands are programs of the machine."""
        return None if self.image is None else parse_image(self.image)

    @field_validator("tags")
    @classmethod
    def _tags(cls, value: dict[str, str]) -> dict[str, str]:
        for name in value:
            check_name(name)
        return value
