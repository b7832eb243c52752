"""Checkpoints of running tasks, with real agents and commands: kept, laid back, never half."""

import signal
import subprocess
import sys
import zipfile
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import pytest

from fakes.aws import Moto
from fakes.cli import Cli
from fakes.rig import Rig, kill9
from fakes.s3 import Bucket
from fakes.steps import end_commands
from faults.proxy import STALL, Proxy, Rule
from simagent.domain.keys import TaskKeys
from simagent.domain.state import Checkpoint
from simagent.engines import open_store
from simagent.ports.store import NotFoundError, Store
from simagent.worker.journal import ARTIFACTS
from simagent.worker.orders import Preempted

SIMULATOR = """
import os, pathlib, signal, sys, time
bound = pathlib.Path(sys.argv[1])
state, other = pathlib.Path("count.rst"), pathlib.Path("twin.rst")
restarted = os.environ["SIMAGENT_RESTART"] == "1"
count = int(state.read_text()) if restarted else 0
assert not restarted or int(other.read_text()) == count, "half a set"
print("attempt", os.environ["SIMAGENT_EPOCH"], "starts at", count, flush=True)

def save():
    for path in (state, other):
        part = path.with_suffix(".part")
        part.write_text(str(count))
        part.replace(path)

def ended(*_):
    save()
    sys.exit(3)

if len(sys.argv) > 2:
    signal.signal(signal.SIGTERM, ended)
while count < 10:
    if count < int(bound.read_text()):
        count += 1
        save()
    time.sleep(0.05)
pathlib.Path("result.txt").write_text(f"{count} {pathlib.Path('input.txt').read_text()}")
"""
CHECKPOINT = {"paths": ["*.rst"], "every": 0.2}


class Bench:
    """A rig whose simulation counts as far as it is let."""

    def __init__(self, folder: Path) -> None:
        self.rig = Rig(folder)
        self.bound = folder / "bound"
        (folder / "sim.py").write_text(SIMULATOR)
        (folder / "input.txt").write_text("input")

    @property
    def store(self) -> Store:
        return open_store(self.rig.config())

    def go_to(self, count: int) -> None:
        part = self.bound.with_suffix(".part")
        part.write_text(str(count))
        part.replace(self.bound)

    def submit(self, *options: str, **fields: object) -> TaskKeys:
        command = [sys.executable, "sim.py", str(self.bound), *options]
        given = {"inputs": ["sim.py", "input.txt"], "checkpoint": CHECKPOINT, "grace": 5} | fields
        return self.rig.submit(command, **given)

    def kept(self, task: TaskKeys, **contents: str) -> Checkpoint:
        """Wait for a checkpoint with such contents."""

        def look() -> Checkpoint | None:
            found = self.rig.client.state(task).checkpoint
            try:
                return found if found and self.contents(found) == contents else None
            except NotFoundError:  # a newer one took its place just now
                return None

        return self.rig.until(look)

    def contents(self, checkpoint: Checkpoint) -> dict[str, str]:
        data = self.store.get(checkpoint.archive).data
        with zipfile.ZipFile(BytesIO(data)) as archive:
            return {n.partition(".")[0]: archive.read(n).decode() for n in archive.namelist()}

    def sets(self, task: TaskKeys) -> list[str]:
        return [e.key for e in self.store.scan(task.root) if "/checkpoints/" in e.key]


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    made = Bench(tmp_path)
    made.go_to(4)
    return made


def stop(process: "subprocess.Popen[bytes]", within: float = 60) -> None:
    process.send_signal(signal.SIGTERM)
    assert process.wait(within) == 0


def outputs(bench: Bench, task: TaskKeys, folder: Path) -> dict[str, str]:
    bench.rig.client.download(task, [], folder)
    return {p.name: p.read_text() for p in folder.iterdir() if p.is_file()}


def lose(bench: Bench, task: TaskKeys) -> None:
    """Let the task's agent die with its command, as with its machine."""
    agent = bench.rig.process("first")
    bench.kept(task, count="4", twin="4")
    kill9(agent)
    end_commands(task.id)


def test_a_lost_attempt_s_successor_goes_on_from_its_checkpoint(
    bench: Bench, tmp_path: Path
) -> None:
    task = bench.submit()
    lose(bench, task)
    bench.go_to(10)
    second = bench.rig.process("second")
    state = bench.rig.finish(task)
    stop(second)
    assert (state.status, state.epoch, state.counters.losses) == ("succeeded", 2, 1)
    assert bench.rig.log(task) == b"attempt 2 starts at 4\n"
    assert [a.restart for a in state.attempts] == [None, 1]
    assert "checkpoint" in state.attempts[1].timings
    # What came with the checkpoint is published, too; inputs are not.
    found = outputs(bench, task, tmp_path / "results")
    assert found["result.txt"] == "10 input"
    assert (found["count.rst"], found["twin.rst"]) == ("10", "10")
    assert not {"sim.py", "input.txt"} & set(found)
    assert (state.checkpoint, bench.sets(task)) == (None, [])


def test_files_of_a_checkpoint_are_outputs_though_nothing_changed_them(
    bench: Bench, tmp_path: Path
) -> None:
    task = bench.submit()
    lose(bench, task)
    with bench.rig.agent("second") as agent:
        bench.rig.until(lambda: bench.rig.log(task) == b"attempt 2 starts at 4\n")
        bench.rig.client.kill(task, by="the test", grace=0.1)
        state = bench.rig.finish(task)
        agent.drain()
    assert state.status == "killed"
    assert outputs(bench, task, tmp_path / "results")["count.rst"] == "4"
    assert state.checkpoint is not None, "nobody knows what it may still be good for"


def test_what_was_laid_back_is_not_kept_again_while_nothing_changes(bench: Bench) -> None:
    task = bench.submit()
    lose(bench, task)
    kept = bench.rig.client.state(task).checkpoint
    with bench.rig.agent("second"):
        bench.rig.until(lambda: bench.rig.log(task) == b"attempt 2 starts at 4\n")
        beat = beats(bench, task) + 5
        bench.rig.until(lambda: beats(bench, task) > beat)
        assert bench.rig.client.state(task).checkpoint == kept
        bench.go_to(10)
        assert bench.rig.finish(task).status == "succeeded"


def test_a_newer_set_takes_the_place_of_the_older_one(bench: Bench) -> None:
    with bench.rig.agent():
        task = bench.submit()
        first = bench.kept(task, count="4", twin="4")
        bench.go_to(5)
        second = bench.kept(task, count="5", twin="5")
        bench.rig.until(lambda: bench.sets(task) == [second.archive])
        assert (second.number, second.files, second.epoch) == (first.number + 1, 2, 1)
        bench.go_to(10)
        assert bench.rig.finish(task).status == "succeeded"


def beats(bench: Bench, task: TaskKeys) -> int:
    lease = bench.rig.client.state(task).lease
    return lease.beat if lease is not None else 0


def test_nothing_is_kept_while_nothing_changes_also_by_an_agent_that_starts_again(
    bench: Bench,
) -> None:
    task = bench.submit()
    first = bench.rig.process()
    kept = bench.kept(task, count="4", twin="4")
    noted = bench.rig.folder / "state" / "attempts"
    bench.rig.until(lambda: any("count" in p.read_text() for p in noted.glob("*/checkpoint.json")))
    kill9(first)
    second = bench.rig.process()
    beat = beats(bench, task) + 5
    bench.rig.until(lambda: beats(bench, task) > beat)
    assert bench.rig.client.state(task).checkpoint == kept
    bench.go_to(5)
    later = bench.kept(task, count="5", twin="5")
    assert (later.epoch, later.number) == (1, kept.number + 1)
    bench.go_to(10)
    assert bench.rig.finish(task).epoch == 1
    stop(second)


@pytest.mark.parametrize("damage", ["gone", "cut"])
def test_without_its_checkpoint_a_task_starts_from_its_inputs_and_says_so(
    bench: Bench, tmp_path: Path, damage: str
) -> None:
    task = bench.submit()
    lose(bench, task)
    named = bench.rig.client.state(task).checkpoint
    assert named is not None
    if damage == "gone":
        bench.store.delete(named.archive)
    else:
        bench.store.put(named.archive, bench.store.get(named.archive).data[:-1])
    bench.go_to(10)
    with bench.rig.agent("second"):
        state = bench.rig.finish(task)
    assert state.status == "succeeded"
    assert bench.rig.log(task) == b"attempt 2 starts at 0\n"
    assert state.attempts[1].restart is None
    note = state.attempts[1].note
    assert note.startswith("started from the inputs: checkpoint p/default/tasks/")
    assert {"gone": "is not there any more", "cut": "is damaged"}[damage] in note
    cli, config = Cli(tmp_path), bench.rig.config()
    cli.env |= {"SIMAGENT_STORE": config.store_url, "SIMAGENT_QUEUE": config.queue_url}
    assert note in cli("show", task.id).stdout


def given_back(bench: Bench, *options: str, ready: Callable[[TaskKeys], object]) -> TaskKeys:
    """Preempt a task whose next checkpoint is an hour away."""
    with bench.rig.agent("first") as first:
        task = bench.submit(*options, checkpoint={"paths": ["*.rst"], "every": "1h"})
        bench.rig.until(lambda: ready(task))
        first.interrupt(Preempted("the machine goes away"))
    return task


def reached(bench: Bench) -> Callable[[TaskKeys], object]:
    def look(task: TaskKeys) -> object:
        files = bench.rig.folder.glob(f"first/attempts/*/{ARTIFACTS}/count.rst")
        return any(file.read_text() == "4" for file in files)

    return look


def test_a_command_that_sees_to_its_files_at_sigterm_leaves_a_last_checkpoint(
    bench: Bench,
) -> None:
    task = given_back(bench, "sees to its files", ready=reached(bench))
    state = bench.rig.client.state(task)
    assert (state.status, state.counters.preemptions) == ("queued", 1)
    assert state.checkpoint is not None
    assert bench.contents(state.checkpoint) == {"count": "4", "twin": "4"}
    bench.go_to(10)
    with bench.rig.agent("second"):
        assert bench.rig.finish(task).status == "succeeded"
    assert bench.rig.log(task) == b"attempt 2 starts at 4\n"


def test_what_was_written_when_sigterm_ended_a_command_is_no_checkpoint(bench: Bench) -> None:
    script = "while :; do date +%N > a.rst; done"
    with bench.rig.agent("first") as first:
        task = bench.rig.submit(
            {"run": script, "shell": True}, checkpoint={"paths": ["*.rst"], "every": "1h"}
        )
        files = bench.rig.folder
        bench.rig.until(lambda: any(files.glob(f"first/attempts/*/{ARTIFACTS}/a.rst")))
        first.interrupt(Preempted("the machine goes away"))
    state = bench.rig.client.state(task)
    assert (state.status, state.checkpoint, bench.sets(task)) == ("queued", None, [])


def test_a_task_without_one_is_told_that_it_does_not_restart(bench: Bench) -> None:
    task = bench.rig.submit({"run": "echo $SIMAGENT_RESTART $SIMAGENT_EPOCH", "shell": True})
    with bench.rig.agent(until_empty=True):
        bench.rig.finish(task)
    assert bench.rig.log(task) == b"0 1\n"


def test_an_agent_ends_at_once_though_the_store_takes_no_part_of_a_set(
    tmp_path: Path, moto: Moto, bucket: Bucket
) -> None:
    part = Rule(STALL, "UploadPart *")
    with Proxy(bucket.endpoint or moto.endpoint, part) as proxy:
        engines = {
            "store": bucket.url,
            "s3_endpoint": proxy.endpoint,
            "s3_region": bucket.region or "",
            "allow_process": "true",
        }
        rig = Rig(tmp_path, engines)
        script = "head -c 20000000 /dev/urandom > a.rst; exec sleep 300"
        task = rig.submit({"run": script, "shell": True}, checkpoint=CHECKPOINT)
        process = rig.process()
        rig.until(lambda: part.struck.total() or None)
        stop(process, within=20)  # a call that stalls is given up after 30 s
    end_commands(task.id)
