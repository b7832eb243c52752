"""Starts shims, and hears what they say of it."""

import json
import os
import select
import sys
import time
from pathlib import Path

from simagent.domain.reasons import Reason
from simagent.ports.runtime import RuntimeFailedError, StepPlan

SHIM = "shim.pyc"
_LOG = "shim.log"
_LOG_BYTES = 64 * 1024
_LAST_WORDS = 300


def spawn(plan: StepPlan) -> tuple[int, int]:
    """Start the shim; give its process id and the pipe that says when it has started."""
    log = plan.folder / _LOG
    bounded = not log.exists() or log.stat().st_size < _LOG_BYTES
    argv = [sys.executable, "-I", "-S", "-X", "utf8", str(plan.folder / SHIM)]
    argv += [str(plan.folder), str(plan.number)]
    # A Python may need it to start; nothing else of the agent's environment goes further.
    env = {name: os.environ[name] for name in ("LD_LIBRARY_PATH",) if name in os.environ}
    answer, write = os.pipe()
    try:
        pid = os.posix_spawn(
            sys.executable,
            argv,
            env,
            file_actions=[
                (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
                (os.POSIX_SPAWN_DUP2, write, 1),
                (
                    os.POSIX_SPAWN_OPEN,
                    2,
                    str(log) if bounded else os.devnull,
                    os.O_WRONLY | os.O_APPEND | os.O_CREAT,
                    0o600,
                ),
            ],
            setsid=True,
            setsigmask=(),
        )
    except OSError:
        os.close(answer)
        raise
    finally:
        os.close(write)
    return pid, answer


def read_answer(answer: int, limit: float) -> bytes:
    """Read what the shim says until the step has started, or for ``limit`` seconds."""
    with open(answer, "rb", buffering=0) as pipe:
        poller = select.poll()
        poller.register(pipe, select.POLLIN)
        said = b""
        deadline = time.monotonic() + limit
        while poller.poll(max(0.0, deadline - time.monotonic()) * 1000):
            chunk = pipe.read(4096)
            if not chunk:
                break
            said += chunk
        return said


def start_failure(plan: StepPlan, said: bytes) -> RuntimeFailedError:
    """Give the error of a start, by what was read; nothing: the shim ended before it said any."""
    if said:
        reason, message = json.loads(said)
        return RuntimeFailedError(Reason(reason), message)
    return RuntimeFailedError(
        Reason.AGENT_ERROR,
        f"the step's supervisor ended before the step began: {_last_words(plan.folder / _LOG)}",
    )


def _last_words(log: Path) -> str:
    """Give the last line of a shim's log, which goes with its attempt's folder."""
    try:
        lines = log.read_text(errors="replace").splitlines()
    except OSError as error:
        return f"{log}: {error.strerror or error}"
    return lines[-1][:_LAST_WORDS] if lines else "it said nothing"
