"""MPICH's process manager Hydra: `mpirun` of MPICH and of what is built on it.

Options as listed by ``mpirun --help`` of MPICH 4 and 5.
"""

import re
import subprocess
from collections.abc import Sequence

from simagent.ports.launcher import LaunchError, Ranks

_BINDINGS = ("core", "hwthread", "socket", "none")
_VERSION = re.compile(r"HYDRA build details:\s+Version:\s+(\S+)")
_DETECT_SECONDS = 10.0

_HARMLESS = {
    "l": 0,
    "prepend-rank": 0,
    "prepend-pattern": 1,
    "print-all-exitcodes": 0,
    "disable-auto-cleanup": 0,
    "genv": 2,
    "env": 2,
    "bind-to": 1,
    "map-by": 1,
    "membind": 1,
    "ppn": 1,
    "usize": 1,
    "gpus-per-proc": 1,
    "memory-alloc-kinds": 1,
    "order-nodes": 1,
}
"""The options that users may add, with the number of their values.

Known ones only: others name hosts or files, or make mpirun itself run a program
(-launcher-exec, -rmk, -configfile), and mpirun may run outside of the task's container.
"""


class HydraLauncher:
    """Builds the command lines of one Hydra `mpirun`, a path or a name to look up in PATH."""

    name = "hydra"

    def __init__(self, mpirun: str = "mpirun") -> None:
        self._mpirun = mpirun

    def command(self, ranks: Ranks, argv: Sequence[str]) -> tuple[str, ...]:
        """Build the command line that runs ``argv`` as these ranks. Raises `LaunchError`."""
        _check_program(argv)
        _check_args(ranks.args)
        return (
            self._mpirun,
            *("-np", str(_check_np(ranks.np))),
            *_environment(ranks.env),
            *_binding(ranks.bind),
            *ranks.args,
            *argv,
        )


def detect(path: str) -> str | None:
    """Tell the version of the Hydra that this mpirun is; None if it is none, or hangs."""
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
    found = _VERSION.search(told.stdout)
    return found.group(1) if found else None


def _check_np(np: int) -> int:
    if np < 1:
        raise LaunchError(f"mpi.np: {np} ranks cannot be started: ask for 1 or more")
    return np


def _check_program(argv: Sequence[str]) -> None:
    if not argv or argv[0].startswith("-"):
        raise LaunchError(
            "run: name a program that does not begin with '-', mpirun takes it for its own"
        )
    if ":" in argv:
        raise LaunchError("run: mpirun takes a ':' of its own for the start of another program")


def _environment(names: tuple[str, ...]) -> tuple[str, ...]:
    for name in names:
        if name.startswith("HYDRA_"):
            raise LaunchError(f"env: {name} would configure mpirun itself: use mpi.args")
        if "," in name:
            raise LaunchError(f"env: {name!r} contains a comma, mpirun splits there")
    return ("-genvlist", ",".join(names)) if names else ("-genvnone",)


def _binding(bind: str | None) -> tuple[str, ...]:
    if bind is None:
        return ()
    if bind not in _BINDINGS:
        raise LaunchError(f"mpi.bind: {bind} is none of {', '.join(_BINDINGS)}")
    return ("-bind-to", bind)


def _check_args(args: tuple[str, ...]) -> None:
    words = iter(args)
    for word in words:
        option = word.removeprefix("-").removeprefix("-")
        if option == word or option not in _HARMLESS:
            allowed = ", ".join(f"-{name}" for name in sorted(_HARMLESS))
            raise LaunchError(f"mpi.args: {word} is refused; what can be used is {allowed}")
        values = [value for _, value in zip(range(_HARMLESS[option]), words, strict=False)]
        if len(values) < _HARMLESS[option]:
            raise LaunchError(f"mpi.args: {word} needs {_HARMLESS[option]} values")
        if option in ("genv", "env") and values[0].startswith("HYDRA_"):
            raise LaunchError(f"mpi.args: {values[0]} would configure mpirun itself")
