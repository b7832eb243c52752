"""Who of a step's processes has a use for a signal: it ends most of those that have none."""

from collections.abc import Iterable, Iterator

from simagent.shim import Process

_CAUGHT = (b"SigCgt:", b"SigBlk:")  # who blocks one may wait for it, as by sigwait(3)


def heeding(tree: Iterable[Process], number: int) -> Iterator[Process]:
    """Yield the outermost processes that a signal does not end, and that do not ignore it.

    What it means to those below them is theirs: an mpirun passes it on to its ranks. Those above,
    such as a shell, would be ended by it.
    """
    below: dict[int, list[Process]] = {}
    known: set[int] = set()
    for process in tree:
        below.setdefault(process.parent, []).append(process)
        known.add(process.pid)
    todo = [p for parent in below if parent not in known for p in below[parent]]
    while todo:
        process = todo.pop()
        if _heeds(process, number):
            yield process
        else:
            todo += below.get(process.pid, ())


def _heeds(process: Process, number: int) -> bool:
    """Tell by /proc/PID/status whether a process catches or blocks a signal; proc_pid_status(5)."""
    try:
        with open(f"/proc/{process.pid}/status", "rb") as file:
            masks = [line.split()[1] for line in file if line.startswith(_CAUGHT)]
    except OSError:  # it ended meanwhile
        return False
    return any(int(mask, 16) >> (number - 1) & 1 for mask in masks)
