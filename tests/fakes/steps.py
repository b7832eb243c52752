"""What the tests of steps share: real processes, real folders."""

import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from simagent import shim
from simagent.ports.runtime import StepExit, StepPlan
from simagent.runtimes.process import ProcessRuntime

PATH = "/usr/local/bin:/usr/bin:/bin"
LIMIT = 60.0
"""Seconds for what takes no time on a machine with nothing else to do; it is met at once there."""


def until(condition: Callable[[], object], what: str = "it") -> None:
    """Poll until the condition holds; fail when it never does."""
    deadline = time.monotonic() + LIMIT
    while not condition():
        assert time.monotonic() < deadline, f"{what} did not come true"
        time.sleep(0.005)


def alive(pid: int) -> bool:
    process = shim.look(pid)
    return process is not None and process.state not in "ZX"


def running() -> Iterator[tuple[int, list[str]]]:
    """List the processes of this machine, each with the words of its command line."""
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            line = (folder / "cmdline").read_text(errors="replace")
            yield int(folder.name), line.split("\0")


def commands_of(task: str) -> list[int]:
    """List the processes of a task's commands."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            environ = (folder / "environ").read_bytes().split(b"\0")
        except OSError:
            continue
        if f"SIMAGENT_TASK_ID={task}".encode() in environ:
            found.append(int(folder.name))
    return found


def end_commands(task: str) -> None:
    """End a task's commands as if their machine went away."""
    for pid in commands_of(task):
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def none_left(pids: list[int]) -> None:
    """End processes that should be gone by now, and fail where there are any."""
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    assert pids == [], "the test left processes behind"


@dataclass
class Folder:
    """An attempt's folder, its runtime, and short ways to run things in it."""

    root: Path
    runtime: ProcessRuntime

    def plan(self, *argv: str, **changes: object) -> StepPlan:
        plan = StepPlan(
            folder=self.root / "steps",
            number=0,
            argv=argv,
            env={"PATH": PATH, "SIMAGENT_TASK_ID": str(self.root)},
            cwd=self.root,
            stdout=self.root / "out",
            stderr=self.root / "err",
            grace=20.0,
        )
        return replace(plan, **changes)  # type: ignore[arg-type]

    def python(self, code: str, **changes: object) -> StepPlan:
        return self.plan(sys.executable, "-I", "-S", "-c", code, **changes)

    def run(self, plan: StepPlan) -> StepExit:
        result = self.runtime.start(plan).wait(LIMIT)
        assert result is not None, "the step did not end"
        return result

    @property
    def out(self) -> bytes:
        return (self.root / "out").read_bytes()

    @property
    def err(self) -> bytes:
        return (self.root / "err").read_bytes()

    def reported(self, name: str = "out") -> list[int]:
        """The process ids that the step wrote, one a line."""
        path = self.root / name
        text = path.read_text() if path.exists() else ""
        return [int(line) for line in text.split("\n")[:-1]]

    def marked(self) -> list[int]:
        """The living processes that carry this folder's variable."""
        mark = f"SIMAGENT_TASK_ID={self.root}".encode()
        found = []
        for process in shim.processes():
            try:
                environ = Path(f"/proc/{process.pid}/environ").read_bytes()
            except OSError:
                continue
            if mark in environ.split(b"\0") and process.pid != os.getpid():
                found.append(process.pid)
        return found
