"""The table ``[mpi]`` of the configuration: MPI on the hosts of a cluster."""

import ipaddress
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from simagent.domain.spec import ImageName

_MOST_HOSTS = 1024


def _absolute(path: Path) -> Path:
    if not path.is_absolute() or ".." in path.parts:
        raise ValueError(f"{str(path)!r} is no absolute path: write it from / on")
    return path


def _interface(value: str) -> str:
    """Take the name of a network interface, or a network as ADDRESS/BITS."""
    if "/" in value:
        try:
            ipaddress.ip_network(value, strict=False)
        except ValueError as error:
            raise ValueError(
                f"{value!r}: {error}: use a name such as eth0, or ADDRESS/BITS"
            ) from None
    elif not value or len(value) > 15 or any(c.isspace() or c in "/," for c in value):
        raise ValueError(f"{value!r} is no interface: use a name such as eth0, or ADDRESS/BITS")
    return value


def _hosts(names: tuple[str, ...]) -> tuple[str, ...]:
    for number, name in enumerate(names):
        if not name or name.startswith("-") or any(c.isspace() or c in ",:/" for c in name):
            raise ValueError(f"{name!r} is no name of a host")
        if name in names[:number]:
            raise ValueError(f"two hosts are named {name}: name each once")
    return names


class MpiSettings(BaseModel):
    """How ranks are started on this host, and with a cluster on which others.

    Of the head are ``hosts``, ``hostfile``, ``size``, ``mode``, ``check``, ``check_image`` and
    ``allow``, of members ``ssh_port`` and ``ssh_user``; ``slots``, ``interface`` and ``shared_dir``
    each host has of its own.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    hosts: Annotated[tuple[str, ...], AfterValidator(_hosts)] = Field(
        (),
        max_length=_MOST_HOSTS,
        description="Hosts of the cluster to use, in this order; default: all that are there.",
    )
    hostfile: Annotated[Path, AfterValidator(_absolute)] | None = Field(
        None, description="File with these hosts, one a line, NAME or NAME slots=N."
    )
    size: Annotated[int, Field(ge=1, le=_MOST_HOSTS)] | None = Field(
        None,
        description="Hosts that have to be there before a first task, the head among them; "
        "default: those named, else the head alone.",
    )
    slots: Annotated[int, Field(ge=1)] | None = Field(
        None, description="Ranks that this host takes; default: one for each physical core."
    )
    interface: Annotated[str, AfterValidator(_interface)] | None = Field(
        None,
        description="Network of MPI and ssh, by the name of the interface or as ADDRESS/BITS; "
        "default: that of the default route.",
    )
    shared_dir: Annotated[Path, AfterValidator(_absolute)] | None = Field(
        None, description="Folder that all hosts of the cluster share, at its path on this one."
    )
    mode: Literal["auto", "contained", "hybrid"] = Field(
        "auto", description="What starts ranks in images: their own mpirun, or that of the host."
    )
    ssh_port: Annotated[int, Field(ge=1, le=65_535)] = Field(
        2222, description="Port of the member's own ssh server."
    )
    ssh_user: str | None = Field(
        None,
        description="Whom a member lets in; default: its agent's user, of root's simagent-mpi.",
    )
    check: bool = Field(
        True, description="Try MPI on all hosts when they are there, as `simagent mpi check` does."
    )
    check_image: ImageName | None = Field(
        None, description="Image to try it in; default: programs of the hosts."
    )
    allow: tuple[str, ...] = Field(
        (), description="Options of mpirun that tasks may give although they are refused otherwise."
    )

    @model_validator(mode="after")
    def _one_list(self) -> "MpiSettings":
        if self.hosts and self.hostfile is not None:
            raise ValueError("hosts and hostfile both name hosts: remove one of them")
        return self
