"""Steps that want more than they may have, and what is said of their ends."""

import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from fakes.rig import Rig
from fakes.steps import LIMIT, Folder, alive, none_left, until
from simagent import shim
from simagent.domain.reasons import Reason
from simagent.ports.runtime import StepLimits
from simagent.runtimes.cgroups import Cgroups, NoCgroupsError, find
from simagent.runtimes.process import ProcessRuntime

MIB = 2**20
V1_MEMORY = Path("/sys/fs/cgroup/memory")
EATS = """
import mmap
kept = []
for _ in range(20):
    kept.append(mmap.mmap(-1, 16 * 2**20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS))
    kept[-1].write(b"x" * len(kept[-1]))
print("ate it all")
"""
# Forks until it may not or has 300, says how many, and waits to be ended.
FORKS = """
import os, time
count = 0
try:
    while count < 300:
        if os.fork() == 0:
            time.sleep(600)
        count += 1
except BlockingIOError:
    pass
print(count, flush=True)
"""


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Folder]:
    folder = Folder(tmp_path, ProcessRuntime())
    yield folder
    none_left(folder.marked())


@pytest.fixture
def confined(folder: Folder) -> Folder:
    """The folder, with a runtime that has real cgroups with controllers."""
    try:
        folder.runtime = ProcessRuntime(Cgroups.open(find()))
    except NoCgroupsError as error:
        pytest.skip(f"machine: limits by cgroups: {error}")
    return folder


@pytest.fixture
def bare(folder: Folder) -> Iterator[Cgroups]:
    """Real cgroups of version 2, also where that has no controllers."""
    root = next((p for p in map(Path, ("/sys/fs/cgroup/unified", "/sys/fs/cgroup"))
                 if (p / "cgroup.subtree_control").exists()), None)  # fmt: skip
    if root is None or not os.access(root, os.W_OK) or os.geteuid() != 0:
        pytest.skip("machine: ending steps by cgroup.kill: no writable cgroup v2 tree")
    base = root / f"simagent-test-{os.getpid()}"
    base.mkdir()
    yield Cgroups(base)
    left = [path.name for path in base.iterdir() if path.is_dir()]
    for name in left:
        (base / name).rmdir()
    base.rmdir()
    assert left == [], "cgroups were left behind"


@pytest.fixture
def v1_cgroup() -> Iterator[Path]:
    """A memory cgroup of version 1 of 64 MiB, as a container engine may have put one around."""
    cgroup = V1_MEMORY / f"simagent-test-{os.getpid()}"
    if not os.access(V1_MEMORY / "cgroup.procs", os.W_OK):
        pytest.skip("machine: the OOM killer: no writable cgroup v1")
    cgroup.mkdir()
    (cgroup / "memory.limit_in_bytes").write_text(str(64 * MIB))
    yield cgroup
    until(lambda: not (cgroup / "cgroup.procs").read_text())
    cgroup.rmdir()


def oom_kills(cgroup: Path) -> int:
    control = dict(
        line.split() for line in (cgroup / "memory.oom_control").read_text().splitlines()
    )
    return int(control["oom_kill"])


# --- Without cgroups ------------------------------------------------------------------------------


def test_memory_ends_at_the_limit(folder: Folder) -> None:
    result = folder.run(folder.python(EATS, limits=StepLimits(memory_bytes=128 * MIB)))
    assert (result.exit_code, result.signal, result.reason) == (1, None, None)
    assert b"Cannot allocate memory" in folder.err
    assert "resources.memory allows 128 MiB" in result.message
    assert result.max_rss_bytes < 192 * MIB


def test_memory_below_the_limit_is_had(folder: Folder) -> None:
    result = folder.run(folder.python(EATS, limits=StepLimits(memory_bytes=400 * MIB)))
    assert (result.exit_code, result.message, folder.out) == (0, "", b"ate it all\n")


def test_what_is_reserved_and_never_written_is_no_memory(folder: Folder) -> None:
    code = "import mmap; mmap.mmap(-1, 2**34, flags=mmap.MAP_PRIVATE, prot=0)"
    result = folder.run(folder.python(code, limits=StepLimits(memory_bytes=128 * MIB)))
    assert result.exit_code == 0, folder.err


def test_too_little_memory_for_any_program_ends_the_task(folder: Folder) -> None:
    result = folder.run(folder.plan("true", limits=StepLimits(memory_bytes=1)))
    assert result.exit_code != 0
    assert result.reason is not Reason.AGENT_ERROR


def test_a_file_ends_at_the_limit(folder: Folder) -> None:
    writes = "head -c 2097152 /dev/zero > big"
    result = folder.run(folder.plan("sh", "-c", writes, limits=StepLimits(file_bytes=MIB)))
    assert (folder.root / "big").stat().st_size == MIB
    # Some shells become their last command, others run it and tell of it by 128 + the signal.
    assert signal.SIGXFSZ in (result.signal, (result.exit_code or 0) - 128)


def test_a_step_sees_the_cores_it_asked_for(folder: Folder) -> None:
    code = "import os; print(len(os.sched_getaffinity(0)))"
    folder.run(folder.python(code, limits=StepLimits(cpus=0.5)))
    folder.run(folder.python(code, number=1))
    assert folder.out.split() == [b"1", str(len(os.sched_getaffinity(0))).encode()]


AS_NOBODY = """
import os, sys
from pathlib import Path
sys.path[:0] = sys.argv[2:]
from fakes.steps import Folder
from simagent.ports.runtime import StepLimits
from simagent.runtimes.process import ProcessRuntime
folder = Folder(Path(sys.argv[1]), ProcessRuntime())
result = folder.run(folder.plan("/usr/bin/python3", "-c", sys.stdin.read(),
                                limits=StepLimits(processes=40)))
print(result.exit_code, folder.out.decode())
"""


def test_a_fork_bomb_of_a_user_stops_at_the_limit() -> None:
    python = sys.executable if os.geteuid() else "/usr/bin/python3"
    if os.geteuid() == 0:
        alone = 61_000 + os.getpid() % 4000  # other tests run things as nobody meanwhile
        who = {"user": alone, "group": alone, "extra_groups": []}
    else:
        who = {}
    place = Path(tempfile.mkdtemp())
    place.chmod(0o777)
    sources = [str(Path(shim.__file__).parents[1]), str(Path(__file__).parents[1])]
    try:
        done = subprocess.run(
            [python, "-c", AS_NOBODY, str(place), *sources],
            input=FORKS,
            capture_output=True,
            text=True,
            timeout=LIMIT,
            check=False,
            cwd="/",
            **who,  # type: ignore[call-overload]
        )
    finally:
        shutil.rmtree(place)
    if os.geteuid() == 0 and re.search("PermissionError|ModuleNotFoundError", done.stderr):
        pytest.skip(f"machine: forks of another user: it cannot run the code: {done.stderr[-200:]}")
    code, count = done.stdout.split()
    assert code == "0", done.stderr
    assert 20 <= int(count) <= 40  # less those of ours


def test_a_plain_sigkill_is_no_lack_of_memory(folder: Folder) -> None:
    result = folder.run(folder.plan("sh", "-c", "kill -9 $$"))
    assert (result.signal, result.reason) == (signal.SIGKILL, None)
    assert "nor for lack of memory" in result.message


@pytest.mark.parametrize("shell", [False, True])
def test_what_the_oom_killer_ended_is_told_apart(
    folder: Folder, v1_cgroup: Path, shell: bool
) -> None:
    eats = f"echo $$ > {v1_cgroup}/cgroup.procs; {'' if shell else 'exec '}{sys.executable} eat.py"
    (folder.root / "eat.py").write_text(EATS)
    result = folder.run(folder.plan("sh", "-c", f"{eats}; exit $?" if shell else eats))
    assert oom_kills(v1_cgroup) > 0
    assert (result.reason, folder.out) == (Reason.OOM, b"")
    assert result.message.startswith("likely: ")


# --- With cgroups ---------------------------------------------------------------------------------


def test_a_step_is_in_its_cgroup_and_the_cgroup_goes_with_it(folder: Folder, bare: Cgroups) -> None:
    folder.runtime = ProcessRuntime(bare)
    result = folder.run(folder.plan("cat", "/proc/self/cgroup"))
    assert result.exit_code == 0, folder.err
    assert f"/{bare.base.name}/simagent-{folder.root.name}\n".encode() in folder.out
    folder.run(folder.plan("true", number=1))


def test_a_step_whose_shim_was_killed_is_ended_with_its_cgroup(
    folder: Folder, bare: Cgroups
) -> None:
    folder.runtime = ProcessRuntime(bare)
    # Out of its session and with no environment, it is known by its cgroup alone.
    code = "import os, time; os.setsid(); print(os.getpid(), flush=True); time.sleep(600)"
    hides = f"env -i {sys.executable} -I -S -c '{code}' & wait"
    step = folder.runtime.start(folder.plan("sh", "-c", hides))
    until((folder.root / "out").read_text)
    (hidden,) = folder.reported()
    supervisor = shim.look(hidden)
    while supervisor is not None and supervisor.parent != os.getpid():
        supervisor = shim.look(supervisor.parent)
    assert supervisor is not None
    shim.send(supervisor, signal.SIGKILL)
    result = step.wait(LIMIT)
    assert result is not None
    assert result.reason is Reason.SHIM_LOST
    until(lambda: not alive(hidden))


def test_a_stop_leaves_no_cgroup(folder: Folder, bare: Cgroups) -> None:
    folder.runtime = ProcessRuntime(bare)
    stubborn = "trap '' TERM; echo $$; while :; do sleep 600; done"
    step = folder.runtime.start(folder.plan("sh", "-c", stubborn))
    until((folder.root / "out").read_text)
    step.stop(0.1)
    result = step.wait(LIMIT)
    assert result is not None
    assert (result.signal, result.stopped) == (signal.SIGKILL, True)


def test_memory_of_all_processes_together_ends_at_the_limit(confined: Folder) -> None:
    together = f"import os; os.fork(); os.fork()\n{EATS.replace('range(20)', 'range(4)')}"
    plan = confined.python(together, limits=StepLimits(memory_bytes=512 * MIB))
    result = confined.run(plan)
    assert (result.exit_code, result.reason) == (0, None)
    plan = confined.python(together, number=1, limits=StepLimits(memory_bytes=128 * MIB))
    result = confined.run(plan)
    assert (result.reason, result.signal) == (Reason.OOM, signal.SIGKILL)
    assert "128 MiB allowed" in result.message


def test_a_fork_bomb_stops_at_the_limit(confined: Folder) -> None:
    result = confined.run(confined.python(FORKS, limits=StepLimits(processes=40)))
    assert (result.exit_code, confined.out) == (0, b"39\n")


def test_half_a_core_is_half_a_core(confined: Folder) -> None:
    spins = "import time; end = time.monotonic() + 2\nwhile time.monotonic() < end: pass"
    result = confined.run(confined.python(spins, limits=StepLimits(cpus=0.5)))
    assert result.user_seconds + result.system_seconds < 0.8 * result.seconds


# --- The whole agent ------------------------------------------------------------------------------


def test_a_task_is_limited_and_says_by_what(tmp_path: Path) -> None:
    rig = Rig(tmp_path)
    with rig.agent():
        task = rig.submit([sys.executable, "-c", EATS], resources={"memory": "128MiB", "cpus": 1})
        state = rig.finish(task)
    (attempt,) = state.attempts
    by = attempt.machine["limits"]
    assert (by, state.reason) in {("cgroup", "oom"), ("rlimits", "exit_code")}
    assert "128 MiB" in state.message


def test_a_task_that_asks_for_too_much_waits_for_another_machine(tmp_path: Path) -> None:
    rig = Rig(tmp_path)
    with rig.agent(until_empty=False):
        large = rig.submit("true", resources={"disk": "1000000TB"})
        small = rig.submit("true", resources={"disk": 1})
        assert rig.finish(small).status == "succeeded"
        state = rig.client.state(large)
    assert (state.status, state.epoch) == ("queued", 0)
