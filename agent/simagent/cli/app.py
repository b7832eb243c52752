"""The command line's root: the options before any command, and what commands share."""

from pathlib import Path
from typing import Annotated

import typer

from simagent import __version__
from simagent.cli.options import ConfigFile, Project, Queue, StateDir, Store

app = typer.Typer(
    name="simagent",
    help="Run simulations from a task queue: on this machine, or on a fleet of them.",
    rich_markup_mode=None,  # rich would be imported for --help
    pretty_exceptions_enable=False,
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)

SpecFile = Annotated[
    Path, typer.Argument(metavar="SPEC", help="Task file: .toml, .yaml or .json; - is stdin.")
]
Id = Annotated[str, typer.Argument(metavar="ID", help="The task.")]
Ids = Annotated[list[str], typer.Argument(metavar="ID", help="The tasks.")]
NewId = Annotated[
    str | None,
    typer.Option("--id", metavar="ID", help="Id of the new task; default: one is made."),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON, for scripts.")]
Timeout = Annotated[
    float,
    typer.Option("--timeout", metavar="SECONDS", min=0, help="How long the agent may take."),
]
OutputDir = Annotated[
    Path | None, typer.Option("-o", "--output-dir", metavar="DIR", help="Put the outputs here.")
]


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"simagent {__version__}")
        raise typer.Exit


@app.callback()
def root(
    ctx: typer.Context,
    *,
    queue: Queue = None,
    store: Store = None,
    state_dir: StateDir = None,
    config: ConfigFile = None,
    project: Project = None,
    version: Annotated[  # noqa: ARG001 - its callback does it
        bool,
        typer.Option("--version", callback=_version, is_eager=True, help="Print the version."),
    ] = False,
) -> None:
    """Run simulations from a task queue: on this machine, or on a fleet of them."""
    ctx.obj = {
        "queue": queue,
        "store": store,
        "state_dir": state_dir,
        "config": config,
        "project": project,
    }
