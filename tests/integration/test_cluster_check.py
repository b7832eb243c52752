"""A head tries MPI by itself when its hosts are there: before any task, without its queue."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from fakes.grid import Cluster, FakeHead, ShellLaunchers
from fakes.hosts import member
from fakes.launchers import PlainLauncher
from fakes.steps import commands_of, until
from simagent.cli.cluster_check import ClusterCheck, kept_check
from simagent.domain.cluster import Member
from simagent.ports.clock import SystemClock
from simagent.ports.launcher import Launcher, Ranks
from simagent.wiring.agent import open_context
from simagent.worker.context import Context
from simagent.worker.journal import Entry, Journals
from simagent.worker.loop import Agent
from simagent.worker.orders import Detached
from simagent.worker.recovery import recover
from simagent.worker.snapshot import Stage
from simagent.worker.trial import Trial

# Tells what ranks on three hosts would, by the probe; how many of them it is told.
MPIRUN = """\
echo $* >>{log}
[ ! -e {log}.stay ] || exec sleep 300
[ -n "$SIMAGENT_TASK_ID" ] || exit 1
mkdir mpi-check
for rank in $(seq 0 $(($(cat {log}.ranks) - 1))); do
    host=$(echo vm1 vm2 vm3 | cut -d" " -f$((rank + 1)))
    record='{{"id": "'$rank'", "host": "'$host'", "told": ['$rank', 3], "met": false}}'
    echo "$record" >mpi-check/$rank.json
    echo "simagent-mpi-check $record"
done
"""


class FakeLauncher(PlainLauncher):
    def __init__(self, log: Path) -> None:
        super().__init__()
        self._script = MPIRUN.format(log=log)

    def command(self, ranks: Ranks, argv: Sequence[str]) -> tuple[str, ...]:
        return ("/bin/sh", "-c", self._script, "mpirun", str(ranks.np), *argv)


class FakeLaunchers(ShellLaunchers):
    def __init__(self, log: Path) -> None:
        super().__init__()
        self._log = log

    def find(self, version: str | None) -> Launcher:
        return FakeLauncher(self._log)


class Grid(Cluster):
    """A head that tries MPI."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.log_of_mpirun = folder / "mpirun"
        self.launchers = FakeLaunchers(self.log_of_mpirun)
        self.settings: dict[str, Any] = {}
        self.mpi: dict[str, Any] = {}
        self.records: dict[str, Member] = {}
        self.ranks_there(3)

    def ranks_there(self, count: int) -> None:
        Path(f"{self.log_of_mpirun}.ranks").write_text(str(count))

    def stay(self, *, stays: bool = True) -> None:
        """Let mpirun not end."""
        path = Path(f"{self.log_of_mpirun}.stay")
        path.touch() if stays else path.unlink()

    @property
    def calls(self) -> list[str]:
        return self.log_of_mpirun.read_text().splitlines() if self.log_of_mpirun.exists() else []

    def checked(self, ctx: Context) -> ClusterCheck:
        config = self.config()
        mpi = config.mpi.model_copy(update=self.mpi)
        return ClusterCheck(config.model_copy(update={"mpi": mpi}), ctx)

    def change(self, ctx: Context) -> Context:
        ctx = super().change(ctx)
        self.heads[-1].it = replace(self.heads[-1].it, size=3)
        self.heads[-1].records = self.records
        return replace(ctx, settings=replace(ctx.settings, **self.settings))

    @contextmanager
    def up(self, *, idle: float | None = None) -> Iterator[Agent]:
        with self.agent(change=self.change, trial=self.trial, idle_timeout=idle) as agent:
            yield agent

    def trial(self, ctx: Context) -> Trial:
        assert ctx.head is not None
        return Trial(ctx.head, ctx.clock, self.checked(ctx))

    def kept(self) -> dict[str, Any]:
        """Wait for what was found."""
        return self.until(lambda: kept_check(self.config().state_dir))


@pytest.fixture
def grid(tmp_path: Path) -> Iterator[Grid]:
    grid = Grid(tmp_path)
    yield grid
    for host in grid.members.values():
        host.end()


def told(logs: list[Any]) -> list[str]:
    return [line["event"] for line in logs if line["event"].startswith("MPI ")]


def test_it_goes_before_the_first_task_and_nobody_sees_it(grid: Grid) -> None:
    before = grid.ranks("echo task")
    with capture_logs() as logs, grid.up():
        state = grid.finish(before)
        kept = grid.kept()
    assert kept["ok"], kept
    assert [rank["host"] for rank in kept["ranks"]] == ["vm1", "vm2", "vm3"]
    assert state.status == "succeeded"
    trial, task = grid.calls
    assert trial.startswith("3 /bin/sh mpi-check.sh ")
    assert task == "3 /bin/sh -c echo task"
    assert state.attempts[0].started >= kept["at"]
    assert told(logs) == [
        "MPI is tried on the hosts of the cluster",
        "MPI on the hosts of the cluster",
        "MPI works on the hosts of the cluster",
    ]
    head = grid.heads[0]
    tried, ran = head.named
    assert (ran.task, len(tried.hosts)) == (before.id, 3)
    assert head.released == [tried.task, before.id]
    assert not [path for path in (grid.folder / "store").rglob("*") if tried.task in str(path)]
    assert not list((grid.folder / "state" / "attempts").iterdir())
    assert not list((grid.folder / "shared" / "grid").iterdir())
    assert not (grid.folder / "state" / "mpi-check").exists()


def test_what_is_known_is_not_tried_again(grid: Grid) -> None:
    with grid.up():
        grid.kept()
    with grid.up():
        grid.finish(grid.ranks("true"))
    assert len(grid.calls) == 2
    grid.mpi = {"mode": "hybrid"}
    with grid.up():
        grid.finish(grid.ranks("true"))
    assert len(grid.calls) == 4


def test_what_is_wrong_is_told_and_kept_and_keeps_no_tasks(grid: Grid) -> None:
    grid.ranks_there(2)
    task = grid.ranks("true")
    with capture_logs() as logs, grid.up():
        grid.finish(task)
    (wrong,) = [line for line in logs if line["log_level"] == "warning"]
    assert wrong["event"] == "MPI does not work on the hosts of the cluster"
    assert wrong["why"].startswith("1 of 3 ranks are missing: 2")
    assert grid.kept()["troubles"][0].startswith("1 of 3 ranks are missing: 2")
    grid.ranks_there(3)
    with grid.up():  # whoever mended it starts the agent again
        grid.until(lambda: grid.kept()["ok"])


def test_where_it_cannot_be_tried_that_is_said_in_a_line(grid: Grid) -> None:
    grid.settings = {"allow_process": False}
    task = grid.ranks("true", image="docker://registry.example/melt:1")
    with capture_logs() as logs, grid.up():
        grid.finish(task)
    (line,) = [line for line in logs if line["event"].startswith("MPI ")]
    assert line["event"] == "MPI is not tried on the hosts of the cluster"
    assert "allow_process" in line["why"]
    assert "mpi.check_image" in line["fix"]
    assert grid.kept()["tried"] is False
    assert grid.calls == []


@pytest.mark.parametrize(
    ("runtimes", "mpi", "why"),
    [
        (("docker",), ("openmpi 5.0.7",), "host vm3 runs no programs without an image"),
        (("docker", "process"), (), "host vm3 has no MPI"),
    ],
)
def test_what_a_member_lacks_for_it_is_said(
    grid: Grid, runtimes: tuple[str, ...], mpi: tuple[str, ...], why: str
) -> None:
    whole = member("vm2", runtimes=("process",), mpi=("openmpi 5.0.7",))
    grid.records = {"vm2": whole, "vm3": member("vm3", runtimes=runtimes, mpi=mpi)}
    with grid.up():
        assert grid.kept()["troubles"] == [why]
    assert grid.calls == []


def test_an_image_is_tried_where_one_is_named(grid: Grid) -> None:
    grid.settings = {"allow_process": False}
    grid.mpi = {"check_image": "docker://registry.example/melt:1"}
    with grid.up():
        grid.kept()
    assert "/bin/sh mpi-check.sh" in grid.containers.plans[0].argv[2]
    assert [m.requests[1]["ask"] for m in grid.members.values()] == ["fetch", "fetch"]


def test_a_machine_is_not_idle_while_tasks_wait_for_the_first_of_it(grid: Grid) -> None:
    grid.stay()
    clock = SystemClock()
    with grid.up(idle=2.0) as agent:
        grid.until(lambda: grid.calls or None)
        waits = grid.ranks("true")
        idle = clock.now() + 2.5
        until(lambda: clock.now() > idle, "the time")
        assert agent.snapshot().stage is Stage.TAKING_TASKS
        assert not grid.ended(waits)
        agent.interrupt(Detached("stop"))


def test_an_agent_that_stops_leaves_nothing_of_it(grid: Grid) -> None:
    grid.stay()
    with grid.up() as agent:
        grid.until(lambda: grid.calls or None)
        (journal,) = Journals(grid.config().state_dir).all()
        assert journal.entry.trial
        agent.interrupt(Detached("stop"))
    until(lambda: commands_of(journal.entry.task) == [], "an end of all that ran")
    assert kept_check(grid.config().state_dir) is None
    assert not list((grid.folder / "state" / "attempts").iterdir())
    assert not list((grid.folder / "shared" / "grid").iterdir())


def test_nothing_is_left_of_one_that_a_bug_ends(
    grid: Grid, monkeypatch: pytest.MonkeyPatch
) -> None:
    release, calls = FakeHead.release, []

    def fails_once(self: FakeHead, entry: Entry) -> None:
        calls.append(entry.task)
        if len(calls) == 1:
            raise RuntimeError("a bug")
        release(self, entry)

    monkeypatch.setattr(FakeHead, "release", fails_once)
    with grid.up():
        assert "a bug" in str(grid.kept()["troubles"])
        grid.finish(grid.ranks("true"))
    assert not list((grid.folder / "state" / "attempts").iterdir())
    assert not list((grid.folder / "shared" / "grid").iterdir())


def test_what_a_killed_agent_left_of_it_is_ended_by_the_next(grid: Grid) -> None:
    with grid.up() as agent:
        grid.kept()
        grid.stay()
        task = grid.ranks("true")
        grid.until(lambda: len(grid.calls) == 2)
        agent.interrupt(Detached("stop"))
    assert commands_of(task.id)
    # A thread cannot be killed: a task's attempt is put in the place of the trial's.
    (journal,) = Journals(grid.config().state_dir).all()
    journal.write(trial=True)
    ctx = grid.change(open_context(grid.config()))
    assert recover(ctx, journal) is None
    assert commands_of(task.id) == []
    assert grid.heads[-1].released == [task.id]
    assert not journal.folder.exists()
    assert not list((grid.folder / "shared" / "grid").iterdir())
