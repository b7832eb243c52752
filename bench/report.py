"""What a benchmark found, and how to show it."""

from collections.abc import Sequence
from dataclasses import dataclass

from rich.console import Console
from rich.table import Table


@dataclass(frozen=True, slots=True)
class Result:
    """One measurement against its budget. ``ratio`` is against a plain tool in the same run."""

    name: str
    budget: str
    measured: str
    ratio: float
    ok: bool


def show(results: Sequence[Result]) -> None:
    """Print a table of results."""
    table = Table("what", "budget", "measured", "ratio", "")
    for result in results:
        verdict = "ok" if result.ok else "OVER"
        table.add_row(result.name, result.budget, result.measured, f"{result.ratio:.3f}", verdict)
    Console().print(table)
