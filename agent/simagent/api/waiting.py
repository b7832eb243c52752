"""What is shown on a terminal while a task, or a transfer, is waited for."""

import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

from simagent.api.text import printable, seconds, size
from simagent.domain.state import State, Status

_LEAST_COLUMNS = 20


@dataclass(frozen=True, slots=True)
class Progress:
    """How a task stands while it is waited for.

    ``elapsed`` is the seconds since the wait began, ``line`` what the task printed last on its
    standard output, without control characters; empty where it printed nothing yet.
    """

    task_id: str
    state: State
    elapsed: float
    line: str

    @property
    def status(self) -> Status:
        """The task's status."""
        return self.state.status


OnWait = Callable[[Progress], None]
OnBytes = Callable[[int, int | None], None]


@contextmanager
def waiting(progress: bool | OnWait) -> Iterator[OnWait | None]:
    """Give what is told of a wait: the function asked for, or a line on a terminal, or nothing."""
    if callable(progress):
        yield progress
        return
    with _line(wanted=progress) as show:
        if show is None:
            yield None
            return
        yield lambda p: show(f"{p.task_id} {p.status} {seconds(p.elapsed)}  {p.line}")


@contextmanager
def transferring(name: str, progress: bool | OnBytes) -> Iterator[OnBytes | None]:
    """Give what is told of a transfer, in the same way."""
    if callable(progress):
        yield progress
        return
    with _line(wanted=progress) as show:
        if show is None:
            yield None
            return
        yield lambda done, of: show(f"{name}: {size(done)}{f' of {size(of)}' if of else ''}")


@contextmanager
def _line(*, wanted: bool) -> Iterator[Callable[[str], None] | None]:
    """Show one line, written anew and anew, and take it away in the end."""
    terminal = sys.stderr
    if not wanted or not terminal.isatty():
        yield None
        return
    last = ""

    def show(text: str) -> None:
        nonlocal last
        columns = max(_LEAST_COLUMNS, shutil.get_terminal_size().columns)
        shown = printable(text)[: columns - 1]
        if shown != last:
            last = shown
            with suppress(OSError):  # a broken terminal ends no wait
                terminal.write(f"\r\x1b[K{shown}")
                terminal.flush()

    try:
        yield show
    finally:
        with suppress(OSError):
            terminal.write("\r\x1b[K")
            terminal.flush()
