"""The configuration: each field declared once.

From flag > SIMAGENT_* > systemd's credential > agent.toml > default.
"""

import os
from pathlib import Path
from typing import Annotated, ClassVar, Literal
from urllib.parse import quote

from pydantic import AfterValidator, BeforeValidator, Field, ValidationInfo
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)

from simagent.config_mpi import MpiSettings
from simagent.config_sources import TomlFile, at_home
from simagent.config_urls import check_endpoint, check_listen, check_queue, check_store
from simagent.domain.ids import check_name
from simagent.domain.quantities import Bytes, Seconds
from simagent.domain.spec import ImageName, Name, Tag
from simagent.domain.times import Times

PREFIX = "SIMAGENT_"
"""Of the variables of the environment that are settings."""


class ConfigError(Exception):
    """The configuration is wrong; the message names the field and the fix, one line each."""


def default_state_dir() -> Path:
    """Tell where everything lands without configuration."""
    if os.geteuid() == 0:
        return Path("/var/lib/simagent")
    data = os.environ.get("XDG_DATA_HOME") or "~/.local/share"
    return Path(data).expanduser().absolute() / "simagent"


def _no_credentials(names: tuple[str, ...]) -> tuple[str, ...]:
    for name in names:
        if name.startswith("AWS_"):
            raise ValueError(
                f"{name} may hold credentials of the agent's, which no task gets: put those of a "
                "task into its own env"
            )
    return names


def _goes_with_action(argv: tuple[str, ...], others: ValidationInfo) -> tuple[str, ...]:
    wanted = others.data.get("idle_action", "command" if argv else "") == "command"
    if wanted and not (argv and argv[0]):
        raise ValueError("idle_action = command needs it: name a program, as ['/bin/program']")
    if argv and not wanted:
        raise ValueError("it is run with idle_action = 'command' alone")
    return argv


def _goes_with_lifetime(grace: float | None, others: ValidationInfo) -> float | None:
    if grace is not None and others.data.get("max_lifetime", 0) is None:
        raise ValueError("it comes after max_lifetime: set that, too")
    return grace


class Config(BaseSettings):
    """Everything that can be set, for the agent and for its clients."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, frozen=True, extra="forbid")

    files: ClassVar[tuple[Path, ...]] = ()
    """Those of settings."""

    state_dir: Annotated[Path, AfterValidator(at_home), AfterValidator(Path.absolute)] = Field(
        default_factory=default_state_dir, description="Where the agent keeps its own files."
    )
    queue: Annotated[str, AfterValidator(check_queue)] | None = Field(
        None, description="Task queue; default: a SQLite file in the state folder."
    )
    store: Annotated[str, AfterValidator(check_store)] | None = Field(
        None, description="Object store; default: a folder in the state folder."
    )
    sqs_region: str | None = Field(
        None, description="AWS region of the SQS queue; default: as boto3 finds it."
    )
    sqs_endpoint: Annotated[str, AfterValidator(check_endpoint)] | None = Field(
        None, description="URL of an SQS-compatible server; default: that of AWS."
    )
    sqs_ca_bundle: Annotated[Path, AfterValidator(at_home)] | None = Field(
        None, description="File with the certificates to trust for SQS."
    )
    s3_endpoint: Annotated[str, AfterValidator(check_endpoint)] | None = Field(
        None, description="URL of the S3 that has the store; default: AWS."
    )
    s3_region: str | None = Field(
        None, description="Region of the bucket; default: what boto3 finds (AWS_REGION, a profile)."
    )
    s3_path_style: bool | None = Field(
        None,
        description="Name the bucket in the path, not the host; default: where s3_endpoint is set.",
    )
    s3_ca_bundle: Annotated[Path, AfterValidator(at_home)] | None = Field(
        None, description="File with the certificates to trust for S3."
    )
    s3_kms_key: str | None = Field(
        None,
        description="Key of AWS KMS that objects are encrypted with; default: the bucket's way.",
    )
    group: Name = Field("default", description="Machine group whose tasks the agent takes.")
    project: Name = Field("default", description="Project of tasks that name none.")
    agent: Annotated[str, AfterValidator(check_name)] | None = Field(
        None, description="Name of this agent; default: made once, and kept in the state folder."
    )
    role: Literal["head", "member"] = Field(
        "head", description="head: takes tasks; member: takes ranks that the head of a cluster has."
    )
    cluster: Name | None = Field(
        None, description="MPI cluster that the agent leads, or is a member of."
    )
    slots: Annotated[int, Field(ge=1)] = Field(
        1, description="Tasks that the agent runs side by side."
    )
    tags: tuple[Tag, ...] = Field((), description="What tasks can `require` of the agent.")
    gpus: tuple[str, ...] = Field(
        (), description="GPUs to give to tasks, by number or UUID; default: NVIDIA's that are here."
    )
    allow_process: bool | None = Field(
        None,
        description="Run commands of tasks as programs of this machine; "
        "default: with sqlite and file alone.",
    )
    runtimes: tuple[Literal["docker", "apptainer"], ...] = Field(
        ("docker", "apptainer"), description="What runs images, the preferred one first."
    )
    docker_host: str | None = Field(
        None, description="Docker Engine; default: DOCKER_HOST, else the one of this machine."
    )
    apptainer: str = Field("apptainer", description="Program that runs Apptainer images.")
    task_uid: Annotated[int, Field(ge=1)] | None = Field(
        None, description="Whom a root agent's tasks run as; default: each slot's simtask-N."
    )
    allow_root_process: bool | None = Field(
        None,
        description="Run a root agent's tasks without an image as root; "
        "default: where there is no simtask-0, and by `simagent run`.",
    )
    allow_root_images: bool = Field(
        False, description="Run images that ask for root as root, confined as all containers."
    )
    insecure_registries: tuple[str, ...] = Field(
        (), description="Registries, as HOST:PORT, that Apptainer may use without TLS."
    )
    sif_cache: bool = Field(
        False, description="Keep what Apptainer converted in the store, for all agents."
    )
    prefetch: tuple[ImageName, ...] = Field(
        (), description="Images to fetch when the agent starts, and to keep."
    )
    images_high: Annotated[float, Field(gt=0, le=100)] = Field(
        85.0, description="Percent of the disk used above which unused images are removed."
    )
    images_low: Annotated[float, Field(gt=0, le=100)] = Field(
        75.0, description="Percent of the disk used at which no more images are removed."
    )
    pass_env: Annotated[tuple[str, ...], AfterValidator(_no_credentials)] = Field(
        ("PATH", "HOME", "USER", "LOGNAME", "LANG", "LC_ALL", "TZ", "LD_LIBRARY_PATH"),
        description="Variables of the agent's environment that commands get to see.",
    )
    mpirun: str = Field(
        "mpirun",
        description="Program that starts MPI ranks; {version} in it is that which a step asks for.",
    )
    cloud: Literal["auto", "aws", "gcp", "azure", "none"] = Field(
        "auto",
        description="Cloud that is asked whether it takes the machine away; "
        "auto: as the firmware tells.",
    )
    cloud_endpoint: Annotated[str, AfterValidator(check_endpoint)] | None = Field(
        None, description="URL of the cloud's metadata server; default: http://169.254.169.254."
    )
    idle_timeout: Annotated[Seconds, Field(gt=0)] | None = Field(
        None, description="Seconds with nothing to do after which the agent ends; default: never."
    )
    idle_action: Literal["exit", "poweroff", "terminate", "command"] = Field(
        "exit",
        description="What is done then, and after max_lifetime: end the agent alone, power the "
        "machine off, have AWS end it, or run idle_command.",
    )
    idle_command: Annotated[tuple[str, ...], AfterValidator(_goes_with_action)] = Field(
        (),
        validate_default=True,
        description="Program, and its arguments, that idle_action = command runs.",
    )
    max_lifetime: Annotated[Seconds, Field(gt=0)] | None = Field(
        None,
        description="Seconds since the boot, or with exit since the agent's start, after which no "
        "more tasks are taken, and the agent ends; default: never.",
    )
    max_lifetime_grace: Annotated[Seconds | None, AfterValidator(_goes_with_lifetime)] = Field(
        None,
        description="Seconds after that at which tasks that still run are given back; "
        "default: they run to their end.",
    )
    pack_threads: Annotated[int, Field(ge=0)] = Field(
        0, description="Threads that compress outputs; 0: one for each core."
    )
    orphan_limit: Annotated[Seconds, Field(ge=120)] = Field(
        1800.0, description="Seconds a command may run on without any agent; at least 120."
    )
    sample_every: Annotated[Seconds, Field(gt=0)] = Field(
        5.0, description="Seconds between two samples of the metrics."
    )
    max_input_bytes: Bytes = Field(
        100 * 2**30, description="Bytes an input may have when it is unpacked."
    )
    max_input_files: int = Field(1_000_000, description="Files an input may have.")
    limits: Literal["auto", "cgroup", "rlimits"] = Field(
        "auto", description="What enforces limits; auto: cgroups where the agent can make them."
    )
    max_processes: Annotated[int, Field(ge=0)] = Field(
        16_384, description="Processes and threads a task may have at a time; 0: any number."
    )
    max_file_bytes: Bytes = Field(
        0, description="Bytes a file may have that a command writes; 0: any number."
    )
    max_log_bytes: Bytes = Field(
        10 * 10**9, description="Bytes kept of what an attempt prints, of each stream; 0: all."
    )
    min_free: Bytes = Field(
        256 * 2**20, description="Bytes kept free on the disk of the state folder; 0: none."
    )
    metrics_listen: Annotated[str, BeforeValidator(str), AfterValidator(check_listen)] | None = (
        Field(
            None,
            description="Where Prometheus finds the agent's metrics, as PORT of loopback or "
            "HOST:PORT; default: nowhere.",
        )
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="What the agent's own log tells."
    )
    log_format: Literal["auto", "json", "pretty"] = Field(
        "auto", description="Form of the agent's own log; auto: pretty on a terminal."
    )
    mpi: MpiSettings = Field(MpiSettings(), description="MPI, also on the hosts of a cluster.")
    times: Times = Field(Times(), description="The protocol's times; the same in a whole group.")

    @property
    def queue_url(self) -> str:
        """The queue, also where none was named."""
        return self.queue or f"sqlite://{quote(str(self.state_dir))}/queue.db"

    @property
    def store_url(self) -> str:
        """The store, also where none was named."""
        return self.store or f"file://{quote(str(self.state_dir))}/store"

    @property
    def embedded(self) -> bool:
        """Whether queue and store are of this machine alone."""
        return self.queue_url.startswith("sqlite:") and self.store_url.startswith("file:")

    @property
    def store_charges(self) -> bool:
        """Whether each request to the store costs money and time."""
        return not self.store_url.startswith("file:")

    @property
    def process_allowed(self) -> bool:
        """Whether tasks may run programs of this machine.

        Not by default where others reach queue and store: it is not for them to use as its user.
        """
        return self.embedded if self.allow_process is None else self.allow_process

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Order the sources; of the files of settings the first outweighs the others."""
        del dotenv_settings, file_secret_settings
        return (
            init_settings,
            env_settings,
            *(TomlFile(settings_cls, file) for file in cls.files),
        )
