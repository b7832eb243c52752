"""Other versions of the agent on one state folder: upgrades, downgrades, what runs meanwhile."""

import json
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest

from fakes.rig import Rig
from simagent.domain.keys import TaskKeys
from simagent.worker.identity import boot_id
from simagent.worker.journal import ARTIFACTS, Journals
from simagent.worker.statussocket import NoAnswerError, ask

RELEASED = Path(__file__).parent / "released"
"""State folders and stores as agents of released versions left them: a command had ended while none
was there. `@STATE_DIR@` and `@BOOT_ID@` stand for what differs from run to run, `@ARTIFACTS@`
for where its commands work."""
TASK = "01M800000000000000000FIRST"


@pytest.fixture
def rig(tmp_path: Path) -> Rig:
    return Rig(tmp_path)


def lay(version: str, folder: Path) -> None:
    """Lay what a released version left, with what is true here."""
    shutil.copytree(RELEASED / version, folder, dirs_exist_ok=True)
    for path in folder.rglob("*"):
        if path.is_file() and path.suffix != ".zip":
            text = path.read_text().replace("@STATE_DIR@", str(folder / "state"))
            text = text.replace("@ARTIFACTS@", ARTIFACTS)
            path.write_text(text.replace("@BOOT_ID@", boot_id()))
    (folder / "store" / ".simagent").mkdir()  # by which a store is told from an empty folder


@pytest.mark.parametrize("version", sorted(path.name for path in RELEASED.iterdir()))
def test_what_a_released_version_left_is_carried_on(rig: Rig, version: str) -> None:
    lay(version, rig.folder)
    task = TaskKeys("default", TASK)
    with rig.agent(until_empty=True, agent="holder"):
        state = rig.finish(task)
    assert (state.status, state.epoch) == ("succeeded", 1)
    assert state.attempts[-1].steps[0].exit_code == 0
    assert rig.log(task) == b"hello\ndone\n"
    output = rig.folder / "output"
    rig.client.download(task, ["result.txt"], output)
    assert (output / "result.txt").read_text() == "42\n"
    assert Journals(rig.folder / "state").empty


@contextmanager
def agent(rig: Rig) -> Iterator[subprocess.Popen[bytes]]:
    process = rig.process()
    try:
        yield process
    finally:
        process.terminate()
        assert process.wait(60) == 0


def told(rig: Rig) -> dict[str, Any] | None:
    try:
        return ask(rig.folder / "state", 5.0)
    except NoAnswerError:
        return None


def sleeper(rig: Rig) -> TaskKeys:
    """Submit a task that says its pid and runs until a file is there."""
    go = rig.folder / "go"
    return rig.submit({"run": f"echo $$; until [ -e {go} ]; do sleep 0.05; done", "shell": True})


def begun(rig: Rig, task: TaskKeys) -> int:
    """Wait until it runs, and tell its pid."""
    said = rig.folder / "state" / "attempts" / f"default.{task.id}.1" / "logs" / "stdout"
    rig.until(lambda: said.exists() and said.read_text().endswith("\n"))
    return int(said.read_text())


def journal_of(rig: Rig, task: TaskKeys) -> Path:
    return rig.folder / "state" / "attempts" / f"default.{task.id}.1" / "journal.json"


def files(folder: Path) -> dict[str, tuple[int, int, int]]:
    """Tell which files there are, and when each was changed last."""
    stats = {path: path.stat() for path in sorted(folder.iterdir())}
    return {p.name: (s.st_ino, s.st_size, s.st_mtime_ns) for p, s in stats.items()}


def test_a_restart_does_not_touch_the_shim_of_a_running_step(rig: Rig) -> None:
    with agent(rig):
        task = sleeper(rig)
        pid = begun(rig, task)
        rig.until(lambda: rig.running(task))
    steps = journal_of(rig, task).parent / "steps"
    before = files(steps)
    shim = psutil.Process(pid).ppid()
    with agent(rig):
        rig.until(lambda: (told(rig) or {}).get("tasks"))
        after = files(steps)
        assert {name for name in before if before[name] != after[name]} <= {"agent"}
        assert psutil.Process(pid).ppid() == shim
        (rig.folder / "go").touch()
        state = rig.finish(task)
    assert (state.status, state.epoch) == ("succeeded", 1)
    assert rig.log(task) == f"{pid}\n".encode()


@pytest.fixture
def left(rig: Rig) -> tuple[TaskKeys, int, bytes]:
    """A task that a newer version has begun, which is gone: its pid, and its journal before."""
    with agent(rig):
        task = sleeper(rig)
        pid = begun(rig, task)
        rig.until(lambda: rig.running(task))
    path = journal_of(rig, task)
    before = path.read_bytes()
    newer = json.loads(before) | {"format": 2, "attempt": {"moved": "elsewhere"}, "share": [1]}
    path.write_text(json.dumps(newer))
    return task, pid, before


def test_what_a_newer_version_runs_goes_on(
    rig: Rig, left: tuple[TaskKeys, int, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    task, pid, before = left
    path = journal_of(rig, task)
    newer, started = path.read_bytes(), psutil.Process(pid).create_time()
    monkeypatch.setenv("SIMAGENT_SLOTS", "2")
    attention = path.parent / "steps" / "agent"
    seen = attention.stat().st_mtime_ns
    with agent(rig):
        fields = rig.until(lambda: told(rig))
        rig.until(lambda: attention.stat().st_mtime_ns > seen)
        # It works all the same, with the slot that is left, for longer than a lease lasts.
        for _ in range(2):
            assert rig.finish(rig.submit("sleep 2")).status == "succeeded"
        rig.until(lambda: (told(rig) or {}).get("busy") == 1)
        fields = rig.until(lambda: told(rig))
        state = rig.client.state(task)
    assert [note.split(":")[0] for note in fields["notices"]] == ["agent_too_old"]
    assert task.id in fields["notices"][0]
    assert (state.status, state.epoch) == ("running", 1)
    assert path.read_bytes() == newer
    assert psutil.Process(pid).create_time() == started

    path.write_bytes(before)  # the newer version is here again
    with agent(rig):
        (rig.folder / "go").touch()
        state = rig.finish(task)
    assert (state.status, state.epoch) == ("succeeded", 1)
    assert rig.log(task) == f"{pid}\n".encode()


def test_what_a_newer_version_runs_ends_when_its_task_has(
    rig: Rig, left: tuple[TaskKeys, int, bytes]
) -> None:
    task, pid, _ = left
    rig.client.kill(task, by="me")
    with agent(rig):
        rig.until(lambda: (told(rig) or {}).get("busy") == 1)
        waiting = rig.submit("true")
        assert rig.finish(task).status == "killed"  # nobody holds it alive
        assert rig.finish(waiting, 60).status == "succeeded"
        rig.until(lambda: (told(rig) or {}).get("notices") == [])
    assert not psutil.pid_exists(pid)
    assert journal_of(rig, task).exists()


def test_a_downgraded_agent_that_is_drained_leaves_it(
    rig: Rig, left: tuple[TaskKeys, int, bytes]
) -> None:
    task, pid, _ = left
    process = rig.process()
    rig.until(lambda: (told(rig) or {}).get("turned"))
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 0
    assert psutil.pid_exists(pid)
    assert journal_of(rig, task).exists()
    os.kill(pid, signal.SIGKILL)
