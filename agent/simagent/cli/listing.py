"""`simagent list` and `simagent show`."""

from collections.abc import Sequence

from simagent.api import Array, State, Task, UsageError
from simagent.api.report import describe
from simagent.cli.opening import open_client
from simagent.cli.text import coloured, columns, moment, printable, put, put_json, seconds
from simagent.config import Config


def list_tasks(
    config: Config,
    *,
    statuses: Sequence[str],
    name: str | None,
    tags: Sequence[str],
    array: str | None,
    limit: int,
    as_json: bool,
) -> None:
    """Print the tasks that match all that was asked for."""
    try:
        found = open_client(config).tasks(
            status=statuses, name=name, tag=tags, array=array, limit=limit or None
        )
    except UsageError as error:
        raise UsageError(f"--{error}") from None
    tasks = [(task, task.last_state or task.state) for task in found]
    if as_json:
        put_json([describe(task, state, task.readable_spec()) for task, state in tasks])
        return
    if not tasks:
        put("no such tasks" if statuses or name or tags else "no tasks yet: submit one")
        return
    head = ("ID", "STATUS", "REASON", "SUBMITTED", "RAN", "NAME")
    lines = columns([head, *(_cells(task, state) for task, state in tasks)])
    put(lines[0])
    for line, (_task, state) in zip(lines[1:], tasks, strict=True):
        put(coloured(line, state.status))


def show_task(config: Config, task_id: str, *, as_json: bool) -> None:
    """Print all about one task."""
    client = open_client(config)
    array = client.find_array(task_id)
    if array is not None:
        _show_array(array, as_json=as_json)
        return
    task = client.task(task_id)
    if as_json:
        put_json(task.describe())
    else:
        put(task.show(paint=coloured))


def _show_array(array: Array, *, as_json: bool) -> None:
    """Print how many tasks of an array stand how."""
    counts = array.counts()
    if as_json:
        put_json({"array": array.id, "name": array.name, "size": len(array), "counts": counts})
        return
    put(f"array {array.id}{': ' if array.name else ''}{printable(array.name)}")
    for line in columns([(status, str(count)) for status, count in counts.items()]):
        put(line)


def _cells(task: Task, state: State) -> tuple[str, ...]:
    ran = state.attempts[-1].ran_seconds if state.attempts else None
    spec = task.readable_spec()
    return (
        task.id,
        state.status,
        state.reason or "",
        moment(state.submitted_at),
        seconds(ran),
        printable(spec.name) if spec else "",
    )
