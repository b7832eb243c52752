"""`simagent images`: its commands, their arguments and help texts."""

from typing import TYPE_CHECKING, Annotated

import typer

from simagent.cli.app import Json
from simagent.cli.options import command

if TYPE_CHECKING:
    from simagent.config import Config

images = typer.Typer(
    name="images",
    help="The container images that were fetched to this machine.",
    rich_markup_mode=None,
    no_args_is_help=True,
)

Runtime = Annotated[
    str | None,
    typer.Option("--runtime", metavar="NAME", help="docker or apptainer; default: as for tasks."),
]


@command(images, "list")
def list_(config: "Config", as_json: Json = False) -> None:
    """List the images that were fetched for tasks."""
    from simagent.cli.images import list_images

    list_images(config, as_json=as_json)


@command(images, "pull")
def pull(
    config: "Config",
    *,
    refs: Annotated[list[str], typer.Argument(metavar="IMAGE", help="What tasks name as image.")],
    runtime: Runtime = None,
    pin: Annotated[bool, typer.Option("--pin", help="Keep it until it is pruned by name.")] = False,
) -> None:
    """Fetch images, so that tasks need not wait for them.

    \b
    simagent images pull --pin registry.example/lammps:1
    """
    from simagent.cli.images import pull_images

    pull_images(config, refs, runtime=runtime, pin=pin)


@command(images, "prune")
def prune(
    config: "Config",
    *,
    refs: Annotated[
        list[str] | None,
        typer.Argument(metavar="IMAGE", help="Only these, also where they are pinned."),
    ] = None,
    runtime: Runtime = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
) -> None:
    """Remove images that no task uses; without a name, all that are not pinned."""
    from simagent.cli.images import prune_images

    prune_images(config, refs or [], runtime=runtime, yes=yes)
