"""MPICH's process manager Hydra: `mpirun` of MPICH and of what is built on it.

Options as listed by ``mpirun --help`` of MPICH 4 and 5.
"""

from collections.abc import Collection, Mapping, Sequence

from simagent.launchers.arguments import binding, check_args, check_np, check_program
from simagent.launchers.guard import MPICH, guarded
from simagent.launchers.spans import check_span, host_files, hydra_hosts
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
"""The options that users may add, with the number of their values."""
_SET_VARIABLES = {"genv", "env"}
_OTHERS = {
    "bootstrap": 1,
    "bootstrap-exec": 1,
    "configfile": 1,
    "errfile-pattern": 1,
    "f": 1,
    "hosts": 1,
    "iface": 1,
    "launcher": 1,
    "launcher-exec": 1,
    "localhost": 1,
    "outfile-pattern": 1,
    "path": 1,
    "rmk": 1,
    "verbose": 0,
    "wdir": 1,
}
"""What only the operator can let users add: some make mpirun itself run a program."""


class HydraLauncher:
    """Builds the command lines of one Hydra `mpirun`, a path or a name to look up in PATH."""

    name = "hydra"

    def __init__(
        self, mpirun: str = "mpirun", *, version: str = "", allow: Collection[str] = ()
    ) -> None:
        """``allow`` names options that users may add although they are refused otherwise."""
        self.mpi = f"{MPICH} {version}".rstrip()
        self._mpirun = mpirun
        self._allow = frozenset(allow)

    def command(self, ranks: Ranks, argv: Sequence[str]) -> tuple[str, ...]:
        """Build the command line that runs ``argv`` as these ranks. Raises `LaunchError`."""
        check_program(argv)
        command = (*self._front(ranks), *argv)
        return guarded(command, argv[0], self.mpi) if ranks.guard else command

    def _front(self, ranks: Ranks) -> tuple[str, ...]:
        harmless = _HARMLESS.keys() - (_SET_VARIABLES if ranks.boxed else set())
        check_args(
            ranks.args,
            {option: _HARMLESS[option] for option in harmless},
            _check_values,
            others=_OTHERS,
            allow=self._allow,
        )
        bind = binding(ranks)
        return (
            self._mpirun,
            *("-np", str(check_np(ranks.np))),
            *_spanning(ranks),
            *_environment(ranks),
            *(() if bind is None else ("-bind-to", bind)),
            *ranks.args,
        )

    def environment(self, ranks: Ranks) -> dict[str, str]:
        """Give no variables: all is said on the command line."""
        del ranks
        return {}

    def files(self, ranks: Ranks) -> Mapping[str, str]:
        """Give the files, by their names, that have to lie in the folder of the span's agent."""
        return host_files(ranks)


def _spanning(ranks: Ranks) -> tuple[str, ...]:
    span = check_span(ranks)
    if span is None:
        return ()
    return ("-f", hydra_hosts(span), "-launcher", "ssh", "-launcher-exec", span.agent)


def _environment(ranks: Ranks) -> tuple[str, ...]:
    for name in ranks.env:
        if name.startswith("HYDRA_"):
            raise LaunchError(f"env: {name} would configure mpirun itself: use mpi.args")
        if "," in name:
            raise LaunchError(f"env: {name!r} contains a comma, mpirun splits there")
    if ranks.span is not None:
        # Of a list of names other hosts get nothing; and mpirun itself has what it was given.
        return ("-genvall",)
    return ("-genvlist", ",".join(ranks.env)) if ranks.env else ("-genvnone",)


def _check_values(option: str, values: Sequence[str]) -> None:
    if option in ("genv", "env") and values[0].startswith("HYDRA_"):
        raise LaunchError(f"mpi.args: {values[0]} would configure mpirun itself")
