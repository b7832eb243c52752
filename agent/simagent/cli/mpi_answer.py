"""What the task of `simagent mpi check` left: its log and outputs are read, and judged."""

import tempfile
from contextlib import suppress
from pathlib import Path

from simagent.api import ClientError, State, Status, Task
from simagent.cli.mpi_report import Report, judge, read_ranks
from simagent.cli.mpi_task import Asked
from simagent.cli.text import printable
from simagent.mpi_probe import FOLDER

_OUTPUT_BYTES = 1 << 16


def report_of(task: Task, state: State, asked: Asked, refused: str | None) -> Report:
    """Read what the ranks of a task told, and judge it; ``refused`` is why it was ended."""
    lines = list(task.logs(stream="stdout")) if state.attempts else []
    with tempfile.TemporaryDirectory(prefix="simagent-mpi-check-") as folder:
        if state.output is not None:
            with suppress(ClientError):  # no rank came to write anything
                task.download(f"{FOLDER}/*", folder, progress=False)
        found = sorted(path for path in Path(folder).rglob("*.json") if path.is_file())
        files = [_text(path) for path in found]
    ranks, written = read_ranks(lines, files)
    ended = None
    if state.status is not Status.SUCCEEDED:
        ended = refused or _why(state)
    np = asked.np if isinstance(asked.np, int) else None
    return judge(ranks, written, np=np, hosts=asked.hosts, ended=ended)


def _text(path: Path) -> str:
    with path.open("rb") as file:
        return file.read(_OUTPUT_BYTES).decode(errors="replace")


def _why(state: State) -> str:
    text = " ".join(printable(state.message).split())
    reason = f": {state.reason}" if state.reason else ""
    return f"the task {state.status}{reason}" + (f": {text}" if text else "")
