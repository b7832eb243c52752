"""Commands that act on tasks: submit, wait, kill, retry, delete, prune."""

import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import typer

from simagent.api import Client, Spec, State, Status, Task, UsageError
from simagent.api.reading import to_seconds
from simagent.api.report import describe, headline, tail
from simagent.api.specs import read_spec
from simagent.cli.following import relay
from simagent.cli.opening import open_client
from simagent.cli.progress import progress_bar
from simagent.cli.text import coloured, put, put_json, say
from simagent.config import Config


def submit_task(
    config: Config,
    path: Path,
    *,
    follow: bool,
    task_id: str | None,
    array: int | None,
    as_json: bool,
) -> int:
    """Submit a task, or an array of them; print its id, or follow it to its end."""
    client = open_client(config)
    spec, base = read_spec(path, config)
    if array is not None or spec.array is not None:
        size = spec.array.size if array is None and spec.array else array
        if follow:
            raise UsageError("--follow: an array has many logs: wait for it, or follow one task")
        return _submit_array(client, spec, base, size or 0, task_id, as_json=as_json)
    task = send(client, spec, base=base, task_id=task_id)
    if as_json and not follow:
        put_json({"task": task.id})
        return 0
    if not follow:
        put(task.id)
        return 0
    say(f"task {task.id} waits for an agent of group {task.spec.group}")
    relay(task)
    state = task.wait(progress=False)
    for line in (*headline(task, state, task.spec, coloured), *tail(state)):
        say(line)
    return exit_code(state)


def _submit_array(
    client: Client, spec: Spec, base: Path, size: int, array_id: str | None, *, as_json: bool
) -> int:
    """Submit an array, with a bar on a terminal; print its id."""
    with progress_bar("tasks", size, counts=True) as bar:
        array = client.submit_array(
            spec,
            size=size,
            base=base,
            array_id=array_id,
            on_progress=None if bar is None else lambda done: bar.reach(done, size),
        )
    if as_json:
        put_json({"array": array.id, "tasks": [task.id for task in array]})
    else:
        put(array.id)
    return 0


def send(
    client: Client,
    what: Path | Spec,
    *,
    base: Path | None = None,
    task_id: str | None,
    ring: bool = True,
) -> Task:
    """Submit a task, with a bar on a terminal while its inputs are sent."""
    with progress_bar("inputs") as bar:
        return client.submit(
            what,
            base=base,
            task_id=task_id,
            ring=ring,
            on_progress=None if bar is None else lambda sent: bar.reach(sent, None),
        )


def wait_for(config: Config, task_ids: Sequence[str], *, as_json: bool) -> int:
    """Wait for each task; print how it ended."""
    client = open_client(config)
    ended = []
    for task, state in _ends(client, task_ids):
        ended.append((task, state))
        if not as_json:
            put(" ".join(filter(None, (task.id, state.status, state.reason or ""))))
    if as_json:
        put_json([describe(task, state, None) for task, state in ended])
    return max(exit_code(state) for _, state in ended)


def _ends(client: Client, task_ids: Sequence[str]) -> Iterator[tuple[Task, State]]:
    """Wait for tasks, one after the other, and for those of arrays as they end."""
    for task_id in task_ids:
        array = client.find_array(task_id)
        if array is not None:
            yield from array.wait()
        else:
            task = client.task(task_id)
            yield task, task.wait()


def kill_tasks(config: Config, task_ids: Sequence[str], *, grace: str | None) -> None:
    """Ask for the end of tasks; print what came of it."""
    with _options():
        within = None if grace is None else to_seconds("grace", grace)
    client = open_client(config)
    for task_id in task_ids:
        array = client.find_array(task_id)
        if array is not None:
            put(f"{array.id}: {counted(array.kill(grace=within))}")
            continue
        task = client.task(task_id)
        before = task.state
        state = task.kill(grace=within)
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
    put(open_client(config).task(task_id).retry().id)


def delete_tasks(config: Config, task_ids: Sequence[str]) -> None:
    """Delete tasks; print each."""
    client = open_client(config)
    for task_id in task_ids:
        (client.find_array(task_id) or client.task(task_id)).delete()
        put(f"{task_id} deleted")


def prune_tasks(config: Config, *, older_than: str, yes: bool) -> None:
    """Delete old tasks, once somebody has agreed."""
    with _options():
        deleted = open_client(config).prune(older_than=older_than)
    if not yes:
        if not sys.stdin.isatty():
            raise UsageError("--yes: nobody is here to be asked: add it to delete the tasks")
        if not typer.confirm(f"Delete all tasks that ended more than {older_than} ago?", err=True):
            return
    count = 0
    for task_id in deleted:
        put(f"{task_id} deleted")
        count += 1
    say(f"{count} tasks deleted")


def counted(counts: Mapping[Status, int]) -> str:
    """Write how many tasks stand how."""
    return ", ".join(f"{count} {status}" for status, count in counts.items()) or "no tasks"


def exit_code(state: State) -> int:
    """Tell the exit code of a command that ends with a task's outcome."""
    return 0 if state.status is Status.SUCCEEDED else 1


@contextmanager
def _options() -> Iterator[None]:
    """Name the option where a value of it is wrong."""
    try:
        yield
    except UsageError as error:
        what, _, why = str(error).partition(": ")
        raise UsageError(f"--{what.replace('_', '-')}: {why}") from None
