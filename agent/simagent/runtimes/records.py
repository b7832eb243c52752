"""The records of a step: small files that outlive the agent, beside those of the shim."""

import fcntl
import json
import secrets
from pathlib import Path
from typing import Any

from simagent.domain.reasons import Reason
from simagent.ports.runtime import RuntimeFailedError, StepPlan

FORMAT = 1
_ROOM = 1 << 16


def locked(plan: StepPlan) -> bool:
    """Tell whether the shim of a step is alive."""
    try:
        with open(plan.folder / f"step-{plan.number}.lock", "rb") as lock:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False


def read(plan: StepPlan, kind: str) -> dict[str, Any] | None:
    """Read a record of the step, None if there is none. Raises ValueError.

    Raises `RuntimeFailedError` for one of a newer version, which may mean something else: nothing
    is known of the step then, until that version is here again.
    """
    try:
        text = (plan.folder / f"step-{plan.number}.{kind}").read_bytes()
    except FileNotFoundError:
        return None
    record = json.loads(text)
    if not isinstance(record, dict):
        raise ValueError(f"step-{plan.number}.{kind} is not a JSON object")
    version = record.get("format")
    if isinstance(version, int) and version > FORMAT:
        raise RuntimeFailedError(
            Reason.RUNTIME_FAILED,
            f"step-{plan.number}.{kind} was written by a newer version of the agent, in format "
            f"{version}: start that one again",
        )
    return record


def keep_room(plan: StepPlan) -> None:
    """Take room for a last record, as the step may fill the disk. Raises OSError."""
    (plan.folder / f"step-{plan.number}.room").write_bytes(bytes(_ROOM))


def replace_last(plan: StepPlan, kind: str, content: dict[str, Any]) -> None:
    """Write a record, in the room that was kept for it where there is no other. Raises OSError."""
    path = plan.folder / f"step-{plan.number}.{kind}"
    try:
        replace(path, content)
    except FileNotFoundError:
        raise
    except OSError:
        path.with_suffix(".room").unlink(missing_ok=True)
        replace(path, content)


def replace(path: Path, content: bytes | dict[str, Any]) -> None:
    """Write a file whole; not synced, as it is of no use after a restart of the machine."""
    data = content if isinstance(content, bytes) else json.dumps(content).encode()
    # Two agents may both try to start the step: each under a name of its own.
    part = path.with_name(f"{path.name}.{secrets.token_hex(4)}.part")
    part.touch(mode=0o600)
    part.write_bytes(data)
    part.replace(path)
