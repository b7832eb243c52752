"""Print the logs of a task while they come."""

import sys
from collections.abc import Sequence

from simagent.api import Task
from simagent.cli.opening import open_client
from simagent.cli.text import say
from simagent.config import Config
from simagent.domain.keys import STREAMS, Stream


def print_logs(config: Config, task_id: str, *, follow: bool, stdout: bool, stderr: bool) -> None:
    """Print the streams asked for to standard output, as they are."""
    wanted: dict[Stream, bool] = {"stdout": stdout, "stderr": stderr}
    streams = [stream for stream in STREAMS if wanted[stream]]
    relay(open_client(config).task(task_id), streams, follow=follow, apart=False)


def relay(
    task: Task, streams: Sequence[Stream] = STREAMS, *, follow: bool = True, apart: bool = True
) -> None:
    """Pass a task's logs on, with ``apart`` its standard error to ours."""
    epoch = None
    for piece in task.log_pieces(streams, follow=follow):
        if epoch not in (None, piece.epoch):
            say(f"attempt {piece.epoch} of task {task.id} begins")
        epoch = piece.epoch
        target = sys.stderr if apart and piece.stream == "stderr" else sys.stdout
        target.buffer.write(piece.data)
        target.buffer.flush()
