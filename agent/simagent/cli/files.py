"""`simagent ls` and `simagent tail`."""

import json
import sys

from simagent.cli.text import columns, moment, printable, put, say, size
from simagent.client import TaskFiles
from simagent.config import Config
from simagent.domain.live import Item
from simagent.wiring import open_tasks

_MARKS = {"folder": "/", "link": "@", "fifo": "|", "socket": "="}


def list_files(config: Config, task_id: str, path: str, *, timeout: float, as_json: bool) -> None:
    """Print what lies in a folder of a task."""
    items, more = _files(config, task_id, timeout).list(path)
    if as_json:
        fields = {"name", "kind", "size", "mtime"}
        entries = [item.model_dump(include=fields) for item in items]
        # In ASCII: names that are no UTF-8 cannot be written otherwise.
        put(json.dumps({"path": path, "entries": entries, "more": more}, indent=2))
        return
    for line in columns([_cells(item) for item in items]) if items else ():
        put(line)
    if more:
        say(f"{more} more are not listed")


def tail_file(
    config: Config, task_id: str, path: str, *, lines: int, follow: bool, timeout: float
) -> None:
    """Print the end of a file as it is, with ``follow`` up to the end of the task."""
    files = _files(config, task_id, timeout)
    for data in files.tail(path, lines=lines, follow=follow):
        sys.stdout.buffer.write(data)
        sys.stdout.buffer.flush()


def _files(config: Config, task_id: str, timeout: float) -> TaskFiles:
    client = open_tasks(config)
    return client.files(
        client.task(task_id), timeout=timeout, on_note=lambda text: say(printable(text))
    )


def _cells(item: Item) -> tuple[str, ...]:
    length = size(item.size) if item.kind == "file" else ""
    name = printable(item.name).replace("\n", "�") + _MARKS.get(item.kind, "")
    return (length.rjust(8), moment(item.mtime or None), name)
