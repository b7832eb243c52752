"""MPICH's process manager Hydra: `mpirun` of MPICH and of what is built on it.

Options as listed by ``mpirun --help`` of MPICH 4 and 5.
"""

from collections.abc import Sequence

from simagent.launchers.arguments import binding, check_args, check_np, check_program
from simagent.ports.launcher import LaunchError, Ranks

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

Among the others are some that make mpirun itself run a program: -launcher-exec, -rmk, -configfile.
"""


class HydraLauncher:
    """Builds the command lines of one Hydra `mpirun`, a path or a name to look up in PATH."""

    name = "hydra"

    def __init__(self, mpirun: str = "mpirun") -> None:
        self._mpirun = mpirun

    def command(self, ranks: Ranks, argv: Sequence[str]) -> tuple[str, ...]:
        """Build the command line that runs ``argv`` as these ranks. Raises `LaunchError`."""
        check_program(argv)
        check_args(ranks.args, _HARMLESS, _check_values)
        bind = binding(ranks)
        return (
            self._mpirun,
            *("-np", str(check_np(ranks.np))),
            *_environment(ranks.env),
            *(() if bind is None else ("-bind-to", bind)),
            *ranks.args,
            *argv,
        )

    def environment(self, ranks: Ranks) -> dict[str, str]:
        """Give no variables: all is said on the command line."""
        del ranks
        return {}


def _environment(names: tuple[str, ...]) -> tuple[str, ...]:
    for name in names:
        if name.startswith("HYDRA_"):
            raise LaunchError(f"env: {name} would configure mpirun itself: use mpi.args")
        if "," in name:
            raise LaunchError(f"env: {name!r} contains a comma, mpirun splits there")
    return ("-genvlist", ",".join(names)) if names else ("-genvnone",)


def _check_values(option: str, values: Sequence[str]) -> None:
    if option in ("genv", "env") and values[0].startswith("HYDRA_"):
        raise LaunchError(f"mpi.args: {values[0]} would configure mpirun itself")
