"""Open MPI's `mpirun`, versions 4 (ORTE) and 5 (PRRTE).

Options as in the manual pages mpirun(1) of Open MPI 4.1 and 5.0. MCA parameters as listed by
``ompi_info --all``.
"""

import re
from collections.abc import Collection, Mapping, Sequence

from simagent.launchers.arguments import binding, check_args, check_np, check_program
from simagent.launchers.guard import OPEN_MPI, guarded
from simagent.launchers.spans import check_span, host_files, openmpi_hosts
from simagent.ports.launcher import LaunchError, Ranks, Span

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
_OTHERS = {
    "am": 1,
    "debug-daemons": 0,
    "host": 1,
    "hostfile": 1,
    "launch-agent": 1,
    "machinefile": 1,
    "output": 1,
    "output-filename": 1,
    "prefix": 1,
    "preload-binary": 0,
    "preload-files": 1,
    "rankfile": 1,
    "report-uri": 1,
    "runtime-options": 1,
    "timeout": 1,
    "tune": 1,
    "wdir": 1,
    "x": 1,
}
"""What only the operator can let users add. So it is with each parameter of those below."""
_SETS = ("mca", "prtemca", "pmixmca")
_PARAMETER = re.compile(
    r"(btl|pml|mtl|osc|coll|topo|io|fcoll|sharedfp|mpi|ucx|opal_common_ucx)(_.*)?"
)
_REACHES_OUT = re.compile(r"file|path|dir|agent|cmd|command|exec|lib|plugin|preload|url|server")
"""In names of parameters whose values are files or programs."""
_VALUE = re.compile(r"[A-Za-z0-9_.,:^=+-]*")
_OWN_VARIABLES = ("OMPI_", "OPAL_", "ORTE_", "PMIX_", "PRTE_")
_PARAMETER_VARIABLE = "OMPI_MCA_"
_AT_A_TIME = 128
"""Hosts that are entered at a time by default."""


class OpenMpiLauncher:
    """Builds the command lines of one Open MPI `mpirun`, a path or a name to look up in PATH.

    ``version`` is it in full; ``root`` tells whether it is run by root, which it refuses unless
    told that this is meant. ``allow`` names options and parameters that users may add although
    they are refused otherwise.
    """

    name = "openmpi"

    def __init__(
        self, mpirun: str, *, version: str, root: bool, allow: Collection[str] = ()
    ) -> None:
        self.mpi = f"{OPEN_MPI} {version}"
        self._mpirun = mpirun
        self._major = int(version.partition(".")[0])
        self._root = root
        self._allow = frozenset(allow)

    def command(self, ranks: Ranks, argv: Sequence[str]) -> tuple[str, ...]:
        """Build the command line that runs ``argv`` as these ranks. Raises `LaunchError`."""
        check_program(argv)
        command = (*self._front(ranks), *argv)
        return guarded(command, argv[0], self.mpi) if ranks.guard else command

    def _front(self, ranks: Ranks) -> tuple[str, ...]:
        check_args(
            ranks.args,
            _HARMLESS | dict.fromkeys(_SETS, 2),
            self._check_values,
            others=_OTHERS,
            allow=self._allow,
        )
        return (
            self._mpirun,
            *(("--allow-run-as-root",) if self._root else ()),
            *("-np", str(check_np(ranks.np))),
            *self._spanning(ranks),
            *self._environment(ranks.env),
            *self._bound(binding(ranks), wished=ranks.wished),
            *self._sharing(ranks.oversubscribe),
            *ranks.args,
        )

    def environment(self, ranks: Ranks) -> dict[str, str]:
        """Give no variables: all is said on the command line."""
        del ranks
        return {}

    def files(self, ranks: Ranks) -> Mapping[str, str]:
        """Give the files, by their names, that have to lie in the folder of the span's agent."""
        return host_files(ranks)

    def _spanning(self, ranks: Ranks) -> tuple[str, ...]:
        span = check_span(ranks)
        if span is None:
            return ()
        if self._major < 5:
            kind, agent = "--mca", "rsh"
            attached: tuple[str, ...] = ("--mca", "orte_leave_session_attached", "1")
        else:
            kind, agent = "--prtemca", "ssh"
            attached = ("--leave-session-attached",)
        return (
            *("--hostfile", openmpi_hosts(span)),
            *(kind, "plm", agent),
            *(kind, f"plm_{agent}_agent", span.agent),
            # The agent is on this host alone.
            *(kind, f"plm_{agent}_no_tree_spawn", "1"),
            # Each agent lasts: the start of another one must not wait for its end.
            *(kind, f"plm_{agent}_num_concurrent", str(max(_AT_A_TIME, len(span.hosts)))),
            *attached,
            *self._connecting(ranks, span),
        )

    def _connecting(self, ranks: Ranks, span: Span) -> tuple[str, ...]:
        if span.network is None:
            return ()
        said = any(
            word.removeprefix(_PARAMETER_VARIABLE).startswith("btl_tcp_if_")
            for word in (*ranks.args, *ranks.env)
        )
        of_ranks = () if said else ("--mca", "btl_tcp_if_include", span.network)
        # The daemons of Open MPI 5 do not find the network that they are in, and warn (5.0.7 and
        # 5.0.11, tried): they try all of each other's addresses.
        of_daemons = ("--mca", "oob_tcp_if_include", span.network) if self._major < 5 else ()
        return (*of_daemons, *of_ranks)

    def _bound(self, bind: str | None, *, wished: bool) -> tuple[str, ...]:
        match bind:
            case None:
                return ()
            case "core" if wished:
                # Else it gives up where a host has fewer cores than it was given slots.
                bind = "core:overload-allowed"
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

    def _environment(self, names: tuple[str, ...]) -> tuple[str, ...]:
        words: list[str] = []
        for name in names:
            if name.startswith(_PARAMETER_VARIABLE):
                # Read by mpirun itself, which hands it on.
                self._check_parameter("env", name.removeprefix(_PARAMETER_VARIABLE))
            elif name.startswith(_OWN_VARIABLES):
                raise LaunchError(f"env: {name} would configure mpirun itself: use mpi.args")
            else:
                words += ("-x", name)
        return tuple(words)

    def _check_values(self, option: str, values: Sequence[str]) -> None:
        if option in _SETS:
            if values[0] in self._allow:
                return
            self._check_parameter(f"mpi.args: -{option}", values[0], harmless=option == "mca")
        for value in values:
            if not _VALUE.fullmatch(value) or "file" in value.lower():
                raise LaunchError(f"mpi.args: -{option} {value!r} is refused: it is no plain word")

    def _check_parameter(self, where: str, name: str, *, harmless: bool = True) -> None:
        if name in self._allow:
            return
        if not harmless or not _PARAMETER.fullmatch(name) or _REACHES_OUT.search(name):
            raise LaunchError(
                f"{where} {name} is refused; what can be set are parameters of btl, pml, mtl, osc, "
                "coll, topo, io, mpi and ucx that name no files and no programs, and what the "
                "operator adds by mpi.allow"
            )
