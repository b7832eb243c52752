"""Ranks that have loaded another MPI than that of the mpirun which started them.

Each of them is then a job of its own, and all may well succeed. What is linked with another MPI is
not even started (`simagent.launchers.guard`); scripts, and programs that load their MPI late, are
seen only once they run. So they are looked at a few times, by their memory maps; those of other
users' processes only root's agent sees.
"""

import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Final

from simagent.ports.clock import Clock
from simagent.ports.owners import as_owner

_LOOKS: Final = (1.0, 4.0, 15.0, 60.0)
"""Seconds after the start: programs load their MPI early, if not at once."""

_PROC = Path("/proc")
_OPEN_MPI_STARTERS: Final = ("mpirun", "mpirun.openmpi", "mpiexec", "orterun", "prterun", "prte")
_DAEMONS: Final = ("orted", "prted")
_STARTERS: Final = re.compile(r"libopen-rte\.so|libprrte\.so")
_OPEN_MPI: Final = re.compile(r"/libmpi\.so\.[2-9]\d|/libopen-pal\.so")
_MPICH: Final = re.compile(r"/libmpi\.so\.12|/libmpich[a-z]*\.so|/libmpich-[^/]*\.so")
_LEAST = 2


class RankWatch:
    """Looks at the processes of a step a few times after ``clock`` was first asked."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._due = [clock.now() + after for after in reversed(_LOOKS)]

    def left(self) -> float | None:
        """Tell the seconds until the next look; None after the last."""
        return max(0.0, self._due[-1] - self._clock.now()) if self._due else None

    def look(self, pids: Callable[[], Iterable[int]]) -> str:
        """Tell what is wrong with the ranks among some processes, where it is time to look."""
        if self.left() != 0.0:
            return ""
        self._due.pop()
        return strangers(pids())


def strangers(pids: Iterable[int], *, proc: Path = _PROC) -> str:
    """Tell of ranks that none of the launchers among these processes can have meant.

    Empty where there are none, or nothing can be told.
    """
    started_by, loaded = set(), []
    for pid in pids:
        process = proc / str(pid)
        name, maps = _read(process / "comm").strip(), _maps(process)
        if name.startswith("hydra_pmi_proxy"):
            started_by.add("MPICH")
        elif name in _DAEMONS:
            continue  # a rank of Open MPI 4 that is alone starts one for itself
        elif _STARTERS.search(maps) and name in _OPEN_MPI_STARTERS:
            started_by.add("Open MPI")
        elif found := _loaded(maps):
            loaded.append(found)
    others = [found for found in loaded if not found & started_by]
    if len(started_by) != 1 or len(others) < _LEAST or len(others) < len(loaded):
        return ""
    has = " and ".join(sorted(set().union(*others)))
    return f"{len(others)} ranks have loaded {has}, and were started by {started_by.pop()}"


def _loaded(maps: str) -> set[str]:
    known = {"Open MPI": _OPEN_MPI, "MPICH": _MPICH}
    return {name for name, pattern in known.items() if pattern.search(maps)}


def _maps(process: Path) -> str:
    try:
        with as_owner(process):
            return _read(process / "maps")
    except OSError:  # it ended meanwhile
        return ""


def _read(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""
