"""`simagent list` and `simagent show`."""

from collections.abc import Iterator, Sequence
from difflib import get_close_matches
from fnmatch import fnmatchcase
from itertools import islice

from simagent.api.report import describe, full
from simagent.cli.text import coloured, columns, moment, printable, put, put_json, seconds
from simagent.client import ClientError, Listed, Tasks, UsageError
from simagent.config import Config
from simagent.domain.keys import TaskKeys
from simagent.domain.spec import Spec
from simagent.domain.state import Status
from simagent.wiring import open_tasks


def list_tasks(
    config: Config,
    *,
    statuses: Sequence[str],
    name: str | None,
    tags: Sequence[str],
    limit: int,
    as_json: bool,
) -> None:
    """Print the tasks that match all that was asked for."""
    wanted = {_status(text) for text in statuses}
    pairs = [_tag(text) for text in tags]
    found = _matching(open_tasks(config).list(), wanted, name, pairs)
    rows = list(islice(found, limit or None))
    if as_json:
        put_json([describe(row.task, row.state, row.spec) for row in rows])
        return
    if not rows:
        put("no such tasks" if wanted or name or pairs else "no tasks yet: submit one")
        return
    lines = columns([("ID", "STATUS", "REASON", "SUBMITTED", "RAN", "NAME"), *map(_cells, rows)])
    put(lines[0])
    for line, row in zip(lines[1:], rows, strict=True):
        put(coloured(line, row.state.status))


def show_task(config: Config, task_id: str, *, as_json: bool) -> None:
    """Print all about one task."""
    client = open_tasks(config)
    task = client.task(task_id)
    state, spec = client.state(task), spec_of(client, task)
    refusals = client.refusals(task) if state.status is Status.QUEUED else ()
    if as_json:
        put_json(describe(task, state, spec) | {"refusals": [r.model_dump() for r in refusals]})
        return
    for line in full(task, state, spec, refusals, coloured):
        put(line)


def spec_of(client: Tasks, task: TaskKeys) -> Spec | None:
    """Read a task's spec; None where it was deleted, or cannot be read."""
    try:
        return client.spec(task)
    except ClientError:
        return None


def _matching(
    rows: Iterator[Listed], statuses: set[Status], name: str | None, tags: list[tuple[str, str]]
) -> Iterator[Listed]:
    for row in rows:
        spec = row.spec
        if row.state.status not in (statuses or set(Status) - {Status.DELETED}):
            continue
        if name is not None and not (spec and fnmatchcase(spec.name, name)):
            continue
        if all(spec and spec.tags.get(key) == value for key, value in tags):
            yield row


def _cells(row: Listed) -> tuple[str, ...]:
    state = row.state
    ran = state.attempts[-1].ran_seconds if state.attempts else None
    return (
        row.task.id,
        state.status,
        state.reason or "",
        moment(state.submitted_at),
        seconds(ran),
        printable(row.spec.name) if row.spec else "",
    )


def _status(text: str) -> Status:
    try:
        return Status(text)
    except ValueError:
        close = get_close_matches(text, list(Status), n=1)
        hint = f"did you mean {close[0]}?" if close else f"use one of {', '.join(Status)}"
        raise UsageError(f"--status: {text!r} is no status: {hint}") from None


def _tag(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not equals:
        raise UsageError(f"--tag: {text!r} has no value: write it as KEY=VALUE")
    return key, value
