"""Disks that run full under a task: it ends with its reason, and the agent goes on."""

import json
import os
import subprocess
import sys
import threading
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from fakes.disks import plain_disk, small_disk
from fakes.faults import UNAVAILABLE, Fault, Faults, FaultyStore
from fakes.rig import Rig, kill9
from fakes.steps import alive
from simagent.domain.events import Event
from simagent.domain.keys import TaskKeys
from simagent.domain.reasons import Reason
from simagent.domain.state import State
from simagent.ledger import Ledger
from simagent.ports.clock import SystemClock
from simagent.ports.store import NoSpaceError
from simagent.worker.context import Context
from simagent.worker.journal import ARTIFACTS
from simagent.worker.orders import Detached

MIB = 2**20
GIB = 2**30
SLEEPER = {"run": "echo $$; exec sleep 300", "shell": True}


@pytest.fixture
def rig(tmp_path: Path) -> Rig:
    return Rig(tmp_path)


class Gauge:
    """Tells what is free on the disk, as the test wants it."""

    def __init__(self) -> None:
        self.free = 1000 * GIB
        self.dips: list[int] = []
        self.looks = 0

    def __call__(self, folder: Path) -> int:
        assert folder.is_dir()
        self.looks += 1
        return self.dips.pop() if self.dips else self.free

    def put_on(self, ctx: Context) -> Context:
        return replace(ctx, free_bytes=self)


def pid_of(rig: Rig, task: TaskKeys) -> int:
    return int(rig.until(lambda: rig.log(task) or None).split()[0])


def published(rig: Rig, state: State, name: str) -> bytes:
    assert state.output is not None
    with zipfile.ZipFile(rig.folder / "store" / state.output.archive) as archive:
        return archive.read(name)


# --- The floor ----------------------------------------------------------------------------------


def test_no_task_is_taken_while_too_little_is_free(rig: Rig) -> None:
    task = rig.submit("true")
    with capture_logs() as logs, rig.agent(min_free=10**18):
        refused = rig.until(
            lambda: next((line for line in logs if line["event"] == Event.TASK_REFUSED), None)
        )
        assert "less than min_free" in refused["reason"]
        assert str(rig.folder / "state") in refused["reason"]
    assert (rig.client.state(task).status, rig.client.state(task).epoch) == ("queued", 0)
    with rig.agent():
        assert rig.finish(task).status == "succeeded"


def test_a_task_ends_before_the_disk_is_full(rig: Rig) -> None:
    gauge = Gauge()
    script = "echo $$; echo made > made; echo the last words >&2; exec sleep 300"
    with rig.agent(change=gauge.put_on, min_free=GIB):
        task = rig.submit({"run": script, "shell": True}, "true")
        pid = pid_of(rig, task)
        gauge.free = 700 * MIB
        state = rig.finish(task)
        gauge.free = 1000 * GIB
        assert not alive(pid)
        after = rig.submit("true")
        assert rig.finish(after).status == "succeeded"
    assert (state.status, state.reason, state.epoch) == ("failed", "disk_full", 1)
    for part in ("700.0 MiB were free in", "min_free (1.0 GiB)", "own files take", "make room"):
        assert part in state.message
    assert state.stderr_tail == "the last words"
    assert published(rig, state, "made") == b"made\n"
    assert [step.number for step in state.attempts[-1].steps] == [0]
    shown = subprocess.run(
        [sys.executable, "-m", "simagent", "show", task.id],
        env=os.environ | {"SIMAGENT_STORE": rig.config().store_url},
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert "disk_full" in shown
    assert "the last words" in shown


def test_a_dip_of_a_moment_ends_nothing(rig: Rig) -> None:
    gauge = Gauge()
    with rig.agent(change=gauge.put_on, min_free=GIB):
        task = rig.submit(SLEEPER)
        pid = pid_of(rig, task)
        for _ in range(2):
            gauge.dips.append(0)
            looks = gauge.looks
            rig.until(lambda looks=looks: gauge.looks >= looks + 3)  # type: ignore[misc]
        assert alive(pid)
        rig.client.kill(task, by="the test", grace=0.5)
        assert rig.finish(task).status == "killed"


def test_the_copy_of_a_checkpoint_gives_way_to_the_task(rig: Rig) -> None:
    """It waits for a store that does not answer, on a disk that is just large enough for both."""
    gauge = Gauge()
    copies = rig.folder / "state" / "attempts"

    def copied() -> int:
        return sum(p.stat().st_size for p in copies.glob("*/scratch/checkpoint/**/*.rst"))

    def free(folder: Path) -> int:
        return gauge(folder) - copied()

    def plan(call: str, key: str) -> Fault | None:
        return UNAVAILABLE if call == "upload" and "/checkpoints/" in key else None

    def change(ctx: Context) -> Context:
        store = FaultyStore(ctx.ledger.store, Faults(SystemClock(), plan=plan))
        return replace(ctx, ledger=Ledger(store), free_bytes=free)

    gauge.free = GIB + 10 * MIB
    script = f"echo $$; head -c {5 * MIB} /dev/zero > a.rst; exec sleep 300"
    with capture_logs() as logs, rig.agent(change=change, min_free=GIB):
        checkpoint = {"paths": ["*.rst"], "every": 0.2}
        task = rig.submit({"run": script, "shell": True}, checkpoint=checkpoint)
        pid = pid_of(rig, task)
        rig.until(lambda: copied() == 5 * MIB)
        gauge.free = GIB + 3 * MIB  # the task has taken the rest
        rig.until(lambda: copied() == 0)
        rig.until(lambda: Event.CHECKPOINT_MISSED in [line["event"] for line in logs])
        looks = gauge.looks
        rig.until(lambda: gauge.looks >= looks + 6)
        assert alive(pid)
        rig.client.kill(task, by="the test", grace=0.5)
        assert rig.finish(task).status == "killed"


def test_without_a_floor_nothing_is_ended(rig: Rig) -> None:
    gauge = Gauge()
    gauge.free = 0
    with rig.agent(change=gauge.put_on, min_free=0):
        task = rig.submit("sleep 2", "false")
        state = rig.finish(task)
    assert (state.status, state.reason) == ("failed", "exit_code")


def test_a_program_that_fails_on_a_full_disk_failed_of_that(rig: Rig) -> None:
    gauge = Gauge()
    script = "echo $$; while [ ! -e go ]; do sleep 0.05; done; exit 7"
    with rig.agent(change=gauge.put_on, min_free=GIB):
        task = rig.submit({"run": script, "shell": True})
        pid_of(rig, task)
        (journal,) = (rig.folder / "state" / "attempts").iterdir()
        gauge.dips = [0] * 1  # noticed by one look only
        gauge.free = 0
        (journal / "work/output/artifacts/go").touch()
        state = rig.finish(task)
    assert (state.status, state.reason) == ("failed", "disk_full")
    assert "were free" in state.message


def test_laying_inputs_ends_when_the_disk_fills_up(rig: Rig) -> None:
    gauge = Gauge()
    asked = threading.Event()

    def plan(call: str, key: str) -> Fault | None:
        if call == "open" and "inputs/" in key:
            asked.set()
            return UNAVAILABLE
        return None

    def change(ctx: Context) -> Context:
        store = FaultyStore(ctx.ledger.store, Faults(SystemClock(), plan=plan))
        return gauge.put_on(replace(ctx, ledger=Ledger(store)))

    (rig.folder / "input").mkdir()
    (rig.folder / "input" / "file").write_text("x")
    with rig.agent(change=change, min_free=GIB):
        task = rig.submit("true", inputs=["input"])
        assert asked.wait(60)
        gauge.free = 0
        state = rig.finish(task)
    assert (state.status, state.reason) == ("failed", "disk_full")
    assert not state.attempts[-1].steps


def test_another_agent_knows_why_the_step_was_ended(rig: Rig) -> None:
    """The agent ends the step, and dies before it can say so."""
    with rig.agent() as agent:
        task = rig.submit(SLEEPER)
        pid = pid_of(rig, task)
        agent.interrupt(Detached("the agent stops"))
    journal = next((rig.folder / "state" / "attempts").glob("*/journal.json"))
    text = journal.read_text()
    assert '"stopping": null' in text
    journal.write_text(text.replace('"stopping": null', f'"stopping": "{Reason.DISK_FULL}"'))
    shim = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    os.kill(shim, 15)
    rig.until(lambda: not alive(pid))
    with rig.agent():
        state = rig.finish(task)
    assert (state.status, state.reason, state.epoch) == ("failed", "disk_full", 1)
    assert "min_free" in state.message


# --- Publishing ---------------------------------------------------------------------------------


def no_room(where: Path) -> Callable[[Context], Context]:
    def before(call: str, key: str) -> None:
        if call == "upload":
            raise NoSpaceError(f"cannot write {key}: No space left on device", where)

    def change(ctx: Context) -> Context:
        store = FaultyStore(ctx.ledger.store, Faults(SystemClock(), before=before))
        settings = replace(ctx.settings, room_wait=0.1)
        return replace(ctx, ledger=Ledger(store), settings=settings)

    return change


@pytest.mark.parametrize(
    ("command", "status", "reason"),
    [("false", "failed", "exit_code"), ("true", "failed", "disk_full")],
)
def test_outputs_there_is_no_room_for_are_given_up(
    rig: Rig, command: str, status: str, reason: str
) -> None:
    with rig.agent(change=no_room(rig.folder / "store" / "x")):
        task = rig.submit(command)
        state = rig.finish(task)
    assert (state.status, state.reason, state.output) == (status, reason, None)
    assert "outputs not published: cannot write" in state.message
    assert not list((rig.folder / "state" / "attempts").iterdir())


def test_outputs_wait_for_room_on_a_disk_of_the_stores_own(rig: Rig) -> None:
    with capture_logs() as logs, rig.agent(change=no_room(Path("/proc"))) as agent:
        task = rig.submit("true")
        rig.until(lambda: sum(line["event"] == "tried again" for line in logs) > 2 or None)
        agent.interrupt(Detached("the agent stops"))
    assert rig.client.state(task).status == "finalizing"
    with rig.agent():
        assert rig.finish(task).status == "succeeded"


# --- Logs ---------------------------------------------------------------------------------------


def test_a_log_past_its_limit_takes_no_more_disk(rig: Rig) -> None:
    script = (
        "import sys, os, time\n"
        "for _ in range(40):\n"
        "    os.write(1, b'x' * 999_999 + b'\\n'); os.write(2, b'y' * 9_999 + b'\\n')\n"
        "while not os.path.exists('go'): time.sleep(0.05)\n"
        "os.write(1, b'the end\\n')\n"
        "os.write(2, b'the last words\\n')\n"
        "sys.exit(3)"
    )
    with rig.agent(max_log_bytes=200_000):
        task = rig.submit({"run": [sys.executable, "-c", script]})
        path = rig.until(
            lambda: next((rig.folder / "state" / "attempts").glob("*/logs/stdout"), None)
        )
        rig.until(lambda: path.stat().st_size == 40_000_000 or None)
        rig.until(lambda: path.stat().st_blocks * 512 < 4 * MIB or None)
        (path.parents[1] / "work/output/artifacts/go").touch()
        state = rig.finish(task)
    assert (state.reason, state.stderr_tail.splitlines()[-1]) == ("exit_code", "the last words")
    stdout = rig.log(task)
    assert stdout == (
        b"x" * 200_000
        + b"\n[simagent: the log is cut here, after 200000 bytes]\n"
        + b"[simagent: 39800008 bytes are left out]\n"
    )
    assert published(rig, state, "stdout.txt") == stdout
    assert state.output is not None
    manifest = json.loads((rig.folder / "store" / state.output.manifest).read_bytes())
    assert manifest["changed"] == []
    stderr = rig.log(task, "stderr")
    assert stderr.endswith(b"[simagent: 200015 bytes are left out]\n")
    assert published(rig, state, "stderr.txt") == stderr


def test_a_disk_that_can_free_no_part_of_a_file_is_told_of_once(tmp_path: Path) -> None:
    with plain_disk(tmp_path / "plain") as folder, capture_logs() as logs:
        rig = Rig(folder)
        script = "head -c 5000000 /dev/zero; while [ ! -e go ]; do sleep 0.05; done"
        with rig.agent(max_log_bytes=1000):
            task = rig.submit({"run": script, "shell": True})
            said = "logs past max_log_bytes stay on disk"
            rig.until(lambda: said in [line["event"] for line in logs] or None)
            (attempt,) = (folder / "state" / "attempts").iterdir()
            (attempt / "work/output/artifacts/go").touch()
            assert rig.finish(task).status == "succeeded"
        assert [line["event"] for line in logs].count(said) == 1
        assert rig.log(task).endswith(b"[simagent: 4999000 bytes are left out]\n")


def test_what_an_attempt_began_with_is_what_is_kept(rig: Rig) -> None:
    """The setting is changed, and the agent started again, while a command prints."""
    script = (
        "head -c 5000 /dev/zero | tr '\\0' x; echo $$ > pid; while [ ! -e go ]; do sleep 0.05; done"
    )
    attempts = rig.folder / "state" / "attempts"
    with rig.agent(max_log_bytes=1000) as agent:
        task = rig.submit({"run": script, "shell": True})
        rig.until(lambda: next(attempts.glob(f"*/{ARTIFACTS}/pid"), None))
        agent.interrupt(Detached("the agent stops"))
    with rig.agent(max_log_bytes=0):
        (folder,) = attempts.iterdir()
        (folder / ARTIFACTS / "go").touch()
        state = rig.finish(task)
    assert state.status == "succeeded"
    assert b"after 1000 bytes]\n[simagent: 4000 bytes" in rig.log(task)


# --- For real -----------------------------------------------------------------------------------


@pytest.fixture
def tiny(tmp_path: Path) -> Iterator[Rig]:
    """A machine with one disk of a few MiB, for all that there is."""
    with small_disk(tmp_path / "disk", mib=48) as folder:
        yield Rig(folder)


@pytest.mark.parametrize(
    "then", ["", "; sleep 300", "; while :; do echo x 2>/dev/null >> more; done"]
)
def test_a_task_that_fills_the_only_disk_at_once(tiny: Rig, then: str) -> None:
    """Faster than anybody could notice; then it fails, or waits, or takes whatever becomes free."""
    script = f"dd if=/dev/urandom of=filler bs=1M count=100{then}"
    with tiny.agent(min_free=8 * MIB, change=hasty):
        task = tiny.submit({"run": script, "shell": True}, grace=0.5)
        state = tiny.finish(task, 60)
        after = tiny.submit("true")
        assert tiny.finish(after, 60).status == "succeeded"
    assert (state.status, state.reason, state.epoch) == ("failed", "disk_full", 1)
    assert "No space left on device" in state.stderr_tail
    assert not list((tiny.folder / "state" / "attempts").iterdir())


def test_a_log_that_fills_the_only_disk(tiny: Rig) -> None:
    """It is there twice: where it is printed to, and in the store."""
    with tiny.agent(min_free=8 * MIB, change=hasty):
        task = tiny.submit({"run": "yes", "shell": False}, grace=0.5)
        state = tiny.finish(task, 60)
        after = tiny.submit("true")
        assert tiny.finish(after, 60).status == "succeeded"
    assert (state.status, state.reason, state.epoch) == ("failed", "disk_full", 1)
    log = tiny.log(task)
    assert log.startswith(b"y\ny\n")


def test_inputs_that_do_not_fit_on_the_disk(tiny: Rig) -> None:
    with (tiny.folder / "sparse").open("wb") as file:
        file.truncate(200 * MIB)
    with tiny.agent(min_free=8 * MIB, change=hasty):
        task = tiny.submit("true", inputs=["sparse"])
        state = tiny.finish(task, 60)
        after = tiny.submit("true")
        assert tiny.finish(after, 60).status == "succeeded"
    assert (state.status, state.reason, state.epoch) == ("failed", "disk_full", 1)
    assert not state.attempts[-1].steps


def test_an_agent_starts_again_on_the_full_disk(tiny: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """The disk is filled while no agent is there to notice."""
    monkeypatch.setenv("SIMAGENT_MIN_FREE", f"{8 * MIB}")
    script = "echo $$; while [ ! -e go ]; do sleep 0.05; done; cat /dev/urandom > filler; sleep 300"
    task = tiny.submit({"run": script, "shell": True}, grace=0.5)
    first = tiny.process()
    pid = pid_of(tiny, task)
    kill9(first)
    (folder,) = (tiny.folder / "state" / "attempts").iterdir()
    (folder / ARTIFACTS / "go").touch()
    tiny.until(lambda: os.statvfs(tiny.folder).f_bavail == 0 or None)
    second = tiny.process()
    try:
        tiny.until(lambda: not alive(pid))
        os.truncate(folder / "work/output/artifacts/filler", 0)  # instead of a minute's waiting
        state = tiny.finish(task, 60)
        after = tiny.submit("true")
        assert tiny.finish(after, 60).status == "succeeded"
    finally:
        second.terminate()
        second.wait(60)
    assert (state.status, state.reason, state.epoch) == ("failed", "disk_full", 1)


def hasty(ctx: Context) -> Context:
    return replace(ctx, settings=replace(ctx.settings, room_wait=1.0))
