"""How a process of the command line ends."""

import os
import sys
from typing import NoReturn

INTERRUPTED = 130
"""The exit code of what Ctrl-C has ended."""


def leave(code: int, *, at_once: bool = False) -> NoReturn:
    """End the process; ``at_once`` without a wait for threads that wait for an answer."""
    for fd, file in ((1, sys.stdout), (2, sys.stderr)):
        try:
            file.flush()
        except OSError:  # the reader has gone: Python would trip over it once more at exit
            os.dup2(os.open(os.devnull, os.O_WRONLY), fd)
    if at_once:  # Python would wait for threads, and what they wait for may never answer
        os._exit(code)
    sys.exit(code)
