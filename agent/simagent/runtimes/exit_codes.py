"""What exit codes tell of signals, where a program is waited for by something in between."""

import signal

# Signals that end programs: 128 more is what a container's first process, like a shell, exits with
# then. Programs that choose such a code themselves cannot be told apart.
_ENDING = frozenset(
    signal.valid_signals()
    - {signal.SIGCHLD, signal.SIGCONT, signal.SIGSTOP, signal.SIGTSTP, signal.SIGTTIN}
    - {signal.SIGTTOU, signal.SIGURG, signal.SIGWINCH}
)


def signal_of(code: int | None) -> int | None:
    """Give the signal that an exit code tells of, None where it tells of none."""
    return code - 128 if code is not None and code - 128 in _ENDING else None
