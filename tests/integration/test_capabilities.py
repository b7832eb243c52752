"""The capabilities that the unit leaves root's agent are all that it needs."""

import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from engines.dockerd import Engine
from fakes.rig import Rig
from fakes.steps import alive
from simagent.domain.keys import TaskKeys

pytestmark = pytest.mark.skipif(
    os.geteuid() != 0, reason="machine: capabilities are root's to give away"
)

UNIT = Path(__file__).parents[2] / "systemd" / "simagent.service"
NOBODY = 65534
HARD_TO_READ = "mkdir -m 0 closed; echo x >result; chmod 0 result; mkdir -p a/b/c; chmod 500 a/b"


def capabilities() -> list[str]:
    (line,) = re.findall(r"^CapabilityBoundingSet=(.+)$", UNIT.read_text(), re.MULTILINE)
    return [word.removeprefix("CAP_").lower() for word in line.split()]


@pytest.fixture
def rig() -> Iterator[Rig]:
    if shutil.which("setpriv") is None:
        pytest.skip("setpriv is missing (apt install util-linux)")
    folder = Path(tempfile.mkdtemp(prefix="simagent-test-"))
    folder.chmod(0o711)
    yield Rig(folder)
    shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def bounded_agent(rig: Rig) -> Iterator[subprocess.Popen[bytes]]:
    """Run an agent with no more capabilities than by its unit; end it as systemd would."""
    left = [f"+{name}" for name in capabilities()]
    config = rig.config()
    env = os.environ | {
        "SIMAGENT_STATE_DIR": str(config.state_dir),
        "SIMAGENT_QUEUE": str(config.queue),
        "SIMAGENT_STORE": str(config.store),
        "SIMAGENT_TIMES": config.times.model_dump_json(),
        "SIMAGENT_TASK_UID": str(NOBODY),
        "SIMAGENT_SAMPLE_EVERY": "1",
    }
    argv = ["setpriv", f"--bounding-set={','.join(['-all', *left])}"]
    argv += [sys.executable, "-m", "simagent", "agent"]
    before = os.umask(0o077)
    try:
        agent = subprocess.Popen(argv, env=env)
    finally:
        os.umask(before)
    try:
        yield agent
    finally:
        agent.send_signal(signal.SIGTERM)
        assert agent.wait(60) == 0


def said(rig: Rig, task: TaskKeys, words: int) -> list[str]:
    """Give what a task has printed, as soon as that are so many words."""
    return rig.until(lambda: (len(w := rig.log(task).decode().split()) >= words and w) or None)


def shim_of(pid: int) -> int:
    """Give the parent of a step's first process."""
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def test_programs(rig: Rig) -> None:
    code = f"id -u; {HARD_TO_READ}"
    with bounded_agent(rig):
        task = rig.submit(["sh", "-c", code])
        state = rig.finish(task)
        assert (state.status, state.reason, rig.log(task)) == ("succeeded", None, b"65534\n")
        assert state.output is not None
        assert state.output.files >= 3, "what the task has closed to itself is published"
        rig.until(lambda: not list((rig.folder / "state" / "attempts").iterdir()))


def test_programs_are_killed_also_where_nothing_keeps_them_together(rig: Rig) -> None:
    code = "trap '' TERM; echo $$; setsid sleep 600 & echo $!; wait; sleep 600"
    with bounded_agent(rig):
        task = rig.submit(["sh", "-c", code], grace=0.5)
        pids = [int(word) for word in said(rig, task, 2)]
        rig.client.kill(task, by="the test")
        assert rig.finish(task).status == "killed"
        rig.until(lambda: not any(alive(pid) for pid in pids))
        task = rig.submit(["sh", "-c", code], max_attempts=1)
        pids = [int(word) for word in said(rig, task, 2)]
        os.kill(shim_of(pids[0]), signal.SIGKILL)
        state = rig.finish(task)
        assert state.reason == "shim_lost"
        rig.until(lambda: not any(alive(pid) for pid in pids))


def test_containers_of_apptainer(rig: Rig, tiny_image: str, docker_engine: Engine) -> None:
    archive = rig.folder / "tiny.tar"
    docker_engine.run("save", "--output", str(archive), tiny_image)
    archive.chmod(0o644)
    image = f"docker-archive:{archive}"
    with bounded_agent(rig):
        task = rig.submit(["sh", "-c", f"id -u; {HARD_TO_READ}"], image=image, runtime="apptainer")
        state = rig.finish(task, 90.0)
        assert (state.status, state.reason, rig.log(task)) == ("succeeded", None, b"65534\n")
        code = "trap '' TERM; echo up; while :; do sleep 1; done"
        task = rig.submit(["sh", "-c", code], image=image, runtime="apptainer", grace=0.5)
        said(rig, task, 1)
        rig.client.kill(task, by="the test")
        assert rig.finish(task).status == "killed"
        rig.until(lambda: not list((rig.folder / "state" / "attempts").iterdir()))
