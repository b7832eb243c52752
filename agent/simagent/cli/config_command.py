"""`simagent config`: its commands, their arguments and help texts."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from simagent.cli.app import Json
from simagent.cli.options import command

if TYPE_CHECKING:
    from simagent.cli.options import ReadSettings

config = typer.Typer(
    name="config",
    help="The settings: what is wrong with them, and where each comes from.",
    rich_markup_mode=None,
    no_args_is_help=True,
)

_File = Annotated[
    Path | None,
    typer.Argument(
        metavar="[FILE]",
        help="Settings, in TOML; default: those that the agent has.",
        readable=False,
    ),
]


@config.callback()
def group() -> None:
    """The settings: what is wrong with them, and where each comes from."""


@command(config, "check", unread=True)
def check(
    read: "ReadSettings",
    file: _File = None,
    *,
    offline: Annotated[
        bool, typer.Option("--offline", help="Ask neither the store nor the queue.")
    ] = False,
    as_json: Json = False,
) -> int:
    """Tell what is wrong with the settings, and whether an agent could work with them.

    Exits with 2 where they are wrong, with 1 where something that they name is not there or cannot
    be used, else with 0. Tries the store and the queue, as the doctor does.

    \b
    simagent config check /etc/simagent/agent.toml
    """
    from simagent.cli.config_check import check_settings

    return check_settings(read, file, offline=offline, as_json=as_json)


@command(config, "show", unread=True)
def show(read: "ReadSettings", file: _File = None, *, as_json: Json = False) -> None:
    """Print all settings as they are in force, and where each comes from."""
    from simagent.cli.config_check import show_settings

    show_settings(read, file, as_json=as_json)
