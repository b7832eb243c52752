"""What an idle agent costs, as systemd runs it: watched over by that, and by Prometheus."""

import os
import socket
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from unittest import mock
from urllib.request import urlopen

import psutil

from bench.aws import engines
from bench.fleet import agents, client, task
from bench.report import Result, show

_SECONDS = 30.0
_SCRAPED_EVERY = 15.0


def run() -> list[Result]:
    """Watch agents that have run a task and have nothing more to do."""
    with engines() as aws:
        return [*_idle("embedded", 80, None), *_idle("S3, SQS and docker", 120, aws)]


def _idle(what: str, megabytes: int, settings: Mapping[str, str] | None) -> list[Result]:
    with (
        tempfile.TemporaryDirectory() as name,
        _watched(Path(name)) as port,
        agents(Path(name), engines=settings) as processes,
    ):
        submitter = client(Path(name), settings)
        submitter.wait(submitter.submit(task("true"), base=Path(name)))
        agent = psutil.Process(processes[0].pid)
        _scrape(port)  # it loads what it needs for that with the first one
        time.sleep(5)  # what the task and the start left to do is not idleness
        before = sum(agent.cpu_times()[:2])
        began = time.monotonic()
        while (left := began + _SECONDS - time.monotonic()) > 0:
            time.sleep(min(left, _SCRAPED_EVERY))
            _scrape(port)
        share = (sum(agent.cpu_times()[:2]) - before) / (time.monotonic() - began)
        rss = agent.memory_info().rss / 1e6
    return [
        Result(
            f"idle agent, CPU, {what} (ratio to the budget)",
            "≤ 0.3 % of a core",
            f"{share * 100:.2f} %",
            share / 0.003,
            share <= 0.003,
        ),
        Result(
            f"idle agent, memory, {what} (ratio to the budget)",
            f"≤ {megabytes} MB",
            f"{rss:.0f} MB",
            rss / megabytes,
            rss <= megabytes,
        ),
    ]


@contextmanager
def _watched(folder: Path) -> Iterator[int]:
    """Let agents that start meanwhile tell how they are; give the port of their metrics."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(str(folder / "notify"))
        threading.Thread(target=_hear, args=(systemd,), daemon=True).start()
        told = {
            "NOTIFY_SOCKET": str(folder / "notify"),
            "SIMAGENT_METRICS_LISTEN": str(port),
        }
        with mock.patch.dict(os.environ, told):
            yield port


def _hear(systemd: socket.socket) -> None:
    while True:
        try:
            systemd.recv(4096)
        except OSError:
            return


def _scrape(port: int) -> None:
    with urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
        answer.read()


if __name__ == "__main__":
    show(run())
