"""Seconds from a cloud's notice until all that a simulation has is safe, and queued again.

A stand-in for a simulator writes a checkpoint when it is asked to, and ignores SIGTERM for a while
as one does that has to finish a step. `python -m bench preempt`; MEGABYTES makes it smaller.
"""

import os
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from unittest import mock

from bench import aws, fleet
from bench.report import Result, show

_ROOT = Path(__file__).parents[1]
_MEGABYTES = int(os.environ.get("MEGABYTES", "200"))
_NOTICE = 120.0
_OWN_SECONDS = 12.0
"""Budget beside the upload: the question each second, a quiet second of the files, the end."""
_PATIENCE = 60.0
_SIMULATOR = """
import os, pathlib, signal, sys, time
data = os.urandom(1_000_000)
def save(*_):
    with open("state.part", "wb") as file:
        for _ in range(int(sys.argv[1])):
            file.write(data)
    os.rename("state.part", "state.restart")
signal.signal(signal.SIGUSR1, save)
signal.signal(signal.SIGTERM, lambda *_: (time.sleep(1), os._exit(1)))
pathlib.Path("begun").touch()
while True:
    time.sleep(0.1)
"""


def run() -> list[Result]:
    """Take the machine of a running task away."""
    sys.path[:0] = [str(_ROOT / "tests")]
    with tempfile.TemporaryDirectory(prefix="bench-preempt-") as name, aws.engines() as engines:
        seconds = _preempted(Path(name), engines)
        plain = _plain(Path(name), engines)
    budget = plain + _OWN_SECONDS
    return [
        Result(
            f"from the notice until {_MEGABYTES} MB of checkpoint are safe (ratio to the budget)",
            f"≤ boto3's upload + {_OWN_SECONDS:g} s",
            f"{seconds:.1f} s, boto3 {plain:.1f} s",
            seconds / budget,
            seconds <= budget,
        )
    ]


def _preempted(folder: Path, engines: Mapping[str, str]) -> float:
    from fakes import clouds
    from fakes.clouds import Metadata

    (folder / "sim.py").write_text(_SIMULATOR)
    client = fleet.client(folder, engines)
    spec = fleet.task(
        f"{sys.executable} sim.py {_MEGABYTES}",
        inputs=["sim.py"],
        checkpoint={"paths": ["*.restart"], "every": "1h", "signal": "USR1"},
        outputs={"exclude": ["*.restart"]},
    )
    with Metadata(clouds.azure()) as server:
        asks = {
            "SIMAGENT_CLOUD": "azure",
            "SIMAGENT_CLOUD_ENDPOINT": server.endpoint,
            "SIMAGENT_ALLOW_PROCESS": "true",
        }
        with mock.patch.dict(os.environ, asks), fleet.agents(folder, engines=engines):
            task = client.submit(spec, base=folder)
            _until(lambda: any(folder.glob("state-0/attempts/*/*/**/begun")))
            given = time.monotonic()
            event = clouds.azure_event("Preempt", time.time() + _NOTICE, "vm-7")
            server.answers.update(clouds.azure_events(event))
            _until(lambda: client.state(task).status == "queued")
            seconds = time.monotonic() - given
    kept = client.state(task).checkpoint
    assert kept is not None, "the checkpoint was not kept"
    assert kept.bytes == _MEGABYTES * 1_000_000
    return seconds


def _plain(folder: Path, engines: Mapping[str, str]) -> float:
    """Upload as much by boto3's own transfers, as they come."""
    from boto3.session import Session

    path = folder / "plain"
    with path.open("wb") as file:
        for _ in range(_MEGABYTES):
            file.write(os.urandom(1_000_000))
    bucket = engines["store"].removeprefix("s3://").split("/")[0]
    s3 = Session().client(
        "s3", endpoint_url=engines["s3_endpoint"], region_name=engines["s3_region"]
    )
    began = time.monotonic()
    s3.upload_file(str(path), bucket, "plain")
    return time.monotonic() - began


def _until(look: Callable[[], bool]) -> None:
    deadline = time.monotonic() + _NOTICE + _PATIENCE
    while not look():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.05)


if __name__ == "__main__":
    show(run())
