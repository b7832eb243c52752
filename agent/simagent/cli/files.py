"""`simagent ls` and `simagent tail`."""

import json
import sys

from simagent.cli.opening import open_client
from simagent.cli.text import columns, moment, printable, put, say, size
from simagent.config import Config
from simagent.domain.live import Item

_MARKS = {"folder": "/", "link": "@", "fifo": "|", "socket": "="}


def list_files(config: Config, task_id: str, path: str, *, timeout: float, as_json: bool) -> None:
    """Print what lies in a folder of a task."""
    found = open_client(config).task(task_id).ls(path, timeout=timeout)
    if as_json:
        fields = {"name", "kind", "size", "mtime"}
        entries = [item.model_dump(include=fields) for item in found]
        # In ASCII: names that are no UTF-8 cannot be written otherwise.
        put(json.dumps({"path": path, "entries": entries, "more": found.more}, indent=2))
        return
    for line in columns([_cells(item) for item in found]) if found else ():
        put(line)
    if found.more:
        say(f"{found.more} more are not listed")


def tail_file(
    config: Config, task_id: str, path: str, *, lines: int, follow: bool, timeout: float
) -> None:
    """Print the end of a file as it is, with ``follow`` up to the end of the task."""
    task = open_client(config).task(task_id)
    for data in task.follow(
        path, lines, until_end=follow, timeout=timeout, on_note=lambda text: say(printable(text))
    ):
        sys.stdout.buffer.write(data)
        sys.stdout.buffer.flush()


def _cells(item: Item) -> tuple[str, ...]:
    length = size(item.size) if item.kind == "file" else ""
    name = printable(item.name).replace("\n", "�") + _MARKS.get(item.kind, "")
    return (length.rjust(8), moment(item.mtime or None), name)
