"""A log that cannot be written costs lines, never the agent."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from fakes.rig import Rig
from simagent.cli.agentlog import LogFile


@pytest.fixture
def rig(tmp_path: Path) -> Rig:
    return Rig(tmp_path)


def agent(rig: Rig, stderr: int) -> subprocess.CompletedProcess[bytes]:
    config = rig.config()
    environment = os.environ | {
        "SIMAGENT_STATE_DIR": str(config.state_dir),
        "SIMAGENT_QUEUE": config.queue_url,
        "SIMAGENT_STORE": config.store_url,
        "SIMAGENT_TIMES": config.times.model_dump_json(),
    }
    argv = [sys.executable, "-m", "simagent", "agent", "--until-empty"]
    return subprocess.run(argv, env=environment, stderr=stderr, timeout=60, check=False)


def test_a_full_disk_beneath_the_log_does_not_end_the_agent(rig: Rig) -> None:
    task = rig.submit("echo hello")
    full = os.open("/dev/full", os.O_WRONLY)
    assert agent(rig, full).returncode == 0
    os.close(full)
    assert rig.client.state(task).status == "succeeded"


def test_a_reader_that_leaves_does_not_end_the_agent(rig: Rig) -> None:
    task = rig.submit("echo hello")
    reading, writing = os.pipe()
    os.close(reading)
    assert agent(rig, writing).returncode == 0
    os.close(writing)
    assert rig.client.state(task).status == "succeeded"


def test_an_error_keeps_its_exit_code_where_nobody_reads_it() -> None:
    argv = [sys.executable, "-m", "simagent", "list", "--store", "ftp://x"]
    with open("/dev/full", "w") as full:
        done = subprocess.run(argv, stderr=full, timeout=60, check=False)
    assert done.returncode == 2


@pytest.mark.parametrize("as_json", [True, False])
def test_lost_lines_are_told_of_when_there_is_room_again(as_json: bool) -> None:
    reading, writing = os.pipe2(os.O_NONBLOCK)
    log = LogFile(writing, json=as_json)
    log.msg("x" * 100_000)  # more than a pipe takes: torn
    log.msg("lost")
    read = b""
    while len(read) < 65_536:
        read += os.read(reading, 65_536)
    log.msg("again")
    log.msg("and again")
    torn, lost, *rest = os.read(reading, 65_536).decode().splitlines()
    assert torn == ""
    told = json.loads(lost)["event"] if as_json else lost
    assert told == "2 lines of this log could not be written"
    assert rest == ["again", "and again"]
    os.close(reading)
    os.close(writing)
