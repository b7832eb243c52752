"""`simagent download`, and the progress bar that `run -o` shows, too."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from simagent.cli.progress import progress_bar
from simagent.cli.text import columns, printable, put, say, size
from simagent.client import Tasks
from simagent.config import Config
from simagent.domain.keys import TaskKeys
from simagent.wiring import open_tasks

_SHOWN = 20


def download_outputs(
    config: Config, task_id: str, patterns: Sequence[str], folder: Path | None
) -> None:
    """Fetch the outputs that match, and list them."""
    client = open_tasks(config)
    task = client.task(task_id)
    for line in fetch(client, task, patterns, folder or Path(task_id)):
        put(line)


def fetch(client: Tasks, task: TaskKeys, patterns: Sequence[str], folder: Path) -> Iterator[str]:
    """Fetch outputs into a folder; give the lines that list them."""
    output = client.state(task).output
    total = output.bytes if output and not patterns else None
    with progress_bar("outputs", total) as bar:
        on_progress = bar.advance if bar is not None else None
        paths = client.download(task, patterns, folder, on_progress=on_progress, on_skip=_skipped)
    files = sorted(path for path in paths if path.is_symlink() or not path.is_dir())
    yield f"{len(files)} outputs in {folder}:"
    yield from columns(
        [(f"  {printable(str(path))}", size(path.lstat().st_size)) for path in files[:_SHOWN]]
    )
    if len(files) > _SHOWN:
        yield f"  … and {len(files) - _SHOWN} more"


def _skipped(path: str, why: str) -> None:
    say(f"{printable(path)} is left out: {why}")
