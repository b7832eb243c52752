"""Commands that act on tasks: submit, wait, kill, retry, delete, prune."""

import sys
from collections.abc import Sequence
from pathlib import Path

import typer

from simagent.api.report import describe, headline, tail
from simagent.api.specs import read_spec
from simagent.cli.following import relay
from simagent.cli.text import coloured, put, put_json, say
from simagent.client import UsageError, whoami
from simagent.config import Config
from simagent.domain.quantities import parse_duration
from simagent.domain.state import State, Status
from simagent.wiring import open_tasks


def submit_task(config: Config, path: Path, *, follow: bool, task_id: str | None) -> int:
    """Submit a task; print its id, or follow it to its end."""
    spec, base = read_spec(path, config)
    client = open_tasks(config)
    task = client.submit(spec, base=base, task_id=task_id)
    if not follow:
        put(task.id)
        return 0
    say(f"task {task.id} waits for an agent of group {spec.group}")
    relay(client, task)
    state = client.wait(task)
    for line in (*headline(task, state, spec, coloured), *tail(state)):
        say(line)
    return exit_code(state)


def wait_for(config: Config, task_ids: Sequence[str], *, as_json: bool) -> int:
    """Wait for each task; print how it ended."""
    client = open_tasks(config)
    ended = []
    for task in [client.task(task_id) for task_id in task_ids]:
        state = client.wait(task)
        ended.append((task, state))
        if not as_json:
            put(" ".join(filter(None, (task.id, state.status, state.reason or ""))))
    if as_json:
        put_json([describe(task, state, None) for task, state in ended])
    return max(exit_code(state) for _, state in ended)


def kill_tasks(config: Config, task_ids: Sequence[str], *, grace: str | None) -> None:
    """Ask for the end of tasks; print what came of it."""
    within = None if grace is None else _duration("--grace", grace)
    client = open_tasks(config)
    by = whoami()
    for task in [client.task(task_id) for task_id in task_ids]:
        before = client.state(task)
        state = client.kill(task, by=by, grace=within)
        if before.terminal:
            put(f"{task.id} had ended before: {state.status}")
        elif state.terminal:
            put(f"{task.id} {state.status}")
        elif state.status is Status.FINALIZING:
            put(f"{task.id} is over already, its outputs are being uploaded: it ends as it did")
        elif before.kill is not None:
            grace_of_it = "its own" if before.kill.grace is None else f"{before.kill.grace:g} s of"
            put(
                f"{task.id} is being ended already: {before.kill.by} asked for it, "
                f"with {grace_of_it} grace, and that stands"
            )
        else:
            put(f"{task.id} is being ended")


def retry_task(config: Config, task_id: str) -> None:
    """Submit a task once more; print the new id."""
    client = open_tasks(config)
    put(client.retry(client.task(task_id)).id)


def delete_tasks(config: Config, task_ids: Sequence[str]) -> None:
    """Delete tasks; print each."""
    client = open_tasks(config)
    for task in [client.task(task_id) for task_id in task_ids]:
        client.delete(task)
        put(f"{task.id} deleted")


def prune_tasks(config: Config, *, older_than: str, yes: bool) -> None:
    """Delete old tasks, once somebody has agreed."""
    age = _duration("--older-than", older_than)
    client = open_tasks(config)
    if not yes:
        if not sys.stdin.isatty():
            raise UsageError("--yes: nobody is here to be asked: add it to delete the tasks")
        if not typer.confirm(f"Delete all tasks that ended more than {older_than} ago?", err=True):
            return
    count = 0
    for task in client.prune(older_than=age):
        put(f"{task.id} deleted")
        count += 1
    say(f"{count} tasks deleted")


def exit_code(state: State) -> int:
    """Tell the exit code of a command that ends with a task's outcome."""
    return 0 if state.status is Status.SUCCEEDED else 1


def _duration(option: str, text: str) -> float:
    try:
        value = parse_duration(text)
    except ValueError as error:
        raise UsageError(f"{option}: {error}") from None
    assert isinstance(value, float)
    return value
