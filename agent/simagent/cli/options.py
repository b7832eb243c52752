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
    # What is wrong with the file is said where it is read, whoever names it.
    typer.Option(
        "--config", metavar="FILE", help="Settings, in TOML. [SIMAGENT_CONFIG]", readable=False
    ),
]
Project = Annotated[
    str | None,
    typer.Option("--project", metavar="NAME", help="Project of the tasks. [SIMAGENT_PROJECT]"),
]
ReadSettings = Callable[[Path | None], "tuple[Config, dict[str, str]]"]
"""Reads the configuration, from another file if one is given, and tells where each setting comes
from. Raises `ConfigError`."""

COMMON: Mapping[str, Any] = {
    "queue": Queue,
    "store": Store,
    "state_dir": StateDir,
    "config": ConfigFile,
    "project": Project,
}


def command(
    app: typer.Typer, name: str, *, unread: bool = False
) -> Callable[[Callable[..., int | None]], Callable[..., int | None]]:
    """Make a function a command that has the common options, too.

    The function's first argument is the `Config` they make, or if ``unread`` what reads it,
    `ReadSettings`; what it returns is the exit code.
    """

    def register(function: Callable[..., int | None]) -> Callable[..., int | None]:
        @functools.wraps(function)
        def call(ctx: typer.Context, **given: Any) -> None:
            flags = {option: given.pop(option) for option in COMMON}
            read = functools.partial(_settings, ctx.obj or {}, flags)
            raise typer.Exit(function(read if unread else read(None)[0], **given) or 0)

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


def _settings(
    before: Mapping[str, Any], after: Mapping[str, Any], file: Path | None
) -> "tuple[Config, dict[str, str]]":
    """Read the configuration; an option after the command's name outweighs the one before it."""
    from simagent.cli.agentlog import warnings_to_stderr
    from simagent.config_load import load_settings
    from simagent.config_sources import use_aws_keys

    warnings_to_stderr()
    use_aws_keys(os.environ)
    flags = {n: before.get(n) if value is None else value for n, value in after.items()}
    named = flags.pop("config") or os.environ.get("SIMAGENT_CONFIG")
    return load_settings(file or (Path(named) if named else None), **flags)
