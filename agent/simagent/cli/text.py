"""How things are written for people: times, sizes, columns, colours."""

import json
import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any, TextIO

import typer

_COLOURS = {
    "succeeded": "green",
    "running": "cyan",
    "preparing": "cyan",
    "finalizing": "cyan",
    "failed": "red",
    "error": "red",
    "timed_out": "red",
    "killed": "yellow",
}


def say(line: str) -> None:
    """Print a note beside the result, on standard error; where that is broken, go on without."""
    with suppress(OSError):
        sys.stderr.write(f"simagent: {line}\n")


def put(line: str = "") -> None:
    """Print a line of the result."""
    sys.stdout.write(line + "\n")


def put_json(value: Any) -> None:
    """Print a result for scripts."""
    put(json.dumps(value, indent=2, ensure_ascii=False))


def seconds(value: float | None) -> str:
    """Write a duration given in seconds: `0.31 s`, `4 min 05 s`, `3 h 12 min`."""
    if value is None:
        return "-"
    if value < 60:
        return f"{value:.2f} s" if value < 10 else f"{value:.1f} s"
    minutes, rest = divmod(round(value), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min"


def size(value: int | None) -> str:
    """Write a number of bytes: `512 B`, `1.4 kB`, `12.0 MB`."""
    if value is None:
        return ""
    amount, units = float(value), ["B", "kB", "MB", "GB", "TB"]
    while amount >= 999.95 and len(units) > 1:
        amount /= 1000
        units.pop(0)
    return f"{value} B" if units[0] == "B" else f"{amount:.1f} {units[0]}"


def moment(unix: float | None) -> str:
    """Write a Unix time as local time."""
    if unix is None:
        return "-"
    return datetime.fromtimestamp(unix, tz=UTC).astimezone().strftime("%Y-%m-%d %H:%M:%S")


def columns(rows: Sequence[Sequence[str]]) -> list[str]:
    """Align the cells of rows."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]


def printable(text: str) -> str:
    """Take the control characters out of what others wrote: a terminal would obey them."""
    return "".join(c if c.isprintable() or c in "\n\t" else "�" for c in text)


def coloured(text: str, status: str, file: TextIO | None = None) -> str:
    """Give a text the colour of a status, where there are colours."""
    file = file or sys.stdout
    colour = _COLOURS.get(status)
    if colour is None or not file.isatty() or os.environ.get("NO_COLOR"):
        return text
    return typer.style(text, fg=colour)
