"""The shim by itself: what it does when everything around it goes wrong."""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fakes.steps import LIMIT, Folder, alive, none_left, until
from simagent import shim
from simagent.ports.runtime import StepPlan
from simagent.runtimes.process import ProcessRuntime


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Folder]:
    folder = Folder(tmp_path, ProcessRuntime())
    yield folder
    none_left(folder.marked())


def record(folder: Folder, kind: str) -> dict[str, Any]:
    content = json.loads((folder.root / "steps" / f"step-0.{kind}").read_bytes())
    assert isinstance(content, dict)
    return content


def write_plan(plan: StepPlan) -> None:
    """Write what the runtime writes, for a shim that the test starts by itself."""
    plan.folder.mkdir()
    (plan.folder / shim.ATTENTION).touch()
    fields: dict[str, object] = {
        "cwd": str(plan.cwd),
        "stdin": os.devnull,
        "stdout": str(plan.stdout),
    }
    fields |= {"stderr": str(plan.stderr), "argv": plan.argv, "env": dict(plan.env)}
    fields |= {"grace": plan.grace, "orphan_limit": plan.orphan_limit}
    fields |= {"rlimits": {}, "cpus": [], "cgroup": None, "user": None, "contained": False}
    fields["no_new_privs"] = False
    (plan.folder / "step-0.json").write_text(json.dumps(fields))


def shim_command(plan: StepPlan) -> list[str]:
    return [sys.executable, "-I", "-S", shim.__file__, str(plan.folder), "0"]


def test_the_records_of_a_step(folder: Folder) -> None:
    (folder.root / "out").write_bytes(b"before\n")
    plan = folder.plan("sh", "-c", "echo $$; exit 4")
    folder.run(plan)
    started, ended = record(folder, "started"), record(folder, "exit")
    assert started["format"] == ended["format"] == 1
    assert started["stdout_offset"] == len(b"before\n")
    assert started["stderr_offset"] == 0
    assert started["step"]["pid"] == int(folder.out.split()[1])
    assert started["boot_id"] == shim.boot_id()
    assert (ended["exit_code"], ended["stopped"], ended["leftovers"]) == (4, None, 0)
    assert started["started"] <= ended["ended"]


def test_the_start_is_on_record_before_the_program_runs(folder: Folder) -> None:
    folder.run(folder.plan("cat", "steps/step-0.started"))
    assert json.loads(folder.out) == record(folder, "started")


def test_leftovers_are_counted(folder: Folder) -> None:
    folder.run(folder.plan("sh", "-c", "sleep 600 & setsid sleep 600 & exit 0"))
    assert record(folder, "exit")["leftovers"] == 2


def test_a_shim_runs_with_nothing_open(folder: Folder) -> None:
    plan = folder.plan("sh", "-c", "echo fine")
    write_plan(plan)
    closed = ["sh", "-c", 'exec "$@" <&- >&- 2>&-', "sh", *shim_command(plan)]
    subprocess.run(closed, timeout=LIMIT, check=True)
    assert folder.out == b"fine\n"
    assert record(folder, "exit")["exit_code"] == 0


def test_a_shim_ignores_what_is_not_meant_for_it(folder: Folder) -> None:
    step = folder.runtime.start(folder.plan("sh", "-c", "while [ ! -e go ]; do sleep 0.02; done"))
    pid = record(folder, "started")["shim"]["pid"]
    for name in ("HUP", "INT", "QUIT", "PIPE", "USR1", "USR2", "ALRM", "TSTP"):
        os.kill(pid, signal.Signals[f"SIG{name}"])
    (folder.root / "go").touch()
    result = step.wait(LIMIT)
    assert result is not None
    assert (result.exit_code, result.stopped) == (0, False)


def test_sigterm_alone_is_a_stop_with_the_plans_grace(folder: Folder) -> None:
    plan = folder.plan("sh", "-c", "trap '' TERM; echo 1; while :; do sleep 0.02; done", grace=0.1)
    step = folder.runtime.start(plan)
    until(folder.reported)
    os.kill(record(folder, "started")["shim"]["pid"], signal.SIGTERM)
    result = step.wait(LIMIT)
    assert result is not None
    assert (result.signal, result.stopped) == (signal.SIGKILL, True)


def test_a_stop_ordered_before_the_start_is_obeyed(folder: Folder) -> None:
    plan = folder.plan("sleep", "600")
    write_plan(plan)
    (plan.folder / "step-0.stop").write_text('{"grace": 5}')
    assert folder.run(plan).stopped


@pytest.mark.parametrize("order", ["", "soon", "{}", '{"grace": null}'])
def test_an_unreadable_order_is_a_stop_with_the_plans_grace(folder: Folder, order: str) -> None:
    step = folder.runtime.start(folder.plan("sleep", "600"))
    (folder.root / "steps" / "step-0.stop").write_text(order)
    os.kill(record(folder, "started")["shim"]["pid"], signal.SIGTERM)
    result = step.wait(LIMIT)
    assert result is not None
    assert (result.signal, result.stopped) == (signal.SIGTERM, True)


def test_a_stop_is_heard_while_the_program_cannot_be_executed(folder: Folder) -> None:
    plan = folder.plan("true", grace=0.1)
    write_plan(plan)
    path = plan.folder / "step-0.json"
    stuck = folder.root / "cgroup"
    stuck.mkdir()
    os.mkfifo(stuck / "cgroup.procs")  # opening it hangs, as on a disk that does not answer
    path.write_text(json.dumps(json.loads(path.read_bytes()) | {"cgroup": str(stuck)}))
    with subprocess.Popen(shim_command(plan), stdout=subprocess.PIPE) as process:
        until((plan.folder / "step-0.started").exists, "the start")
        process.terminate()
        try:
            process.wait(LIMIT)
        finally:
            process.kill()
    assert (record(folder, "exit")["stopped"], record(folder, "exit")["signal"]) == ("stop", 9)


def test_a_second_shim_refuses(folder: Folder) -> None:
    plan = folder.plan("sh", "-c", "echo once; while [ ! -e go ]; do sleep 0.02; done")
    step = folder.runtime.start(plan)
    subprocess.run(shim_command(plan), timeout=LIMIT, check=True)
    (folder.root / "go").touch()
    assert step.wait(LIMIT) is not None
    subprocess.run(shim_command(plan), timeout=LIMIT, check=True)
    assert folder.out == b"once\n"


def test_the_step_does_not_hold_the_lock(folder: Folder) -> None:
    step = folder.runtime.start(folder.plan("sh", "-c", "echo $$; exec sleep 600"))
    until(folder.reported)
    held = [os.readlink(path) for path in Path(f"/proc/{folder.reported()[0]}/fd").iterdir()]
    assert not any("step-0.lock" in path for path in held)
    step.stop(0)
    assert step.wait(LIMIT) is not None


def test_a_step_whose_folder_is_deleted_is_ended(folder: Folder) -> None:
    step = folder.runtime.start(
        folder.plan("sh", "-c", "echo $$; exec sleep 600", orphan_limit=2.0)
    )
    until(folder.reported)
    shutil.rmtree(folder.root / "steps")
    result = step.wait(LIMIT)
    assert result is not None
    assert result.exit_code is None
    assert not alive(folder.reported()[0])


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 KiB, mounted on what will be the steps' folder."""
    mount = tmp_path / "steps"
    mount.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(mount)]
    if os.geteuid() != 0 or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("a full disk needs the right to mount a small one: run as root")
    yield mount
    subprocess.run(["umount", "-l", str(mount)], check=True)


def fill(folder: Path) -> Path:
    """Fill the file system to its last byte."""
    ballast = folder / "ballast"
    fd = os.open(ballast, os.O_WRONLY | os.O_CREAT)
    try:
        for size in (4096, 1):
            while True:
                try:
                    os.write(fd, b"x" * size)
                except OSError:
                    break
    finally:
        os.close(fd)
    return ballast


def test_the_end_of_a_step_is_recorded_on_a_full_disk(small_disk: Path, folder: Folder) -> None:
    plan = folder.plan("sh", "-c", "while [ ! -e go ]; do sleep 0.02; done; exit 6")
    step = folder.runtime.start(plan)
    fill(small_disk)
    (folder.root / "go").touch()
    result = step.wait(LIMIT)
    assert result is not None
    assert result.exit_code == 6


def test_a_stop_works_on_a_full_disk(small_disk: Path, folder: Folder) -> None:
    step = folder.runtime.start(folder.plan("sleep", "600"))
    fill(small_disk)
    step.stop(LIMIT)
    result = step.wait(LIMIT)
    assert result is not None
    assert (result.signal, result.stopped) == (signal.SIGTERM, True)


def test_a_step_that_a_full_disk_kept_from_starting_says_so(
    small_disk: Path, folder: Folder
) -> None:
    from simagent.domain.reasons import Reason
    from simagent.ports.runtime import RuntimeFailedError

    ballast = fill(small_disk)
    with pytest.raises(RuntimeFailedError) as caught:
        folder.runtime.start(folder.plan("true"))
    assert caught.value.reason is Reason.DISK_FULL
    ballast.unlink()
    assert folder.run(folder.plan("true")).exit_code == 0
