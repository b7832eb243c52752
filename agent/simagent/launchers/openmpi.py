"""Open MPI's `mpirun`, versions 4 (ORTE) and 5 (PRRTE).

Options as in the manual pages mpirun(1) of Open MPI 4.1 and 5.0. MCA parameters as listed by
``ompi_info --all``.
"""

import re
from collections.abc import Sequence

from simagent.launchers.arguments import binding, check_args, check_np, check_program
from simagent.ports.launcher import LaunchError, Ranks

_HARMLESS = {
    "mca": 2,
    "bind-to": 1,
    "map-by": 1,
    "rank-by": 1,
    "npernode": 1,
    "N": 1,
    "use-hwthread-cpus": 0,
    "oversubscribe": 0,
    "report-bindings": 0,
    "display-map": 0,
    "tag-output": 0,
    "timestamp-output": 0,
    "nooversubscribe": 0,
}
_PARAMETER = re.compile(
    r"(btl|pml|mtl|osc|coll|topo|io|fcoll|sharedfp|mpi|ucx|opal_common_ucx)(_.*)?"
)
_REACHES_OUT = re.compile(r"file|path|dir|agent|cmd|command|exec|lib|plugin|preload|url|server")
"""In names of parameters whose values are files or programs."""
_VALUE = re.compile(r"[A-Za-z0-9_.,:^=+-]*")
_OWN_VARIABLES = ("OMPI_", "OPAL_", "ORTE_", "PMIX_", "PRTE_")
_PARAMETER_VARIABLE = "OMPI_MCA_"


class OpenMpiLauncher:
    """Builds the command lines of one Open MPI `mpirun`, a path or a name to look up in PATH.

    ``major`` is its version's first number; ``root`` tells whether it is run by root, which it
    refuses unless told that this is meant.
    """

    name = "openmpi"

    def __init__(self, mpirun: str, *, major: int, root: bool) -> None:
        self._mpirun = mpirun
        self._major = major
        self._root = root

    def command(self, ranks: Ranks, argv: Sequence[str]) -> tuple[str, ...]:
        """Build the command line that runs ``argv`` as these ranks. Raises `LaunchError`."""
        check_program(argv)
        check_args(ranks.args, _HARMLESS, _check_values)
        return (
            self._mpirun,
            *(("--allow-run-as-root",) if self._root else ()),
            *("-np", str(check_np(ranks.np))),
            *_environment(ranks.env),
            *self._bound(binding(ranks)),
            *self._sharing(ranks.oversubscribe),
            *ranks.args,
            *argv,
        )

    def environment(self, ranks: Ranks) -> dict[str, str]:
        """Give no variables: all is said on the command line."""
        del ranks
        return {}

    def _bound(self, bind: str | None) -> tuple[str, ...]:
        match bind:
            case None:
                return ()
            case "hwthread":
                # Else its slots are the cores, and half of the threads stay empty.
                return ("--use-hwthread-cpus", "--bind-to", "hwthread")
            case "socket" if self._major >= 5:
                return ("--bind-to", "package")
        return ("--bind-to", bind)

    def _sharing(self, oversubscribe: bool) -> tuple[str, ...]:
        if not oversubscribe:
            return ()
        return ("--oversubscribe",) if self._major < 5 else ("--map-by", ":OVERSUBSCRIBE")


def _environment(names: tuple[str, ...]) -> tuple[str, ...]:
    words: list[str] = []
    for name in names:
        if name.startswith(_PARAMETER_VARIABLE):
            # Read by mpirun itself, which hands it on.
            _check_parameter("env", name.removeprefix(_PARAMETER_VARIABLE))
        elif name.startswith(_OWN_VARIABLES):
            raise LaunchError(f"env: {name} would configure mpirun itself: use mpi.args")
        else:
            words += ("-x", name)
    return tuple(words)


def _check_values(option: str, values: Sequence[str]) -> None:
    if option == "mca":
        _check_parameter("mpi.args: -mca", values[0])
    for value in values:
        if not _VALUE.fullmatch(value) or "file" in value.lower():
            raise LaunchError(f"mpi.args: -{option} {value!r} is refused: it is no plain word")


def _check_parameter(where: str, name: str) -> None:
    if not _PARAMETER.fullmatch(name) or _REACHES_OUT.search(name):
        raise LaunchError(
            f"{where} {name} is refused; what can be set are parameters of btl, pml, mtl, osc, "
            "coll, topo, io, mpi and ucx that name no files and no programs"
        )
