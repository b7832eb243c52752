"""All commands: their arguments and help texts. What they do is imported when they are called."""

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from simagent.cli.app import Id, Ids, Json, NewId, OutputDir, SpecFile, app
from simagent.cli.config_command import config as config_app
from simagent.cli.file_commands import download, ls, sync, tail
from simagent.cli.image_commands import images
from simagent.cli.mpi_command import mpi
from simagent.cli.options import command
from simagent.cli.setup_command import setup

if TYPE_CHECKING:
    from simagent.config import Config

__all__ = ["app"]


@command(app, "run")
def run(
    config: "Config",
    spec: SpecFile,
    output_dir: OutputDir = None,
    task_id: NewId = None,
    quiet: Annotated[
        bool, typer.Option("--quiet", "-q", help="Print the simulation's output alone.")
    ] = False,
) -> int:
    """Submit a task, run it here, and follow it.

    Exits with 0 if the task succeeded, with 1 if not. Ctrl-C kills the task; a second one leaves
    at once.

    \b
    simagent run task.toml -o results
    """
    from simagent.cli.running import run_here

    return run_here(config, spec, output_dir=output_dir, task_id=task_id, quiet=quiet)


@command(app, "agent")
def agent(
    config: "Config",
    until_empty: Annotated[
        bool, typer.Option("--until-empty", help="End when no task waits and none runs.")
    ] = False,
    cluster: Annotated[
        str | None, typer.Option("--cluster", metavar="NAME", help="MPI cluster it belongs to.")
    ] = None,
    role: Annotated[
        str | None,
        typer.Option(
            "--role", metavar="ROLE", help="head takes tasks, member the ranks that a head has."
        ),
    ] = None,
) -> int:
    """Run the agent: take tasks until told to stop.

    SIGTERM lets go: simulations run on, and the next agent takes them up again. Ctrl-C takes no
    more tasks and waits for those that run; a second one gives them back; a third one lets go.
    """
    from simagent.cli.daemon import in_cluster, run_agent

    return run_agent(in_cluster(config, cluster, role), until_empty=until_empty)


@command(app, "drain")
def drain(
    config: "Config",
    *,
    wait: Annotated[bool, typer.Option("--wait", help="Wait until the agent has ended.")] = False,
    undo: Annotated[bool, typer.Option("--undo", help="Let the agent take tasks again.")] = False,
    give_back: Annotated[
        bool, typer.Option("--give-back", help="End what it runs, for other agents to go on.")
    ] = False,
    within: Annotated[
        str | None,
        typer.Option("--within", metavar="TIME", help="For that, as 90 or 2min; default: 90."),
    ] = None,
) -> None:
    """Let this machine's agent take no more tasks.

    It ends when those that it runs have ended, or were given back.
    """
    from simagent.cli.draining import drain_agent, give_tasks_back

    if give_back or within is not None:
        give_tasks_back(config, wait=wait, undo=undo, within=within or "90", asked=give_back)
    else:
        drain_agent(config, wait=wait, undo=undo)


@command(app, "status")
def status(config: "Config", as_json: Json = False) -> None:
    """Tell how this machine's agent stands, by its own word.

    Exits with 0 if it answers, with 1 if none does. Asks neither the store nor the queue.
    """
    from simagent.cli.status import show_status

    show_status(config, as_json=as_json)


@command(app, "submit")
def submit(
    config: "Config",
    spec: SpecFile,
    *,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Print the log, exit with the outcome.")
    ] = False,
    task_id: NewId = None,
    array: Annotated[
        int | None, typer.Option("--array", metavar="N", min=1, help="Submit it N times.")
    ] = None,
    as_json: Json = False,
) -> int:
    """Submit a task; prints its id, and nothing else: id=$(simagent submit task.toml)"""
    from simagent.cli.tasks import submit_task

    return submit_task(config, spec, follow=follow, task_id=task_id, array=array, as_json=as_json)


@command(app, "wait")
def wait(config: "Config", task_ids: Ids, as_json: Json = False) -> int:
    """Wait for the end of tasks.

    Exits with 0 only if all of them succeeded."""
    from simagent.cli.tasks import wait_for

    return wait_for(config, task_ids, as_json=as_json)


@command(app, "list")
def list_(
    config: "Config",
    *,
    status: Annotated[
        list[str] | None, typer.Option("--status", "-s", metavar="STATUS", help="Only these.")
    ] = None,
    name: Annotated[
        str | None, typer.Option("--name", metavar="GLOB", help="Only tasks of such a name.")
    ] = None,
    tag: Annotated[
        list[str] | None, typer.Option("--tag", metavar="KEY=VALUE", help="Only tasks tagged so.")
    ] = None,
    array: Annotated[
        str | None, typer.Option("--array", metavar="ID", help="Only tasks of this array.")
    ] = None,
    limit: Annotated[
        int, typer.Option("--limit", "-n", min=0, help="At most so many; 0: all of them.")
    ] = 50,
    as_json: Json = False,
) -> None:
    """List the tasks of the project, the newest first.

    \b
    simagent list --status running --name 'melt-*'
    """
    from simagent.cli.listing import list_tasks

    list_tasks(
        config,
        statuses=status or [],
        name=name,
        tags=tag or [],
        array=array,
        limit=limit,
        as_json=as_json,
    )


@command(app, "show")
def show(config: "Config", task_id: Id, as_json: Json = False) -> None:
    """Show a task: its status, timeline, steps, attempts."""
    from simagent.cli.listing import show_task

    show_task(config, task_id, as_json=as_json)


@command(app, "logs")
def logs(
    config: "Config",
    task_id: Id,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Go on until the task has ended.")
    ] = False,
    stdout: Annotated[bool, typer.Option("--stdout", help="The default.")] = False,
    stderr: Annotated[
        bool, typer.Option("--stderr", help="Print standard error; with --stdout: both.")
    ] = False,
) -> None:
    """Print what a task's commands have written, byte for byte."""
    from simagent.cli.following import print_logs

    print_logs(config, task_id, follow=follow, stdout=stdout or not stderr, stderr=stderr)


command(app, "ls")(ls)
command(app, "tail")(tail)
command(app, "sync")(sync)


@command(app, "kill")
def kill(
    config: "Config",
    task_ids: Ids,
    grace: Annotated[
        str | None,
        typer.Option("--grace", metavar="TIME", help="From SIGTERM to SIGKILL, as 30 or 2min."),
    ] = None,
) -> None:
    """End tasks.

    What they have written so far is uploaded all the same."""
    from simagent.cli.tasks import kill_tasks

    kill_tasks(config, task_ids, grace=grace)


@command(app, "retry")
def retry(config: "Config", task_id: Id) -> None:
    """Submit an ended task once more; prints the new id."""
    from simagent.cli.tasks import retry_task

    retry_task(config, task_id)


command(app, "download")(download)


@command(app, "delete")
def delete(config: "Config", task_ids: Ids) -> None:
    """Delete ended tasks with their logs and outputs."""
    from simagent.cli.tasks import delete_tasks

    delete_tasks(config, task_ids)


@command(app, "prune")
def prune(
    config: "Config",
    older_than: Annotated[
        str, typer.Option("--older-than", metavar="TIME", help="Time since their end, as 30d.")
    ],
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
) -> None:
    """Delete the tasks that ended some time ago.

    \b
    simagent prune --older-than 30d
    """
    from simagent.cli.tasks import prune_tasks

    prune_tasks(config, older_than=older_than, yes=yes)


app.add_typer(config_app)
app.add_typer(images)
app.add_typer(mpi)


@command(app, "agents")
def agents(
    config: "Config",
    *,
    group: Annotated[
        str | None, typer.Option("--group", "-g", metavar="NAME", help="Only those of a group.")
    ] = None,
    every: Annotated[
        bool, typer.Option("--all", "-a", help="Also those that have been silent for a day.")
    ] = False,
    prune: Annotated[
        bool, typer.Option("--prune", help="Remove those that are gone; takes minutes to see.")
    ] = False,
    as_json: Json = False,
) -> None:
    """List the agents: what each is, and what it runs.

    \b
    simagent agents --group big-machines
    """
    from simagent.cli.agents import list_agents, prune_agents

    if prune:
        prune_agents(config, group=group, as_json=as_json)
    else:
        list_agents(config, group=group, every=every, as_json=as_json)


@command(app, "sweep")
def sweep(
    config: "Config",
    no_wait: Annotated[
        bool, typer.Option("--no-wait", help="Look once; do not wait to see which agents live.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Look after the group's open tasks.

    Rings lost bells again and ends what nobody can run, as agents do every few minutes. Whether
    an agent lives takes two looks, a minute apart.
    """
    from simagent.cli.sweeping import sweep_group

    sweep_group(config, wait=not no_wait, as_json=as_json)


command(app, "setup")(setup)


@command(app, "doctor")
def doctor(config: "Config", as_json: Json = False) -> int:
    """Tell what this machine offers, and what is missing.

    Tries the store and the queue, and names the command that mends what is wrong."""
    from simagent.cli.doctor import examine

    return examine(config, as_json=as_json)


@app.command("schema")
def schema() -> None:
    """Print the JSON Schema of task files."""
    from simagent.cli.schema import schema_text

    sys.stdout.write(schema_text())
