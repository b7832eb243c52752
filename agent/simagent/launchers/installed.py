"""Which MPI is installed here: finds each `mpirun`, asks it what it is, and remembers."""

import glob
import math
import re
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from simagent.ports.launcher import Launcher, LaunchError

_DETECT_SECONDS = 10.0
_AGAIN = 120.0
"""Seconds after which one that did not tell is asked again: its machine may have been at fault."""
_TOLD = {
    "hydra": re.compile(r"HYDRA build details:\s+Version:\s+(\S+)"),
    "openmpi": re.compile(r"^mpirun\S* \(Open(?:RTE| MPI)\) (\S+)", re.MULTILINE),
}
"""What `--version` prints, by flavour."""
_NUMBERS = re.compile(r"\d+")


@dataclass(frozen=True, slots=True)
class Mpirun:
    """An `mpirun` that works: its path, whose it is (``hydra`` or ``openmpi``), its version."""

    path: str
    flavour: str
    version: str


class InstalledLaunchers:
    """The MPI installations of this machine.

    ``program`` is a path or a name to look up in PATH; ``{version}`` in it stands for the version,
    where several are installed side by side. ``build`` makes the launcher of each flavour;
    ``inside`` is for the `mpirun` of images.
    """

    def __init__(
        self,
        program: str,
        build: Mapping[str, Callable[[Mpirun], Launcher]],
        inside: Launcher,
        *,
        again: float = _AGAIN,
    ) -> None:
        self._program = program
        self._build = build
        self._inside = inside
        self._again = again
        self._asked: dict[tuple[str, int], tuple[Mpirun | None, float]] = {}

    def __bool__(self) -> bool:
        """Whether there is any."""
        return any(True for _ in self.installed())

    def installed(self) -> Iterator[Mpirun]:
        """Yield those that are there, the newest first."""
        found = (self._ask(path) for path in self._paths())
        works = [mpirun for mpirun in found if mpirun is not None and mpirun.flavour in self._build]
        yield from sorted(works, key=lambda mpirun: _ordered(mpirun.version), reverse=True)

    def find(self, version: str | None) -> Launcher:
        """Give the launcher of a version (``5`` is any 5.x, ``4.1`` any 4.1.x), else the newest.

        Raises `LaunchError`.
        """
        there = tuple(self.installed())
        for mpirun in there:
            if version is None or (mpirun.version + ".").startswith(version + "."):
                return self._build[mpirun.flavour](mpirun)
        if not there:
            raise LaunchError(
                f"no mpirun was found on this machine ({self._program}): install Open MPI or MPICH"
            )
        known = ", ".join(mpirun.version for mpirun in there)
        raise LaunchError(
            f"mpi.version: {version} is not installed here, there is {known}: ask for what is "
            "there, or install it and name it by mpirun"
        )

    def inside(self) -> Launcher:
        """Give the launcher for the `mpirun` of a task's own image."""
        return self._inside

    def _paths(self) -> list[str]:
        if "{version}" not in self._program:
            path = shutil.which(self._program)
            return [path] if path else []
        # What is literal in the template stays literal.
        pattern = "*".join(glob.escape(part) for part in self._program.split("{version}"))
        return sorted(glob.glob(pattern))

    def _ask(self, path: str) -> Mpirun | None:
        """Ask a program what it is, once for each version of its file that tells."""
        try:
            known = path, Path(path).stat().st_mtime_ns
        except OSError:
            return None
        found, at = self._asked.get(known, (None, -math.inf))
        if found is None and time.monotonic() - at >= self._again:
            found = detect(path)
            self._asked[known] = found, time.monotonic()
        return found


def detect(path: str) -> Mpirun | None:
    """Tell what an `mpirun` is; None where it is none that is known, or hangs."""
    try:
        told = subprocess.run(
            [path, "--version"],
            capture_output=True,
            stdin=subprocess.DEVNULL,
            timeout=_DETECT_SECONDS,
            check=False,
            text=True,
            errors="replace",
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    for flavour, pattern in _TOLD.items():
        found = pattern.search(told.stdout)
        if found and _NUMBERS.match(found.group(1)):
            return Mpirun(path, flavour, found.group(1))
    return None


def _ordered(version: str) -> tuple[int, ...]:
    return tuple(int(number) for number in _NUMBERS.findall(version))
