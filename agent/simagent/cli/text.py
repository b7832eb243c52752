"""How results are printed; times, sizes and columns are written as the client writes them."""

import json
import os
import sys
from contextlib import suppress
from typing import Any, TextIO

import typer

from simagent.api.text import columns, moment, printable, seconds, size

__all__ = [
    "coloured",
    "columns",
    "moment",
    "printable",
    "put",
    "put_json",
    "say",
    "seconds",
    "size",
]

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


def coloured(text: str, status: str, file: TextIO | None = None) -> str:
    """Give a text the colour of a status, where there are colours."""
    file = file or sys.stdout
    colour = _COLOURS.get(status)
    if colour is None or not file.isatty() or os.environ.get("NO_COLOR"):
        return text
    return typer.style(text, fg=colour)
