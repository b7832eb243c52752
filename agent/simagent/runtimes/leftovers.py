"""Finds and ends the processes of a step whose shim was killed.

They have lost the parent that kept them together, so they are known by what a program cannot help
inheriting: the agent's own variables (no task can set SIMAGENT_*), or the step's session.
"""

import os
import signal
import time
from collections.abc import Mapping
from pathlib import Path

from simagent import shim
from simagent.ports.owners import as_owner
from simagent.ports.runtime import StepPlan

_LIMIT = 5.0
_PAUSE = 0.01
_MARKER = "SIMAGENT_"


def end_leftovers(plan: StepPlan, leader: Mapping[str, int]) -> int:
    """Kill what is left of the step whose main process was ``leader`` (pid and start time).

    Tries for 5 seconds and returns how many processes were killed. A program that both cleared its
    environment and left its session is not found.
    """
    killed: set[tuple[int, int]] = set()
    deadline = time.monotonic() + _LIMIT
    while found := [p for p in shim.processes() if _belongs(p, plan, leader)]:
        killed |= {(p.pid, p.start) for p in found if shim.send(p, signal.SIGKILL)}
        if time.monotonic() > deadline:
            break
        time.sleep(_PAUSE)
    return len(killed)


def _belongs(process: shim.Process, plan: StepPlan, leader: Mapping[str, int]) -> bool:
    if process.state in "ZX":
        return False
    if _marked(process.pid, plan.env):
        return True
    if process.session != leader["pid"]:
        return False
    # The number of a session whose members have all ended may have gone to another one.
    first = shim.look(leader["pid"])
    ours = first is not None and first.start == leader["start"]
    return ours or (first is None and _writes_logs(process.pid, plan))


def _marked(pid: int, env: Mapping[str, str]) -> bool:
    marks = {f"{name}={value}".encode() for name, value in env.items() if name.startswith(_MARKER)}
    if not marks:
        return False
    process = Path(f"/proc/{pid}")
    try:
        with as_owner(process):
            return marks <= set((process / "environ").read_bytes().split(b"\0"))
    except OSError:
        return False


def _writes_logs(pid: int, plan: StepPlan) -> bool:
    process = Path(f"/proc/{pid}")
    for fd, log in ((1, plan.stdout), (2, plan.stderr)):
        try:
            written = log.stat()
            with as_owner(process):
                opened = (process / "fd" / str(fd)).stat()
        except OSError:
            continue
        if os.path.samestat(opened, written):
            return True
    return False
