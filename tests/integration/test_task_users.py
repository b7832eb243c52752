"""Commands of tasks without an image, where the agent is root's: whom they run as."""

import json
import os
import shutil
import signal
import stat
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fakes.memberlab import MemberLab, wait_for
from fakes.rig import Rig
from fakes.steps import LIMIT, PATH, Folder, none_left, until
from simagent.cluster.connection import Connection
from simagent.cluster.messages import Exited, Refused
from simagent.config import ConfigError
from simagent.config_load import load_config
from simagent.domain.reasons import Reason
from simagent.ledger import Ledger
from simagent.ports.runtime import StepLimits
from simagent.ports.store import Body, Entry
from simagent.runtimes.process import ProcessRuntime
from simagent.stores.directory import DirectoryStore
from simagent.wiring.agent import open_context
from simagent.worker.context import Context
from simagent.worker.orders import Detached
from simagent.worker.users import TaskUsers

pytestmark = pytest.mark.skipif(
    os.geteuid() != 0, reason="machine: only root's tasks run as other users"
)

FIRST, SECOND = (54_321, 54_322), (54_323, 54_324)
"""Users and groups; they need no names."""

WHO = """
import json, os
status = dict(line.split(":", 1) for line in open("/proc/self/status"))
names = ("NoNewPrivs", "Groups", "CapEff", "CapPrm", "CapInh", "CapAmb", "Uid", "Gid")
print(json.dumps({name: status[name].split() for name in names}), flush=True)
"""


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that every user may pass, which those of pytest are not."""
    path = Path(tempfile.mkdtemp(prefix="simagent-test-"))
    path.chmod(0o711)
    yield path
    shutil.rmtree(path, ignore_errors=True)


@pytest.fixture
def folder(open_folder: Path) -> Iterator[Folder]:
    folder = Folder(open_folder, ProcessRuntime())
    yield folder
    none_left(folder.marked())


@pytest.fixture
def rig(open_folder: Path) -> Rig:
    return Rig(open_folder)


def told(text: bytes | str) -> dict[str, Any]:
    found = json.loads(text)
    assert isinstance(found, dict)
    return found


def test_a_step_of_another_user_has_no_rights_and_no_way_to_any(folder: Folder) -> None:
    result = folder.run(folder.plan("/usr/bin/python3", "-c", WHO, user=FIRST))
    assert (result.exit_code, folder.err) == (0, b"")
    assert told(folder.out) == {
        "NoNewPrivs": ["1"],
        "Groups": [],
        "CapEff": ["0000000000000000"],
        "CapPrm": ["0000000000000000"],
        "CapInh": ["0000000000000000"],
        "CapAmb": ["0000000000000000"],
        "Uid": ["54321"] * 4,
        "Gid": ["54322"] * 4,
    }


def test_it_reaches_neither_its_records_nor_its_shim(folder: Folder) -> None:
    steps = folder.root / "steps"
    (folder.root / "journal.json").touch(mode=0o600)
    code = (
        f"ls {steps}; cat {steps}/step-0.json {folder.root}/journal.json; "
        f"touch {steps}/step-0.stop; "
        "kill -KILL $PPID; cat /proc/$PPID/environ; echo over; exit 3"
    )
    result = folder.run(folder.plan("sh", "-c", code, user=FIRST))
    assert (result.exit_code, result.reason, folder.out) == (3, None, b"over\n")
    assert folder.err.count(b"ermission denied") == 5
    assert folder.err.count(b"not permitted") == 1


def test_it_is_stopped_and_leaves_nothing_as_any_other(folder: Folder) -> None:
    code = "trap '' TERM; setsid sleep 600 & echo $$; echo $!; wait"
    step = folder.runtime.start(folder.plan("sh", "-c", code, user=FIRST))
    until(lambda: len(folder.reported()) == 2)
    assert {os.stat(f"/proc/{pid}").st_uid for pid in step.pids()} == {FIRST[0]}
    step.stop(0.2)
    result = step.wait(LIMIT)
    assert result is not None
    assert (result.stopped, result.signal) == (True, signal.SIGKILL)


def test_what_its_killed_shim_leaves_is_ended(folder: Folder) -> None:
    code = "setsid sleep 600 & echo $$; echo $!; wait"
    step = folder.runtime.start(folder.plan("sh", "-c", code, user=FIRST))
    until(lambda: len(folder.reported()) == 2)
    (started,) = (folder.root / "steps").glob("*.started")
    os.kill(json.loads(started.read_bytes())["shim"]["pid"], signal.SIGKILL)
    result = step.wait(LIMIT)
    assert result is not None
    assert result.reason is Reason.SHIM_LOST


def test_its_rlimits_are_of_its_user(folder: Folder) -> None:
    plan = folder.plan("bash", "-c", "ulimit -d; ulimit -u", user=FIRST)
    limits = StepLimits(memory_bytes=256 << 20, processes=4)
    folder.run(replace(plan, limits=limits))
    data, processes = folder.out.split()
    assert data == b"262144"
    assert 4 <= int(processes) < 50, "what that user has already is added, not what root has"


def test_a_program_in_a_folder_that_is_closed_to_it_is_told(folder: Folder) -> None:
    closed = folder.root / "closed"
    closed.mkdir(mode=0o700)
    (closed / "simulate").write_text("#!/bin/sh\n")
    (closed / "simulate").chmod(0o755)
    env = {"PATH": f"{closed}:{PATH}"}
    result = folder.run(folder.plan("simulate", user=FIRST, env=env))
    assert result.reason is Reason.COMMAND_NOT_FOUND
    assert result.message.endswith(f"user {FIRST[0]} may not look into {closed}")
    result = folder.run(folder.plan(f"{closed}/simulate", user=FIRST, number=1))
    assert result.message.endswith(f"user {FIRST[0]} may not look into {closed}")


# --- As an agent runs them ----------------------------------------------------------------------


def slots_of(*users: tuple[int, int]) -> Callable[[Context], Context]:
    def change(ctx: Context) -> Context:
        found = TaskUsers(common=users[0], slots=users, own_programs=False)
        return replace(ctx, settings=replace(ctx.settings, users=found))

    return change


def test_the_commands_of_a_slot_run_as_its_user_at_home_in_its_tmp(rig: Rig) -> None:
    (rig.folder / "in").mkdir()
    (rig.folder / "in" / "given").write_text("1")
    (rig.folder / "in" / "given").chmod(0o600)
    code = (
        "id -u; id -g; echo $HOME; touch ~/kept; stat -c %a ~ .; echo 2 >>given; mkdir made; "
        "cat given"
    )
    with rig.agent(change=slots_of(FIRST)):
        task = rig.submit(["sh", "-c", code], inputs=["in/given"])
        state = rig.finish(task)
    assert (state.status, rig.log(task, "stderr")) == ("succeeded", b"")
    uid, gid, home, *rest = rig.log(task).decode().split()
    assert (uid, gid) == ("54321", "54322")
    assert home.startswith(f"{rig.folder}/state/attempts/")
    assert home.endswith("/tmp")
    assert rest == ["700", "700", "12"]


def test_tasks_side_by_side_cannot_get_at_each_other_or_at_the_agents_files(rig: Rig) -> None:
    go = rig.folder / "go"
    wait = f"echo secret >mine; echo $$; while [ ! -e {go} ]; do sleep 0.05; done"
    with rig.agent(change=slots_of(FIRST, SECOND), slots=2):
        first = rig.submit(["sh", "-c", wait], env={"TOKEN": "hidden"})
        pid = rig.until(lambda: rig.log(first) or None).decode().strip()
        (attempt,) = (rig.folder / "state" / "attempts").iterdir()
        paths = [
            attempt / "work/output/artifacts/mine",
            attempt / "journal.json",
            attempt / "logs/stdout",
            attempt / "steps/step-0.json",
            attempt / "inputs.json",
            Path("/proc", pid, "environ"),
        ]
        tries = "; ".join(f"cat {path} && echo READ {path.name}" for path in paths)
        lists = f"ls {attempt} && echo LISTED; ls {attempt.parent} && echo LISTED"
        code = f"{tries}; {lists}; kill {pid} && echo KILLED; id -u"
        second = rig.submit(["sh", "-c", code])
        assert rig.finish(second).status == "succeeded"
        go.touch()
        assert rig.finish(first).status == "succeeded"
    assert rig.log(second).decode() == f"{SECOND[0]}\n"


def test_a_restarted_agent_goes_on_with_a_task_of_another_user(rig: Rig) -> None:
    go = rig.folder / "go"
    code = f"id -u; while [ ! -e {go} ]; do sleep 0.05; done; id -u"
    change = slots_of(FIRST)
    with rig.agent(change=change) as agent:
        task = rig.submit(["sh", "-c", code], ["id", "-u"])
        rig.until(lambda: rig.log(task) or None)
        agent.interrupt(Detached("the test"))
    with rig.agent():  # one that was told otherwise meanwhile
        go.touch()
        assert rig.finish(task).status == "succeeded"
    assert rig.log(task).decode() == f"{FIRST[0]}\n" * 3


def test_ranks_of_the_hosts_mpirun_run_as_the_slots_user(rig: Rig) -> None:
    if shutil.which("mpirun") is None:
        pytest.skip("no mpirun")
    with rig.agent(change=slots_of(FIRST)):
        task = rig.submit({"run": ["id", "-u"], "mpi": {"np": 2, "oversubscribe": True}})
        state = rig.finish(task)
    assert (state.status, rig.log(task, "stderr")) == ("succeeded", b"")
    assert rig.log(task).decode().split() == [str(FIRST[0])] * 2


def test_the_next_task_of_its_user_cannot_change_what_is_published(rig: Rig) -> None:
    seen: list[int] = []

    class LookingStore(DirectoryStore):
        def upload(self, key: str, body: Body) -> Entry:
            (attempt,) = (rig.folder / "state" / "attempts").iterdir()
            seen.append(stat.S_IMODE(attempt.stat().st_mode))
            return super().upload(key, body)

    def change(ctx: Context) -> Context:
        store = Ledger(LookingStore(rig.folder / "store"))
        return replace(slots_of(FIRST)(ctx), ledger=store)

    with rig.agent(change=change):
        task = rig.submit(["sh", "-c", "echo 1 >file; stat -c %a ~/.."])
        assert rig.finish(task).status == "succeeded"
    assert rig.log(task) == b"710\n"
    assert seen[-1] == 0o700


def test_a_state_folder_that_tasks_cannot_get_to_is_refused_by_name(
    tmp_path: Path, open_folder: Path
) -> None:
    tmp_path.chmod(0o700)
    config = load_config(None, state_dir=tmp_path / "state", task_uid=FIRST[0])
    with pytest.raises(ConfigError, match=f"run as {FIRST[0]}, who may not pass /.*: chmod o"):
        open_context(config)
    config.state_dir.mkdir()
    assert open_context(config, own_task=True).settings.users.own_programs
    config = load_config(None, state_dir=open_folder / "state", task_uid=FIRST[0])
    assert not open_context(config).settings.users.own_programs
    store = open_folder / "state" / "store"
    assert stat.S_IMODE(store.stat().st_mode) == 0o700, "outputs of others lie there"


def test_ranks_on_a_member_run_as_on_the_head(open_folder: Path) -> None:
    lab = MemberLab(open_folder)
    for path in (lab.shared, lab.work.parent):
        path.chmod(0o755)
    os.chown(lab.work, *FIRST)
    try:
        lab.start(TASK_UID=str(FIRST[0]), ALLOW_PROCESS="true")
        wait_for(lab.record, "the member")
        code = "id -u >who; id -g >>who; touch ~/own && echo $HOME >>who; exit 7"
        with Connection(lab.relay(), lab.enter(code, "root", uid=0, gid=0)) as connection:
            refused = connection.next(60.0)
            assert isinstance(refused, Refused)
            assert "ranks run as user 0 on the head, here as 54321" in refused.why
        asked = lab.enter(code, "task", uid=FIRST[0], gid=FIRST[1])
        with Connection(lab.relay(), asked) as connection:
            while not isinstance(event := connection.next(60.0), Exited):
                assert event is not None
            assert event.code == 7, event.message
    finally:
        lab.end()
    uid, gid, home = (lab.work / "who").read_text().split()
    assert (uid, gid) == (str(FIRST[0]), str(FIRST[1]))
    assert home.startswith(f"{lab.state}/member/entries/")
