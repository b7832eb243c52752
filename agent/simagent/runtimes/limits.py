"""The limits of a step that need no cgroup, and what a step's end says of any limit."""

import math
import os
import signal
import zlib
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from simagent.domain.reasons import Reason
from simagent.ports.runtime import StepLimits

_MUCH = 0.8
"""Share of the allowed memory from which on it is worth telling how much was used."""


def rlimits(
    limits: StepLimits, *, confined: bool, uid: int | None = None, contained: bool = False
) -> dict[str, int]:
    """Give the step's resource limits (setrlimit(2)) by their names.

    Where it is not ``confined`` by a cgroup they stand in for one. Memory: RLIMIT_DATA, for each
    process; unlike RLIMIT_AS it leaves out what is reserved but never written, which Java, Go and
    GPU libraries do by the terabyte. Processes: RLIMIT_NPROC counts all of the user's, so those it
    has already are added; root is exempt from it, so it gets none.

    ``uid`` is whom the step runs as; None: this process's user. The memory of a ``contained`` one
    is limited only in its container, as what makes that needs some, too.
    """
    user = os.getuid() if uid is None else uid
    found: dict[str, int] = {}
    if limits.file_bytes is not None:
        found["RLIMIT_FSIZE"] = limits.file_bytes
    if limits.memory_bytes is not None and not confined and not contained:
        found["RLIMIT_DATA"] = limits.memory_bytes
    if limits.processes is not None and not confined and user != 0:
        found["RLIMIT_NPROC"] = limits.processes + _tasks_of(user)
    return found


def cores(limits: StepLimits, attempt: str) -> list[int]:
    """Choose the cores that the step is bound to: none to leave it as it is.

    Those that the limits name, where there are such; else some that are the same for all steps of
    an attempt, not the same for all attempts.
    """
    if limits.cpus is None:
        return []
    usable = sorted(os.sched_getaffinity(0))
    if named := [core for core in limits.cores if core in usable]:
        return named
    first = zlib.crc32(attempt.encode()) % len(usable)
    return (usable[first:] + usable[:first])[: math.ceil(limits.cpus)]


def explain(record: Mapping[str, Any], limits: StepLimits) -> tuple[Reason | None, str]:
    """Tell why a step failed, beyond its exit code or signal, and what else is known of that."""
    if record["stopped"] == "orphaned":
        return Reason.ORPHANED, "no agent looked after the step"
    if record["reason"]:
        return Reason(record["reason"]), record["message"]
    if record["exit_code"] == 0 or record["stopped"]:
        return None, ""
    kills: int | None = record.get("oom_kills")
    if kills and record.get("confined"):
        allowed = f" ({_size(limits.memory_bytes)} allowed)" if limits.memory_bytes else ""
        return Reason.OOM, f"the kernel killed {kills} of its processes for lack of memory{allowed}"
    if kills:
        fact = f"the kernel killed processes of this machine for lack of memory meanwhile ({kills})"
        # 128 + 9 is how shells tell of a program that was killed.
        killed = record["signal"] == signal.SIGKILL or record["exit_code"] == 128 + signal.SIGKILL
        return (Reason.OOM, f"likely: {fact}") if killed else (None, fact)
    if limits.memory_bytes and record["max_rss_bytes"] >= _MUCH * limits.memory_bytes:
        used, allowed = _size(record["max_rss_bytes"]), _size(limits.memory_bytes)
        return None, f"its largest process used {used}, resources.memory allows {allowed}"
    if record["signal"] == signal.SIGKILL and kills == 0:
        return None, "sent neither by the agent nor for lack of memory"
    return None, ""


def _tasks_of(uid: int) -> int:
    """Count the threads of a user, as RLIMIT_NPROC does."""
    count = 0
    for name in filter(str.isdigit, os.listdir("/proc")):
        with suppress(OSError):  # it ended meanwhile
            if os.stat(f"/proc/{name}").st_uid == uid:
                count += len(os.listdir(f"/proc/{name}/task"))
    return count


def _size(count: int) -> str:
    return f"{count / 2**20:,.0f} MiB"
