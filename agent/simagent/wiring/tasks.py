"""Makes what clients work on tasks with; without the worker, so that they start fast."""

from simagent.client import Tasks
from simagent.client.calls import Notice, log_notice
from simagent.client.pace import LOCAL_POLLS, REMOTE_POLLS
from simagent.config import Config
from simagent.engines import open_store, queues
from simagent.ledger import Ledger
from simagent.ports.clock import SystemClock


def open_tasks(config: Config, *, notice: Notice = log_notice) -> Tasks:
    """Make what works on the tasks of the project; ``notice`` is told what is worth knowing."""
    return Tasks(
        Ledger(open_store(config)),
        queues(config),
        SystemClock(),
        project=config.project,
        notice=notice,
        polls=REMOTE_POLLS if config.store_charges else LOCAL_POLLS,
    )
