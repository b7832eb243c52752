"""The options that every command has, before or after its name, and how they become a Config."""

import functools
import inspect
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from simagent.config import Config

Queue = Annotated[
    str | None,
    typer.Option(
        "--queue", metavar="URL", help="Task queue: sqlite:///PATH or sqs://NAME. [SIMAGENT_QUEUE]"
    ),
]
Store = Annotated[
    str | None,
    typer.Option(
        "--store",
        metavar="URL",
        help="Object store: file:///DIR or s3://BUCKET/PREFIX. [SIMAGENT_STORE]",
    ),
]
StateDir = Annotated[
    Path | None,
    typer.Option("--state-dir", metavar="DIR", help="The agent's folder. [SIMAGENT_STATE_DIR]"),
]
ConfigFile = Annotated[
    Path | None,
    typer.Option("--config", metavar="FILE", help="Settings, in TOML. [SIMAGENT_CONFIG]"),
]
Project = Annotated[
    str | None,
    typer.Option("--project", metavar="NAME", help="Project of the tasks. [SIMAGENT_PROJECT]"),
]
COMMON: Mapping[str, Any] = {
    "queue": Queue,
    "store": Store,
    "state_dir": StateDir,
    "config": ConfigFile,
    "project": Project,
}


def command(
    app: typer.Typer, name: str
) -> Callable[[Callable[..., int | None]], Callable[..., int | None]]:
    """Make a function a command that has the common options, too.

    The function's first argument is the `Config` they make; what it returns is the exit code.
    """

    def register(function: Callable[..., int | None]) -> Callable[..., int | None]:
        @functools.wraps(function)
        def call(ctx: typer.Context, **given: Any) -> None:
            flags = {option: given.pop(option) for option in COMMON}
            raise typer.Exit(function(_config(ctx.obj or {}, flags), **given) or 0)

        _, *own = inspect.signature(function).parameters.values()
        keyword = inspect.Parameter.KEYWORD_ONLY
        parameters = [
            inspect.Parameter("ctx", inspect.Parameter.POSITIONAL_ONLY, annotation=typer.Context),
            *(parameter.replace(kind=keyword) for parameter in own),
            *(
                inspect.Parameter(option, keyword, default=None, annotation=annotation)
                for option, annotation in COMMON.items()
            ),
        ]
        call.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        call.__annotations__ = {p.name: p.annotation for p in parameters}
        app.command(name)(call)
        return function

    return register


def _config(before: Mapping[str, Any], after: Mapping[str, Any]) -> "Config":
    """Read the configuration; an option after the command's name outweighs the one before it."""
    from simagent.cli.agentlog import warnings_to_stderr
    from simagent.config_load import load_config

    warnings_to_stderr()
    flags = {n: before.get(n) if value is None else value for n, value in after.items()}
    path = flags.pop("config") or os.environ.get("SIMAGENT_CONFIG")
    return load_config(Path(path) if path else None, **flags)
