"""Root's agent sees what processes of tasks' users have open, without the right to trace any."""

import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from simagent.ports.owners import as_owner

pytestmark = pytest.mark.skipif(
    os.geteuid() != 0, reason="machine: being another user is root's to try"
)

NOBODY = 65534
BOUNDED = ("setpriv", "--bounding-set=-all,+setuid,+setgid")
LOOK = """
import os, sys
from pathlib import Path
from simagent.ports.owners import as_owner
process = Path("/proc", sys.argv[1])
try:
    (process / "environ").read_bytes()
except PermissionError:
    print("closed")
with as_owner(process):
    print((process / "environ").read_bytes().decode(), end="")
    print("io" if "read_bytes" in (process / "io").read_text() else "")
print(os.getresuid(), os.getresgid())
"""


def test_what_it_has_open_is_seen() -> None:
    if shutil.which("setpriv") is None:
        pytest.skip("setpriv is missing (apt install util-linux)")
    task = subprocess.Popen(["/bin/sleep", "60"], env={"MARK": "x"}, user=NOBODY, group=NOBODY)
    try:
        done = subprocess.run(
            [*BOUNDED, sys.executable, "-c", LOOK, str(task.pid)],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
    finally:
        task.kill()
        task.wait()
    assert done.stderr == ""
    assert done.stdout.split("\n")[:3] == ["closed", "MARK=x\0io", "(0, 0, 0) (0, 0, 0)"]


def test_in_one_thread_alone() -> None:
    task = subprocess.Popen(["/bin/sleep", "60"], user=NOBODY, group=NOBODY)
    process = Path(f"/proc/{task.pid}")
    try:
        with ThreadPoolExecutor(1) as other:
            assert other.submit(os.geteuid).result() == 0  # a thread begins as whoever starts it
            with as_owner(process):
                assert (os.geteuid(), os.getegid()) == (NOBODY, NOBODY)
                assert other.submit(os.geteuid).result() == 0
    finally:
        task.kill()
        task.wait()
    assert (os.geteuid(), os.getegid()) == (0, 0)


def test_it_is_itself_again_whatever_happens() -> None:
    task = subprocess.Popen(["/bin/sleep", "60"], user=NOBODY, group=NOBODY)
    try:
        with pytest.raises(FileNotFoundError), as_owner(Path(f"/proc/{task.pid}")):
            Path(f"/proc/{task.pid}/nothing").stat()
    finally:
        task.kill()
        task.wait()
    assert (os.geteuid(), os.getegid()) == (0, 0)


def test_its_own_are_looked_at_as_ever() -> None:
    with as_owner(Path("/proc/self")):
        assert os.geteuid() == 0
    with pytest.raises(FileNotFoundError), as_owner(Path("/proc/0")):
        pass
