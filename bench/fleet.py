"""Agents as users run them, for benchmarks: real processes on folders of their own."""

import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from simagent.client import Tasks
from simagent.config import Config
from simagent.config_load import load_config
from simagent.domain.spec import Spec
from simagent.wiring.tasks import open_tasks

STARTUP_SECONDS = 30.0


Engines = Mapping[str, str]
"""Settings that name the queue and the store, where they are not a file and a folder."""


def config(folder: Path, name: str = "state", engines: Engines | None = None) -> Config:
    """Make a configuration whose queue and store all agents beneath ``folder`` share."""
    return load_config(None, state_dir=folder / name, **(engines or _embedded(folder)))


def _embedded(folder: Path) -> Engines:
    return {"queue": f"sqlite://{folder}/queue.db", "store": f"file://{folder}/store"}


@contextmanager
def agents(
    folder: Path, count: int = 1, *options: str, engines: Engines | None = None
) -> Iterator[list[subprocess.Popen[bytes]]]:
    """Run agents, and end them afterwards."""
    settings = engines or _embedded(folder)
    processes = [_start(folder / f"state-{n}", settings, *options) for n in range(count)]
    try:
        yield processes
    finally:
        for process in processes:
            process.terminate()
        for process in processes:
            process.wait(30)


def client(folder: Path, engines: Engines | None = None) -> Tasks:
    """Make a client of the same queue and store."""
    return open_tasks(config(folder, engines=engines))


def task(command: str, **fields: object) -> Spec:
    """Make a spec of one command."""
    return Spec.model_validate({"commands": [command], **fields})


def _start(state_dir: Path, settings: Engines, *options: str) -> subprocess.Popen[bytes]:
    environment = os.environ | {
        "SIMAGENT_STATE_DIR": str(state_dir),
        "SIMAGENT_ALLOW_PROCESS": "true",
        "SIMAGENT_LOG_LEVEL": "warning",
        **{f"SIMAGENT_{name.upper()}": value for name, value in settings.items()},
    }
    return subprocess.Popen([sys.executable, "-m", "simagent", "agent", *options], env=environment)
