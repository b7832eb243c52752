"""`simagent download`, and the progress bar that `run -o` shows, too."""

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from simagent.cli.text import columns, printable, put, size
from simagent.client import Client
from simagent.config import Config
from simagent.domain.keys import TaskKeys
from simagent.wiring import open_client

_SHOWN = 20


def download_outputs(
    config: Config, task_id: str, patterns: Sequence[str], folder: Path | None
) -> None:
    """Fetch the outputs that match, and list them."""
    client = open_client(config)
    task = client.task(task_id)
    for line in fetch(client, task, patterns, folder or Path(task_id)):
        put(line)


def fetch(client: Client, task: TaskKeys, patterns: Sequence[str], folder: Path) -> Iterator[str]:
    """Fetch outputs into a folder; give the lines that list them."""
    with _progress_bar() as on_progress:
        paths = client.download(task, patterns, folder, on_progress)
    yield f"{len(paths)} outputs in {folder}:"
    places = [folder / path for path in paths]
    yield from columns(
        [(f"  {printable(str(place))}", size(place.lstat().st_size)) for place in places[:_SHOWN]]
    )
    if len(places) > _SHOWN:
        yield f"  … and {len(places) - _SHOWN} more"


@contextmanager
def _progress_bar() -> Iterator[Callable[[int, int], None] | None]:
    if not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TransferSpeedColumn

    bar = Progress(
        "outputs",
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        console=Console(stderr=True),
        transient=True,
    )
    with bar:
        job = bar.add_task("outputs", total=None)
        yield lambda done, total: bar.update(job, completed=done, total=total)
