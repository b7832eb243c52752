"""Agents as users run them, for benchmarks: real processes on folders of their own."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from simagent.client import Tasks
from simagent.config import Config, load_config
from simagent.domain.spec import Spec
from simagent.wiring import open_tasks

STARTUP_SECONDS = 30.0


def config(folder: Path, name: str = "state") -> Config:
    """Make a configuration whose queue and store all agents beneath ``folder`` share."""
    return load_config(
        None,
        state_dir=folder / name,
        queue=f"sqlite://{folder}/queue.db",
        store=f"file://{folder}/store",
    )


@contextmanager
def agents(folder: Path, count: int = 1, *options: str) -> Iterator[list[subprocess.Popen[bytes]]]:
    """Run agents, and end them afterwards."""
    processes = [_start(config(folder, f"state-{n}"), *options) for n in range(count)]
    try:
        yield processes
    finally:
        for process in processes:
            process.terminate()
        for process in processes:
            process.wait(30)


def client(folder: Path) -> Tasks:
    """Make a client of the same queue and store."""
    return open_tasks(config(folder))


def task(command: str, **fields: object) -> Spec:
    """Make a spec of one command."""
    return Spec.model_validate({"commands": [command], **fields})


def _start(config: Config, *options: str) -> subprocess.Popen[bytes]:
    environment = os.environ | {
        "SIMAGENT_STATE_DIR": str(config.state_dir),
        "SIMAGENT_QUEUE": config.queue_url,
        "SIMAGENT_STORE": config.store_url,
        "SIMAGENT_LOG_LEVEL": "warning",
    }
    return subprocess.Popen([sys.executable, "-m", "simagent", "agent", *options], env=environment)
