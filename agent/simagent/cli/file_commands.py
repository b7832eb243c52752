"""The commands about a task's files: their arguments and help texts."""

from typing import TYPE_CHECKING, Annotated

import typer

from simagent.cli.app import Id, Json, OutputDir, Timeout

if TYPE_CHECKING:
    from simagent.config import Config


def ls(
    config: "Config",
    task_id: Id,
    path: Annotated[
        str, typer.Argument(metavar="PATH", help="A folder or file of the task's.")
    ] = "",
    timeout: Timeout = 10.0,
    as_json: Json = False,
) -> None:
    """List a task's files, also while it runs."""
    from simagent.cli.files import list_files

    list_files(config, task_id, path, timeout=timeout, as_json=as_json)


def tail(
    config: "Config",
    *,
    task_id: Id,
    path: Annotated[str, typer.Argument(metavar="FILE", help="A file of the task's.")],
    lines: Annotated[int, typer.Option("--lines", "-n", min=0, help="So many last lines.")] = 10,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Go on until the task has ended.")
    ] = False,
    timeout: Timeout = 10.0,
) -> None:
    """Print the end of one of a task's files, also while it runs.

    \b
    simagent tail -f ID log.lammps
    """
    from simagent.cli.files import tail_file

    tail_file(config, task_id, path, lines=lines, follow=follow, timeout=timeout)


def sync(
    config: "Config",
    task_id: Id,
    patterns: Annotated[
        list[str] | None,
        typer.Argument(metavar="PATTERN", help="Globs of what to fetch; default: all."),
    ] = None,
    output_dir: OutputDir = None,
    timeout: Timeout = 10.0,
) -> None:
    """Fetch what a running task has made so far.

    \b
    simagent sync ID '*.vtk' -o so-far
    """
    from simagent.cli.downloading import sync_outputs

    sync_outputs(config, task_id, patterns or [], output_dir, timeout=timeout)


def download(
    config: "Config",
    task_id: Id,
    patterns: Annotated[
        list[str] | None,
        typer.Argument(metavar="PATTERN", help="Globs of what to fetch; default: all."),
    ] = None,
    output_dir: OutputDir = None,
    attempt: Annotated[
        int | None,
        typer.Option("--attempt", metavar="N", min=1, help="What this one left, given back."),
    ] = None,
) -> int:
    """Fetch a task's outputs.

    They go into a folder named after the task, unless another is named.

    \b
    simagent download ID '*.png' 'fields/**' -o results
    """
    from simagent.cli.downloading import download_outputs

    return download_outputs(config, task_id, patterns or [], output_dir, attempt=attempt)
