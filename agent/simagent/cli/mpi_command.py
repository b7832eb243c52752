"""`simagent mpi`: its command, the arguments and help texts."""

from typing import TYPE_CHECKING, Annotated

import typer

from simagent.cli.app import Json
from simagent.cli.options import command

if TYPE_CHECKING:
    from simagent.config import Config

mpi = typer.Typer(
    name="mpi",
    help="MPI on this machine, or on the hosts of its cluster.",
    rich_markup_mode=None,
    no_args_is_help=True,
)


@mpi.callback()
def group() -> None:
    """MPI on this machine, or on the hosts of its cluster."""


@command(mpi, "check")
def check(
    config: "Config",
    *,
    np: Annotated[
        str, typer.Option("--np", metavar="N", help="Ranks; max is one for each core.")
    ] = "max",
    hosts: Annotated[
        int | None, typer.Option("--hosts", metavar="N", min=1, help="Hosts of the cluster.")
    ] = None,
    image: Annotated[
        str | None, typer.Option("--image", metavar="IMAGE", help="Run the ranks in this image.")
    ] = None,
    runtime: Annotated[
        str | None,
        typer.Option("--runtime", metavar="NAME", help="docker or apptainer, with --image."),
    ] = None,
    mpi_version: Annotated[
        str | None,
        typer.Option("--mpi-version", metavar="VERSION", help="As a step asks by mpi.version."),
    ] = None,
    timeout: Annotated[
        float, typer.Option("--timeout", metavar="SECONDS", min=1, help="Wait no longer.")
    ] = 900.0,
    keep: Annotated[bool, typer.Option("--keep", help="Do not delete the task.")] = False,
    as_json: Json = False,
) -> int:
    """Try MPI: start ranks as a task does, and tell where they are and how fast they speak.

    Exits with 1 where a rank or a host is missing, versions differ, or the folder is not shared.

    \b
    simagent mpi check --hosts 2 --image registry.example/lammps:1
    """
    from simagent.api import UsageError
    from simagent.cli.mpi_check import check_mpi
    from simagent.cli.mpi_task import Asked

    if np != "max" and not (np.isdigit() and int(np)):
        raise UsageError(f"--np: {np!r} is no number of ranks: use 1 or more, or max")
    asked = Asked(
        np="max" if np == "max" else int(np),
        hosts=hosts,
        image=image,
        runtime=runtime,
        version=mpi_version,
    )
    return check_mpi(config, asked, timeout=timeout, keep=keep, as_json=as_json)
