"""Store and queue that fail, lie, are slow or away; disks that are full; no inode left."""

import os
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from itertools import product
from pathlib import Path

import pytest

from faults.lab import FULL, LONG, SCALE, Lab, Measured, Stopwatch

needs_mount = pytest.mark.skipif(os.geteuid() != 0, reason="machine: only root can mount disks")

OUTAGE = 600.0 / SCALE
FLEET = 8


@contextmanager
def away(path: Path) -> Iterator[None]:
    """Put a file in the place of a folder, or a folder in that of a file, for a while."""
    aside = path.with_name(f"{path.name}.away")
    folder = path.is_dir()
    path.rename(aside)
    if folder:
        path.touch()
    else:
        path.mkdir()
    yield
    if folder:
        path.unlink()
    else:
        path.rmdir()
    aside.rename(path)


@pytest.mark.parametrize(
    "options",
    [
        pytest.param({"rate": 0.2, "seed": 1}, id="a fifth of all calls fails"),
        pytest.param({"rate": 0.2, "seed": 2}, id="other ones", marks=pytest.mark.full),
        pytest.param({"rate": 0.2, "slow": 0.2}, id="and is slow", marks=pytest.mark.full),
        pytest.param({"slow": 0.5}, id="all are slow", marks=pytest.mark.full),
    ],
)
def test_a_store_that_fails_is_slow_or_torn(lab: Lab, options: dict[str, float]) -> None:
    tasks = [lab.canonical() for _ in range(3 if FULL else 1)]
    for name in ("first", "second"):
        lab.start(name, **options)
    for task in tasks:
        assert lab.finish(task).status == "succeeded"
    lab.check()


@pytest.mark.full
def test_an_outage_of_the_store_stops_nothing_and_moves_nothing(
    lab: Lab, measured: Measured
) -> None:
    """Ten minutes for eight busy and eight idle agents, in the suite's own measure of time."""
    tasks = [lab.task(("until", LONG)) for _ in range(FLEET)]
    for number in range(2 * FLEET):
        lab.start(f"agent-{number}", files=False)
    pids = [lab.pid(task) for task in tasks]
    for task in tasks:
        lab.until(lambda t=task: (s := lab.client.state(t)).lease and s.lease.beat > 0)  # type: ignore[misc]
    with away(lab.folder / "store"):
        lab.until(Timer(OUTAGE).over)
        for pid in pids:
            os.kill(pid, 0)
    watch = Stopwatch()
    beats = {task: lab.client.state(task).lease for task in tasks}
    for task in tasks:
        lab.until(lambda t=task: lab.client.state(t).lease != beats[t])  # type: ignore[misc]
    measured("the store is back after ten minutes → all leases renewed", watch, scaled=True)
    for number in range(2 * FLEET):
        lab.until(partial(_is_back, lab, f"agent-{number}"))
    lab.go()
    for task in tasks:
        assert lab.finish(task).status == "succeeded"
    lab.check(calm=True)
    for number in range(2 * FLEET):
        assert [entry["event"] for entry in lab.log_of(f"agent-{number}")].count("store_lost") == 1


def _is_back(lab: Lab, agent: str) -> bool:
    return "store_back" in [entry["event"] for entry in lab.log_of(agent)]


class Timer:
    """Something to wait for that only takes time: an outage has to last."""

    def __init__(self, seconds: float) -> None:
        self._watch = Stopwatch()
        self._seconds = seconds

    def over(self) -> bool | None:
        return self._watch.running() >= self._seconds or None


@pytest.mark.parametrize("engine", ["store", "queue.db"])
def test_an_agent_that_starts_while_an_engine_is_down_says_so_once_and_recovers(
    lab: Lab, measured: Measured, engine: str
) -> None:
    task = lab.canonical()
    with away(lab.folder / engine):
        lab.start()
        lost = {"store": "store_lost", "queue.db": "queue_lost"}[engine]
        lab.until(lambda: lost in [entry["event"] for entry in lab.log_of()] or None)
        lab.until(Timer(3.0).over)
    watch = Stopwatch()
    assert lab.finish(task).status == "succeeded"
    name = engine.removesuffix(".db")
    measured(f"the {name} is back after an agent began without → the task has ended", watch)
    lab.check(calm=True)
    assert [entry["event"] for entry in lab.log_of()].count(lost) == 1


def test_an_agent_that_restarts_while_the_store_is_down_keeps_its_simulation(lab: Lab) -> None:
    task = lab.task(("until", LONG))
    process = lab.start()
    pid = lab.pid(task)
    process.kill()
    process.wait()
    with away(lab.folder / "store"):
        lab.start()
        lab.until(lambda: "store_lost" in [e["event"] for e in lab.log_of()] or None)
        lab.until(Timer(3.0).over)
        os.kill(pid, 0)
    lab.go()
    state = lab.finish(task)
    assert (state.status, state.epoch) == ("succeeded", 1)
    lab.check(calm=True)


# --- Disks ------------------------------------------------------------------------------------


@contextmanager
def small_disk(path: Path, size: str = "24m") -> Iterator[None]:
    """Mount a file system of a few MiB and a few hundred inodes, for agents that keep few free."""
    path.mkdir(exist_ok=True)
    os.environ["SIMAGENT_MIN_FREE"] = "2MiB"
    options = f"size={size},nr_inodes=400,mode=755"
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(path)], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(path)], check=True)
        del os.environ["SIMAGENT_MIN_FREE"]


def take_all_space(disk: Path) -> Callable[[], object]:
    filler = disk / "filler"
    with filler.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(2**16))
        except OSError:
            pass
    return filler.unlink


def take_all_inodes(disk: Path) -> Callable[[], object]:
    folder = disk / "inodes"
    folder.mkdir()
    number = 0
    try:
        while True:
            (folder / str(number)).touch()
            number += 1
    except OSError:
        pass
    return lambda: shutil.rmtree(folder)


MOMENTS = {
    "claim": "journal.create before",
    "input": "store.open inputs/N.zip before",
    "prepared": "journal.write attempt,prepared before",
    "start": "runtime.start step 0 before",
    "run": "store.put state.json:running again before",
    "log": "store.put a/N/logs/stdout/N before",
    "end": "journal.write attempt,outcome,reason before",
    "state": "store.put state.json:finalizing before",
    "upload": "store.upload a/N/output.zip before",
    "publish": "store.put state.json:succeeded before",
}
QUICK = {("state", "input", "space"), ("store", "log", "space"), ("state", "end", "inodes")}


@needs_mount
@pytest.mark.parametrize(
    ("disk", "moment", "what"),
    [
        pytest.param(*case, marks=[] if case in QUICK else pytest.mark.full)
        for case in product(("state", "store"), MOMENTS, ("space", "inodes"))
    ],
)
def test_a_full_disk(lab: Lab, disk: str, moment: str, what: str) -> None:
    """It fills up at some moment and is cleared some seconds later."""
    take = {"space": take_all_space, "inodes": take_all_inodes}[what]
    with small_disk(lab.folder / disk):
        task = lab.canonical()
        first = lab.start(point=MOMENTS[moment], act="stop")
        lab.stopped(first)
        give_back = take(lab.folder / disk)
        first.send_signal(signal.SIGCONT)
        with lab.kept(first):
            lab.until(Timer(3.0).over)
            give_back()
            state = lab.finish(task)
            lab.check()
        # A simulator that cannot write its log any more may fail of itself.
        reasons = {"disk_full", "output_failed"} | ({"exit_code"} if disk == "state" else set())
        assert state.status == "succeeded" or state.reason in reasons
