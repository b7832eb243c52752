"""Commands that run while their agent does not: what the next one makes of them."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from fakes.rig import Rig
from fakes.steps import alive
from fakes.tasks import attempt
from simagent.cli.sweeping import sweep_group
from simagent.domain.keys import TaskKeys, open_marker
from simagent.domain.spec import Spec
from simagent.domain.state import Lease, State, Status
from simagent.ports.clock import Wake
from simagent.wiring.agent import open_context
from simagent.worker.attempt import AttemptRun
from simagent.worker.choice import NoRuntimeError, choose
from simagent.worker.context import Context
from simagent.worker.endings import StepLostError
from simagent.worker.journal import Entry, Journals
from simagent.worker.orders import Detached, Orders
from simagent.worker.recovery import recover, stop_leftovers
from simagent.worker.steps import StepRunner
from simagent.worker.threads import Threads

SLEEPER = {"run": "echo $$; exec sleep 300", "shell": True}


@pytest.fixture
def rig(tmp_path: Path) -> Rig:
    return Rig(tmp_path)


def left_running(
    rig: Rig, command: object = SLEEPER, *, name: str = "state", **fields: object
) -> tuple[TaskKeys, int]:
    """Leave a task's command running without any agent; give its process id."""
    with rig.agent(name) as agent:
        task = rig.submit(command, **fields)
        pid = int(rig.until(lambda: rig.log(task) or None).split()[0])
        agent.interrupt(Detached("the agent stops"))
    return task, pid


def waiter(go: Path) -> dict[str, object]:
    """A command that says its process id and runs until a file is there."""
    return {"run": f"echo $$; while [ ! -e {go} ]; do sleep 0.02; done", "shell": True}


def end(rig: Rig, task: TaskKeys) -> State:
    rig.client.kill(task, by="the test", grace=0.5)
    return rig.finish(task)


def folder_of(rig: Rig, name: str = "state") -> Path:
    (folder,) = (rig.folder / name / "attempts").iterdir()
    return folder


def aside(rig: Rig, name: str = "state") -> list[str]:
    return sorted(path.name for path in (rig.folder / name / "set-aside").iterdir())


@pytest.mark.parametrize("why", ["killed", "timed_out"])
def test_what_was_to_end_meanwhile_is_ended_and_recorded(rig: Rig, why: str) -> None:
    limit = 1000.0 if why == "timed_out" else None
    task, pid = left_running(rig, grace=1.0, time_limit=limit)
    if why == "killed":
        rig.client.kill(task, by="tester")
    else:
        (journal,) = Journals(rig.config().state_dir).all()
        assert journal.entry.steps_started is not None
        journal.write(steps_started=journal.entry.steps_started - 1000.0)  # as if that had passed
        assert alive(pid)
    with rig.agent():
        state = rig.finish(task)
    assert not alive(pid)
    assert state.status == why
    (step,) = state.attempts[-1].steps
    assert step.signal == 15


def test_a_reboot_while_inputs_were_laid_costs_nothing_later(rig: Rig) -> None:
    """What counts is the boot in which the steps began, not that of the claim."""
    config = rig.config()
    config.state_dir.mkdir()
    ctx = open_context(config)
    who = {"project": "default", "task": "T1", "group": "default", "agent": "a"}
    began = {"incarnation": "i", "boot_id": "an earlier one", "attempt": attempt()}
    journal = ctx.journals.create(Entry.model_validate(who | began | {"epoch": 1}))
    journal.artifacts.mkdir(parents=True)
    journal.logs.mkdir()
    spec = Spec(commands=("true",))

    def run(ctx: Context) -> Status:
        (journal,) = ctx.journals.all()
        return StepRunner(ctx, spec, journal, Orders(), ctx.runtimes["process"]).run().outcome

    assert run(ctx) is Status.SUCCEEDED
    assert run(open_context(config)) is Status.SUCCEEDED
    later = replace(ctx, identity=replace(ctx.identity, boot_id="a later one"))
    with pytest.raises(StepLostError, match="rebooted"):
        run(later)


def test_an_engine_that_is_gone_runs_nothing_new_but_is_looked_for(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SIMAGENT_RUNTIMES", "[]")
    left_running(rig)
    ctx = open_context(rig.config())
    assert {"docker", "apptainer"} <= ctx.runtimes.keys()
    assert {"docker", "apptainer"} <= ctx.images.keys(), "its image may not be fetched yet"
    spec = Spec(commands=("true",), image="debian")
    with pytest.raises(NoRuntimeError) as caught:
        choose(spec, ctx.runtimes, preferred=ctx.settings.containers)
    assert caught.value.lasting
    (journal,) = ctx.journals.all()
    stop_leftovers(ctx, journal.folder)


def test_a_lease_lost_before_the_steps_are_looked_at_ends_them(rig: Rig) -> None:
    task, pid = left_running(rig)
    ctx = open_context(rig.config())
    (journal,) = ctx.journals.all()
    recovered = recover(ctx, journal)
    assert recovered is not None
    lease = Lease(agent="another", incarnation="i9")
    ctx.ledger.change(task, lambda state: state.with_(epoch=state.epoch + 1, lease=lease))
    AttemptRun(ctx, Threads(Wake()), journal, *recovered).run()
    assert not alive(pid)
    assert aside(rig) == [journal.folder.name]
    assert rig.client.state(task).lease == lease


def test_a_disk_that_is_full_at_the_start_delays_only_what_has_to_be_written(
    tmp_path: Path,
) -> None:
    rig = Rig(tmp_path, lease_ttl=60.0)
    go = tmp_path / "go"
    small = {"cpus": 0.5, "memory": "200MB"}
    task, _ = left_running(rig, waiter(go), resources=small)
    unwritable = folder_of(rig) / ".journal.json.new"
    unwritable.mkdir()
    with rig.agent(slots=2):  # it runs on, and has its slot
        assert rig.finish(rig.submit("true", resources=small)).status == "succeeded"
        unwritable.rmdir()
        go.touch()
        state = rig.finish(task)
    assert (state.status, state.epoch) == ("succeeded", 1)


def test_a_disk_that_is_full_at_the_end_is_waited_for(rig: Rig, tmp_path: Path) -> None:
    go = tmp_path / "go"
    with capture_logs() as logs, rig.agent():
        task = rig.submit(waiter(go))
        rig.until(lambda: rig.log(task) or None)
        unwritable = folder_of(rig) / ".journal.json.new"
        unwritable.mkdir()
        go.touch()
        rig.until(lambda: any(line["event"] == "tried again" for line in logs))
        assert rig.client.state(task).status == "running"
        unwritable.rmdir()
        state = rig.finish(task)
    assert (state.status, state.epoch) == ("succeeded", 1)


def test_commands_are_looked_after_also_where_no_new_ones_may_run(rig: Rig, tmp_path: Path) -> None:
    go = tmp_path / "go"
    task, pid = left_running(rig, waiter(go))
    with rig.agent(allow_process=False):
        rig.until(lambda: (lease := rig.client.state(task).lease) and lease.beat >= 1)
        assert alive(pid)
        go.touch()
        assert rig.finish(task).status == "succeeded"
        other = rig.submit("true")
        queue_is_heard = rig.submit("true")
        rig.client.kill(queue_is_heard, by="the test")
        rig.until(
            lambda: not (rig.folder / "store" / open_marker("default", queue_is_heard)).exists()
        )
        assert rig.client.state(other).status == "queued"


def test_what_runs_for_a_corrupt_journal_is_ended(rig: Rig) -> None:
    task, pid = left_running(rig)
    folder = folder_of(rig)
    (folder / "journal.json").write_bytes(b"{")
    (folder.parent / "a stray file").touch()
    with rig.agent():
        rig.until(lambda: not alive(pid))
        end(rig, task)
    assert aside(rig) == ["a stray file", folder.name]


def test_another_machines_attempt_is_not_gone_on_with(rig: Rig) -> None:
    """A disk was cloned: what it says of attempts is true on the first machine alone."""
    task, pid = left_running(rig, name="first")
    folder = folder_of(rig, "first")
    shutil.copytree(folder.parent, rig.folder / "second" / "attempts")
    holder = rig.client.state(task).lease
    with rig.agent("second"):
        rig.until(lambda: not alive(pid))
        state = rig.client.state(task)
        assert state.epoch == 2 or state.lease == holder
        end(rig, task)
    assert aside(rig, "second") == [folder.name]


def test_the_sweep_waits_to_see_whether_agents_live(
    rig: Rig, capsys: pytest.CaptureFixture[str]
) -> None:
    task, _ = left_running(rig)
    sweep_group(rig.config(), wait=True, as_json=False)
    told = "1 open tasks seen, 1 rung again, 0 closed, 0 markers removed, 0 held"
    assert told in capsys.readouterr().out
    with rig.agent():
        end(rig, task)
