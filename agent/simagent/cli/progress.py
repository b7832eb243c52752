"""The bar that shows on a terminal how far a transfer is."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID


class Bar:
    """A bar that is shown, in bytes."""

    def __init__(self, shown: "Progress", job: "TaskID") -> None:
        self._shown = shown
        self._job = job

    def reach(self, done: int, total: int | None) -> None:
        """Show how many have come by now, and how many there will be."""
        self._shown.update(self._job, completed=done, total=total)


@contextmanager
def progress_bar(
    name: str, total: int | None = None, *, counts: bool = False
) -> Iterator[Bar | None]:
    """Show a bar while inside; None where nobody would see it. It ``counts`` things, or bytes."""
    if not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        MofNCompleteColumn,
        Progress,
        TransferSpeedColumn,
    )

    shown = Progress(
        name,
        BarColumn(),
        *((MofNCompleteColumn(),) if counts else (DownloadColumn(), TransferSpeedColumn())),
        console=Console(stderr=True),
        transient=True,
    )
    with shown:
        yield Bar(shown, shown.add_task(name, total=total))
