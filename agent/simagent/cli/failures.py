"""What the user sees of an error, and the exit code. The only place that decides it."""

import os
import sqlite3
import traceback
from contextlib import suppress

from simagent.cli.text import say
from simagent.client import ClientError, UsageError
from simagent.config import ConfigError
from simagent.ledger import CorruptError, TooNewError
from simagent.ports.launcher import LaunchError
from simagent.ports.queue import QueueError
from simagent.ports.store import StoreError
from simagent.worker.identity import StateFolderInUseError
from simagent.worker.notify import Notifier

USAGE, FAILED, CRASHED = 2, 1, 70
TAKEN_AWAY = 75
"""Of an agent that the cloud takes the machine from: EX_TEMPFAIL of sysexits.h.

systemd starts it again: if the machine stays after all, it works on, else it hears the notice anew.
"""

_USAGE = (ConfigError, UsageError, LaunchError)
_EXPECTED = (
    ClientError,
    CorruptError,
    OSError,
    QueueError,
    StateFolderInUseError,
    StoreError,
    TooNewError,
    sqlite3.Error,
)


def show(error: Exception) -> int:
    """Print an error on standard error, a line each; tell the exit code.

    With SIMAGENT_DEBUG=1, and where the error is a bug, the traceback is printed, too. Where
    systemd started this process, it shows the error in `systemctl status`.
    """
    expected = isinstance(error, _USAGE + _EXPECTED)
    if not expected or os.environ.get("SIMAGENT_DEBUG"):
        with suppress(OSError):
            traceback.print_exception(error)
    message = _message(error, expected=expected)
    for line in message.splitlines():
        say(line)
    Notifier().status(message)
    if isinstance(error, _USAGE):
        return USAGE
    return FAILED if expected else CRASHED


def _message(error: Exception, *, expected: bool) -> str:
    if not expected:
        return f"stopped by a bug ({type(error).__name__}): please report what stands above"
    if isinstance(error, OSError) and error.strerror:
        return ": ".join(str(part) for part in (error.filename, error.strerror) if part)
    return str(error) or type(error).__name__
