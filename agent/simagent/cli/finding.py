"""What `simagent doctor` and `simagent config check` find."""

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import typer

from simagent.cli.text import put

_COLOURS = {"ok": "green", "note": "yellow", "missing": "red"}


@dataclass(frozen=True, slots=True)
class Check:
    """One finding. Only `missing` keeps the agent from its work; ``fix`` is a command or advice."""

    name: str
    verdict: Literal["ok", "note", "missing"]
    text: str
    fix: str = ""


def put_checks(checks: Sequence[Check]) -> None:
    """Print findings, a line each, and another one for what mends it."""
    width = max(len(check.name) for check in checks)
    for check in checks:
        verdict = check.verdict.ljust(7)
        if sys.stdout.isatty() and not os.environ.get("NO_COLOR"):
            verdict = typer.style(verdict, fg=_COLOURS[check.verdict])
        put(f"{verdict}  {check.name.ljust(width)}  {check.text}")
        if check.fix:
            put(f"{' ' * (9 + width)}  -> {check.fix}")
