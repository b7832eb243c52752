"""Real steps under real shims, as an agent runs them."""

import fcntl
import os
import signal
import stat
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from fakes.steps import LIMIT, PATH, Folder, alive, none_left, until
from simagent.domain.reasons import Reason
from simagent.ports.clock import Wake
from simagent.ports.runtime import RuntimeFailedError
from simagent.runtimes.process import ProcessRuntime

IGNORE_TERM = "import os, signal, sys, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); "
SAY_PID = "print(os.getpid(), flush=True); "
SLEEP = "time.sleep(600)"
DAEMON = """
import os, sys, time
read, write = os.pipe()
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        print(os.getpid(), flush=True)
        os.write(write, b"!")
        time.sleep(600)
    os._exit(0)
os.wait()
os.read(read, 1)
"""


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Folder]:
    folder = Folder(tmp_path, ProcessRuntime())
    yield folder
    none_left(folder.marked())


def test_a_step_that_works(folder: Folder) -> None:
    result = folder.run(folder.plan("sh", "-c", "echo out; echo err >&2"))
    assert (result.exit_code, result.signal, result.reason) == (0, None, None)
    assert not result.stopped
    assert (folder.out, folder.err) == (b"out\n", b"err\n")
    assert result.started is not None
    assert result.ended is not None
    assert 0 < result.seconds < LIMIT
    assert stat.S_IMODE((folder.root / "out").stat().st_mode) == 0o644


def test_a_shim_that_ends_before_its_step_is_told_with_its_last_words(
    folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder.root)
    with pytest.raises(RuntimeFailedError, match="before the step began: FileNotFoundError") as it:
        folder.run(folder.plan("true", folder=Path("steps")))  # the shim looks for it beneath /
    assert it.value.reason is Reason.AGENT_ERROR


def test_exit_code(folder: Folder) -> None:
    result = folder.run(folder.plan("sh", "-c", "exit 7"))
    assert (result.exit_code, result.signal) == (7, None)


def test_end_by_a_signal(folder: Folder) -> None:
    result = folder.run(folder.plan("sh", "-c", "kill -SEGV $$"))
    assert (result.exit_code, result.signal, result.stopped) == (None, signal.SIGSEGV, False)


def test_cpu_and_memory_of_the_whole_tree_are_counted(folder: Folder) -> None:
    burn = "x = bytearray(60_000_000); sum(range(3_000_000))"
    code = f"import subprocess, sys; subprocess.run([sys.executable, '-I', '-S', '-c', {burn!r}])"
    result = folder.run(folder.python(code))
    assert result.user_seconds > 0.01
    assert result.max_rss_bytes > 60_000_000


def test_program_not_found(folder: Folder) -> None:
    result = folder.run(folder.plan("no-such-program"))
    assert (result.reason, result.exit_code) == (Reason.COMMAND_NOT_FOUND, None)
    assert f"no-such-program: no such program in PATH ({PATH})" in result.message


def test_the_path_of_the_step_counts_not_the_agents(folder: Folder) -> None:
    tool = folder.root / "bin" / "tool"
    tool.parent.mkdir()
    tool.write_text("#!/bin/sh\necho mine\n")
    tool.chmod(0o755)
    assert folder.run(folder.plan("tool", env={"PATH": f"/nowhere:{tool.parent}"})).exit_code == 0
    assert folder.out == b"mine\n"
    without = folder.run(folder.plan("sh", number=1, env={"PATH": "/nowhere"}))
    assert without.reason is Reason.COMMAND_NOT_FOUND


@pytest.mark.parametrize(
    ("content", "mode", "message"),
    [
        ("#!/bin/sh\n", 0o644, "permission denied"),
        ("not a program", 0o755, "neither a program for this machine nor a script"),
        ("#!/no/such/interpreter\n", 0o755, "interpreter or loader that it names does not exist"),
    ],
)
def test_not_executable(folder: Folder, content: str, mode: int, message: str) -> None:
    program = folder.root / "program"
    program.write_text(content)
    program.chmod(mode)
    result = folder.run(folder.plan("./program"))
    assert (result.reason, result.exit_code) == (Reason.NOT_EXECUTABLE, None)
    assert message in result.message


def test_missing_working_folder_is_told_from_a_missing_program(folder: Folder) -> None:
    result = folder.run(folder.plan("true", cwd=folder.root / "gone"))
    assert result.reason is Reason.NOT_EXECUTABLE
    assert result.message == f"cannot start in {folder.root / 'gone'}: No such file or directory"


def test_a_log_that_cannot_be_opened_is_a_failure_to_start(folder: Folder) -> None:
    with pytest.raises(RuntimeFailedError, match="gone") as caught:
        folder.runtime.start(folder.plan("true", stdout=folder.root / "gone" / "out"))
    assert caught.value.reason is Reason.AGENT_ERROR
    assert folder.run(folder.plan("true")).exit_code == 0, "it had never run, so it may"


def test_prompts_are_answered_on_stdin(folder: Folder) -> None:
    answers = b"yes\n\xff\x00two\n"
    assert folder.run(folder.plan("cat", stdin=answers)).exit_code == 0
    assert folder.out == answers


def test_without_prompts_stdin_is_empty(folder: Folder) -> None:
    assert folder.run(folder.plan("cat")).exit_code == 0
    assert folder.out == b""


def test_the_environment_is_exactly_the_plans(folder: Folder) -> None:
    assert folder.run(folder.plan("/usr/bin/env", "-0", env={"A": "ünd \udcff"})).exit_code == 0
    assert folder.out == "A=ünd ".encode() + b"\xff\0"


def test_no_file_is_inherited(folder: Folder) -> None:
    read, write = os.pipe()
    os.set_inheritable(write, True)
    try:
        assert folder.run(folder.plan("ls", "/proc/self/fd")).exit_code == 0
    finally:
        os.close(read)
        os.close(write)
    assert folder.out.split() == [b"0", b"1", b"2", b"3"], "3 is the folder that ls reads"


def test_no_signal_is_blocked_or_ignored(folder: Folder) -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    try:
        assert folder.run(folder.plan("grep", "Sig[BI]", "/proc/self/status")).exit_code == 0
    finally:
        signal.signal(signal.SIGHUP, before)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
    blocked, ignored = (int(line.split()[1], 16) for line in folder.out.splitlines())
    own = 3 << 31  # signals 32 and 33 are the C library's: no program can set them
    assert (blocked, ignored & ~own) == (0, 0)


def test_the_step_has_a_session_of_its_own(folder: Folder) -> None:
    assert folder.run(folder.python("import os; print(os.getsid(0) - os.getpid())")).exit_code == 0
    assert folder.out == b"0\n"


def test_the_log_is_what_the_program_wrote_byte_for_byte(folder: Folder) -> None:
    line = b"\x00\xff\xfe" + b"x" * 10_000_000 + b"\r\x80"
    code = r"import os; os.write(1, b'\0\xff\xfe'); left = b'x' * 10_000_000 + b'\r\x80'"
    code += "\nwhile left: left = left[os.write(1, left):]"
    assert folder.run(folder.python(code)).exit_code == 0
    assert folder.out == line


def test_steps_append_to_the_same_logs(folder: Folder) -> None:
    for number in range(3):
        folder.run(folder.plan("echo", str(number), number=number))
    assert folder.out == b"0\n1\n2\n"


def test_stop_lets_the_step_end_by_itself(folder: Folder) -> None:
    step = folder.runtime.start(
        folder.plan(
            "sh", "-c", "trap 'echo bye; exit 3' TERM; echo $$; while :; do sleep 0.05; done"
        )
    )
    until(folder.reported)
    step.stop(LIMIT)
    result = step.wait(LIMIT)
    assert result is not None
    assert (result.exit_code, result.stopped) == (3, True)
    assert folder.out.endswith(b"bye\n")


def test_stop_kills_what_ignores_it(folder: Folder) -> None:
    step = folder.runtime.start(folder.python(IGNORE_TERM + SAY_PID + SLEEP))
    until(folder.reported)
    step.stop(0.2)
    result = step.wait(LIMIT)
    assert result is not None
    assert (result.signal, result.stopped) == (signal.SIGKILL, True)


def test_a_later_stop_can_only_shorten_the_grace(folder: Folder) -> None:
    step = folder.runtime.start(folder.python(IGNORE_TERM + SAY_PID + SLEEP))
    until(folder.reported)
    step.stop(600)
    assert step.wait(0.2) is None
    step.stop(0)
    step.stop(600)
    assert step.wait(LIMIT) is not None


def test_stop_ends_stopped_processes_with_sigterm(folder: Folder) -> None:
    code = "import os, signal; print(os.getpid(), flush=True); os.kill(os.getpid(), signal.SIGSTOP)"
    step = folder.runtime.start(folder.python(code))
    until(
        lambda: (
            folder.reported()
            and Path(f"/proc/{folder.reported()[0]}/stat").read_text().split()[2] == "T"
        )
    )
    step.stop(600)
    result = step.wait(LIMIT)
    assert result is not None
    assert result.signal == signal.SIGTERM


def test_stop_ends_daemons_too(folder: Folder) -> None:
    step = folder.runtime.start(folder.python(DAEMON + "time.sleep(600)"))
    until(folder.reported)
    daemon = folder.reported()[0]
    assert daemon in step.pids()
    step.stop(LIMIT)
    assert step.wait(LIMIT) is not None
    assert not alive(daemon)


def test_nothing_outlives_its_step(folder: Folder) -> None:
    result = folder.run(folder.python(DAEMON))
    assert (result.exit_code, result.stopped) == (0, False)
    assert not alive(folder.reported()[0])


def test_children_that_fork_while_they_die_are_outrun(folder: Folder) -> None:
    code = """
import os, signal, time
def again(*_):
    for _ in range(3):
        if os.fork() == 0:
            os.setsid()
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            time.sleep(600)
signal.signal(signal.SIGTERM, again)
for _ in range(4):
    if os.fork() == 0:
        break
print(os.getpid(), flush=True)
while True:
    time.sleep(600)
"""
    step = folder.runtime.start(folder.python(code))
    until(lambda: len(folder.reported()) == 5)
    step.stop(0.3)
    result = step.wait(LIMIT)
    assert result is not None
    assert folder.marked() == []


def test_signal_reaches_all_that_have_a_use_for_it(folder: Folder) -> None:
    loop = "trap 'echo got >> got; wait; exit' USR1; echo 1 >&2; while :; do sleep 0.05; done"
    step = folder.runtime.start(folder.plan("bash", "-c", f"({loop}) & ({loop}) & wait"))
    until(lambda: len(folder.reported("err")) == 2)
    step.signal(signal.SIGUSR1)
    assert step.wait(LIMIT) is not None
    assert (folder.root / "got").read_text() == "got\n" * 2


def test_wait_returns_for_a_wake_and_after_its_time(folder: Folder) -> None:
    step = folder.runtime.start(folder.plan("sleep", "600"))
    wake = Wake()
    assert step.wait(0) is None
    threading.Timer(0.05, wake.set).start()
    assert step.wait(None, wake) is None
    assert wake.is_set()
    step.stop(0)
    wake.clear()
    assert step.wait(LIMIT, wake) is not None
    assert step.pids() == []
    step.stop(0)
    step.signal(signal.SIGTERM)


@pytest.mark.parametrize("seconds", [2_147_484.0, float("inf")])
def test_a_wait_may_be_longer_than_the_system_knows(folder: Folder, seconds: float) -> None:
    step = folder.runtime.start(folder.python("input()"))
    wake = Wake()
    wake.set()
    result = step.wait(seconds, wake)
    step.stop(0)
    assert result is not None or step.wait(LIMIT) is not None


def test_a_start_that_took_too_long_does_not_happen_any_more(folder: Folder) -> None:
    os.mkfifo(folder.root / "out")  # opening it hangs, as on a disk that does not answer
    runtime = ProcessRuntime(start_limit=1.5)  # a Python starts in that, also on a busy machine
    plan = folder.plan("touch", "ran")
    with pytest.raises(RuntimeFailedError, match="does not answer"):
        runtime.start(plan)
    with (folder.root / "steps" / "step-0.lock").open("rb") as lock:
        fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)  # raises while a shim lives
    assert runtime.attach(plan) is None


def test_a_step_is_never_run_twice(folder: Folder) -> None:
    plan = folder.plan("echo", "once")
    folder.run(plan)
    assert folder.run(plan).exit_code == 0
    assert folder.out == b"once\n"


def test_of_many_starters_one_runs_the_step(folder: Folder) -> None:
    plan = folder.plan("sh", "-c", "echo once; sleep 0.3; exit 5")
    codes: list[int | None] = []
    threads = [
        threading.Thread(target=lambda: codes.append(folder.run(plan).exit_code)) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert codes == [5, 5, 5, 5]
    assert folder.out == b"once\n"


def test_a_step_that_was_never_started_is_not_found(folder: Folder) -> None:
    assert folder.runtime.attach(folder.plan("true")) is None


AGENT = """
import sys
from pathlib import Path
from simagent.ports.runtime import StepPlan
from simagent.runtimes.process import ProcessRuntime
root = Path(sys.argv[1])
step = ProcessRuntime().start(StepPlan(
    folder=root / "steps", number=0, argv=("sh", "-c", sys.argv[2]), cwd=root,
    env={"PATH": "/usr/bin:/bin", "SIMAGENT_TASK_ID": str(root)},
    stdout=root / "out", stderr=root / "err"))
print(step.pids(), flush=True)
step.wait(None)
"""


def start_agent_then_kill_it(folder: Folder, script: str) -> None:
    """Let another process start the step, kill it, and collect it."""
    import subprocess

    agent = subprocess.Popen(
        [sys.executable, "-c", AGENT, str(folder.root), script], stdout=subprocess.PIPE
    )
    assert agent.stdout is not None
    agent.stdout.readline()
    agent.kill()
    agent.wait()
    agent.stdout.close()


def test_a_new_agent_finds_the_step_of_a_killed_one(folder: Folder) -> None:
    start_agent_then_kill_it(folder, "echo $$; while [ ! -e go ]; do sleep 0.02; done; exit 9")
    step = folder.runtime.attach(folder.plan("unused"))
    assert step is not None
    until(folder.reported)
    assert folder.reported()[0] in step.pids()
    (folder.root / "go").touch()
    result = step.wait(LIMIT)
    assert result is not None
    assert (result.exit_code, result.reason) == (9, None)


def test_a_new_agent_reads_the_end_it_missed(folder: Folder) -> None:
    start_agent_then_kill_it(folder, "echo $$; sleep 0.2; exit 9")
    until((folder.root / "steps" / "step-0.exit").exists)
    result = folder.run(folder.plan("unused"))
    assert result.exit_code == 9


def test_records_of_a_newer_version_are_not_guessed_at(folder: Folder) -> None:
    start_agent_then_kill_it(folder, "echo $$; while [ ! -e go ]; do sleep 0.02; done; exit 9")
    path = folder.root / "steps" / "step-0.started"
    record = path.read_text()
    path.write_text(record.replace('"format": 1', '"format": 2').replace('"shim"', '"keeper"'))
    with pytest.raises(RuntimeFailedError, match="by a newer version") as failed:
        folder.runtime.attach(folder.plan("unused"))
    # With this reason the attempt waits: it is neither given back nor ended.
    assert failed.value.reason is Reason.RUNTIME_FAILED
    path.write_text(record)
    step = folder.runtime.attach(folder.plan("unused"))
    assert step is not None
    (folder.root / "go").touch()
    result = step.wait(LIMIT)
    assert result is not None
    assert result.exit_code == 9


def shim_pid(folder: Folder) -> int:
    import json

    record = json.loads((folder.root / "steps" / "step-0.started").read_text())
    pid = record["shim"]["pid"]
    assert isinstance(pid, int)
    return pid


@pytest.mark.parametrize("again", [False, True], ids=["watching", "attached later"])
def test_a_killed_shim_is_reported_and_its_step_ended(folder: Folder, again: bool) -> None:
    code = DAEMON + IGNORE_TERM + SAY_PID + SLEEP
    plan = folder.python(code)
    step = folder.runtime.start(plan)
    until(lambda: len(folder.reported()) == 2)
    os.kill(shim_pid(folder), signal.SIGKILL)
    until(lambda: not alive(folder.reported()[1]), "the end of the main process, agent or not")
    found = ProcessRuntime().attach(plan) if again else step
    assert found is not None
    result = found.wait(LIMIT)
    assert result is not None
    assert (result.reason, result.exit_code) == (Reason.SHIM_LOST, None)
    assert "unknown" in result.message
    until(lambda: not any(alive(pid) for pid in folder.reported()), "the end of the step")
    assert folder.run(plan).reason is Reason.SHIM_LOST, "it is not run again"


def test_a_process_that_got_the_shims_number_is_left_alone(folder: Folder) -> None:
    import json
    import subprocess

    plan = folder.plan("true", env={})
    folder.run(plan)
    steps = folder.root / "steps"
    with subprocess.Popen(["sleep", "600"], start_new_session=True) as bystander:
        try:
            record = json.loads((steps / "step-0.started").read_text())
            record["shim"]["pid"] = record["step"]["pid"] = bystander.pid
            (steps / "step-0.started").write_text(json.dumps(record))
            (steps / "step-0.exit").unlink()
            step = folder.runtime.attach(plan)
            assert step is not None
            step.stop(0)
            step.signal(signal.SIGKILL)
            assert step.pids() == []
            result = step.wait(LIMIT)
            assert result is not None
            assert result.reason is Reason.SHIM_LOST
            assert bystander.poll() is None
        finally:
            bystander.kill()


def test_after_a_restart_of_the_machine_the_step_is_lost(folder: Folder) -> None:
    plan = folder.plan("true")
    folder.run(plan)
    steps = folder.root / "steps"
    text = (steps / "step-0.started").read_text()
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    (steps / "step-0.started").write_text(text.replace(boot, "another-boot"))
    (steps / "step-0.exit").unlink()
    result = folder.run(plan)
    assert result.reason is Reason.SHIM_LOST
    assert "restarted" in result.message


def test_without_an_agent_the_step_is_ended(folder: Folder) -> None:
    step = folder.runtime.start(folder.plan("sleep", "600", orphan_limit=2.0))
    for _ in range(30):
        folder.runtime.keep_alive(folder.root / "steps")
        assert step.wait(0.1) is None, "an agent looked after it"
    result = step.wait(LIMIT)
    assert result is not None
    assert (result.reason, result.stopped) == (Reason.ORPHANED, True)


def test_mpi_ranks_run_and_see_the_environment(folder: Folder) -> None:
    from simagent.launchers.hydra import HydraLauncher
    from simagent.launchers.installed import detect
    from simagent.ports.launcher import Ranks

    pytest.importorskip(
        "mpi4py", reason="mpi4py is not installed: pip install 'simagent[examples]'"
    )
    mpirun = str(Path(sys.executable).with_name("mpirun"))
    if detect(mpirun) is None:
        pytest.skip("MPICH's mpirun is not installed: pip install 'simagent[examples]'")
    code = "import os; from mpi4py.MPI import COMM_WORLD as w; mine = os.environ['MINE']; "
    code += "print(w.rank, w.size, mine)"
    ranks = Ranks(np=2, env=("MINE",), bind="none", args=("-print-all-exitcodes",))
    argv = HydraLauncher(mpirun).command(ranks, (sys.executable, "-c", code))
    plan = folder.plan(*argv, env={"PATH": PATH, "MINE": "yes"})
    assert folder.run(plan).exit_code == 0, folder.err
    lines = folder.out.decode().splitlines()
    assert {line for line in lines if line.endswith("yes")} == {"0 2 yes", "1 2 yes"}
