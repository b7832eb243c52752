"""`simagent download`, and the progress bar that `run -o` shows, too."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from simagent.api import ClientError, Task
from simagent.cli.opening import open_client
from simagent.cli.progress import progress_bar
from simagent.cli.text import columns, printable, put, say, size
from simagent.config import Config

_SHOWN = 20


def download_outputs(
    config: Config,
    task_id: str,
    patterns: Sequence[str],
    folder: Path | None,
    *,
    attempt: int | None = None,
) -> int:
    """Fetch the outputs that match, and list them; tell the exit code.

    It is 1 where a task of an array has none: that keeps nobody from those of the others.
    """
    client = open_client(config)
    array, folder = client.find_array(task_id), folder or Path(task_id)
    if array is None:
        for line in fetch(client.task(task_id), patterns, folder, attempt=attempt):
            put(line)
        return 0
    if attempt is not None:
        raise ClientError(f"{task_id} is an array: name one of its tasks for --attempt")
    missing = 0
    for index, task in enumerate(array):
        if task.state.output is None:
            missing += 1
            continue
        try:
            for line in fetch(task, patterns, folder / str(index)):
                put(line)
        except ClientError as error:
            missing += 1
            say(str(error))
    if missing:
        text = "no outputs" + (" that match" if patterns else "")
        say(f"{missing} of {len(array)} tasks have {text}: `simagent list --array {array.id}`")
    return int(missing > 0)


def fetch(
    task: Task, patterns: Sequence[str], folder: Path, *, attempt: int | None = None
) -> Iterator[str]:
    """Fetch outputs into a folder; give the lines that list them."""
    with progress_bar("outputs") as bar:
        progress = bar.reach if bar is not None else False
        paths = task.download(
            patterns, folder, attempt=attempt, progress=progress, on_skip=_skipped
        )
    yield from _listed("outputs", paths, folder)


def sync_outputs(
    config: Config,
    task_id: str,
    patterns: Sequence[str],
    folder: Path | None,
    *,
    timeout: float,
) -> None:
    """Fetch what a running task has made so far, and list it."""
    task, folder = open_client(config).task(task_id), folder or Path(task_id)
    with progress_bar("outputs so far") as bar:
        paths = task.sync(
            patterns,
            folder,
            progress=bar.reach if bar is not None else False,
            timeout=timeout,
            on_skip=_skipped,
            on_note=say,
        )
    for line in _listed("outputs so far", paths, folder):
        put(line)


def _listed(what: str, paths: Sequence[Path], folder: Path) -> Iterator[str]:
    files = sorted(path for path in paths if path.is_symlink() or not path.is_dir())
    yield f"{len(files)} {what} in {folder}:"
    yield from columns(
        [(f"  {printable(str(path))}", size(path.lstat().st_size)) for path in files[:_SHOWN]]
    )
    if len(files) > _SHOWN:
        yield f"  … and {len(files) - _SHOWN} more"


def _skipped(path: str, why: str) -> None:
    say(f"{printable(path)} is left out: {why}")
