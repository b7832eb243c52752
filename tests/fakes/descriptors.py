"""A process that has no file descriptor left, for a while."""

import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def no_files_left(*, but: int = 0) -> Iterator[None]:
    """Let nothing more be opened meanwhile, by any thread of this process; what is open stays.

    Nothing ``but`` so many files at a time.
    """
    before, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    filling: list[int] = []
    try:
        # Numbers below the highest one in use are filled, those above it forbidden.
        highest = max(int(name) for name in os.listdir("/proc/self/fd"))
        while len(filling) < but or filling[-1:] <= [highest]:
            filling.append(os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC))
        resource.setrlimit(resource.RLIMIT_NOFILE, (filling[-1] + 1, most))
        for _ in range(but):
            os.close(filling.pop())
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (before, most))
        for fd in filling:
            os.close(fd)
