"""How a step ended, as far as its container and its engine tell."""

import signal
from collections.abc import Mapping
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import Any

from simagent.domain.reasons import Reason
from simagent.ports.passing import passes
from simagent.ports.runtime import StepExit, StepLimits
from simagent.runtimes.docker_container import (
    AGAIN,
    BEGUN,
    FAILED,
    NEW,
    ORPHANED,
    report_path,
)
from simagent.runtimes.exit_codes import signal_of

ENDED_FROM_OUTSIDE = (128 + signal.SIGTERM, 128 + signal.SIGKILL)
"""What a container's exit code is when its engine ends it, or somebody else."""

_NEVER = "0001-01-01"
_NO_SHELL = (
    "the image has no /bin/sh, or one that does not run: give it one, or install a static BusyBox "
    "as /bin/busybox on this machine (Debian's package busybox-static)"
)
_NO_LOADER = "the interpreter or loader that it names does not exist"


def ran(state: Mapping[str, Any]) -> bool:
    """Tell whether a container was ever started; ``state`` is what the engine calls State."""
    return not state["StartedAt"].startswith(_NEVER)


def ended(state: Mapping[str, Any]) -> bool:
    """Tell whether it was started and does not run any more."""
    return ran(state) and state["Status"] in ("exited", "dead", "removing")


def moment(text: str) -> float:
    """Give one of the engine's times as Unix time."""
    return datetime.fromisoformat(text).timestamp()


def read_exit(
    state: Mapping[str, Any], folder: Path, number: int, *, stopped: bool, limits: StepLimits
) -> StepExit:
    """Tell how a step ended by itself, or because it was ``stopped``.

    Raises OSError where what it left cannot be read just now.
    """
    began, over = moment(state["StartedAt"]), moment(state["FinishedAt"])
    code = state["ExitCode"]
    report = _report(folder, number)
    reason, message = _explain(state, report, limits)
    orphaned = report == ORPHANED and not stopped
    if orphaned:
        reason, message = Reason.ORPHANED, "no agent looked after the step"
    elif stopped and reason is not Reason.RUNTIME_FAILED:
        reason, message = None, ""
    told = reason in (None, Reason.OOM, Reason.ORPHANED)
    ended_by = signal_of(code)
    return StepExit(
        exit_code=code if told and ended_by is None else None,
        signal=ended_by if told else None,
        reason=reason,
        message=message,
        started=began,
        ended=over,
        seconds=max(0.0, over - began),
        stopped=stopped or orphaned,
    )


def lost(message: str, started: float | None = None) -> StepExit:
    """Say that the engine did not let the step come to its own end."""
    return StepExit(reason=Reason.RUNTIME_FAILED, message=message, started=started)


def as_record(exit_: StepExit) -> dict[str, Any]:
    """Write down how a step ended, for when its container is removed."""
    return {"format": 1, **asdict(exit_)}


def from_record(record: Mapping[str, Any]) -> StepExit:
    """Read what `as_record` wrote. Raises ValueError, LookupError or TypeError."""
    fields = {name: record[name] for name in StepExit.__dataclass_fields__}
    reason = fields.pop("reason")
    return StepExit(reason=Reason(reason) if reason else None, **fields)


def _explain(
    state: Mapping[str, Any], report: str, limits: StepLimits
) -> tuple[Reason | None, str]:
    code, (said, _, more) = state["ExitCode"], report.partition(" ")
    if code == 0:
        return None, ""
    if state.get("OOMKilled"):
        allowed = limits.memory_bytes and f" ({limits.memory_bytes / 2**20:,.0f} MiB allowed)"
        return Reason.OOM, f"the kernel killed processes of it for lack of memory{allowed or ''}"
    if said == AGAIN:
        return Reason.RUNTIME_FAILED, "the engine started its container twice"
    if said == NEW and code in (126, 127):
        return Reason.IMAGE_UNUSABLE, _NO_SHELL
    if said in (Reason.COMMAND_NOT_FOUND, Reason.NOT_EXECUTABLE) and code == 127:
        return Reason(said), more
    if said == FAILED and code == 127:
        return Reason.NOT_EXECUTABLE, _NO_LOADER
    if said == FAILED and code == 126:
        return Reason.NOT_EXECUTABLE, "permission denied, or no program for this machine"
    if said != BEGUN and state.get("Error"):
        return Reason.RUNTIME_FAILED, f"the engine could not run it: {state['Error']}"
    if code == 128 + signal.SIGKILL:
        return None, "sent neither by the agent nor for lack of memory"
    return None, ""


def _report(folder: Path, number: int) -> str:
    try:
        with report_path(folder, number).open("rb") as file:
            line = file.readline(1024).decode(errors="replace").strip()
    except OSError as error:
        if passes(error):
            raise
        return ""
    # The task may write it, too.
    return "".join(c if c.isprintable() else "?" for c in line) or NEW
