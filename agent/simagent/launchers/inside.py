"""The `mpirun` of a task's own image, whichever it is: it runs inside of the container.

Only what Open MPI 4 and 5 and MPICH's Hydra have in common stands on the command line; the rest is
said by variables, which those who do not know them leave alone.
"""

import re
from collections.abc import Collection, Mapping, Sequence
from typing import Final

from simagent.launchers.arguments import binding, check_np, check_program
from simagent.launchers.guard import guarded
from simagent.launchers.spans import check_span, host_files, hydra_hosts, openmpi_hosts
from simagent.ports.launcher import LaunchError, Ranks, Span

_ENVIRONMENT: Final = {
    # A container's root is no one's account that could come to harm.
    "OMPI_ALLOW_RUN_AS_ROOT": "1",
    "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
}
_OVERSUBSCRIBE: Final = {
    "OMPI_MCA_rmaps_base_oversubscribe": "1",
    "PRTE_MCA_rmaps_default_mapping_policy": ":oversubscribe",
}
_BOUND: Final = {"PRTE_MCA_hwloc_default_binding_policy": "core:if-supported:overload-allowed"}
_BOUND_WITH_MEMORY: Final = {
    "OMPI_MCA_hwloc_base_binding_policy": "core:if-supported,overload-allowed",
    "HYDRA_BINDING": "core",
}
"""Open MPI 4 binds memory, too, and warns where it cannot; Hydra ends (4.1.4 and 5.0.2, tried)."""
_UNBOUND: Final = {"OMPI_MCA_hwloc_base_binding_policy": "none"}


_ENTERS: Final = re.compile(
    r"-{1,2}(launch-agent|launcher|launcher-exec|bootstrap|bootstrap-exec|rmk)(=.*)?"
    r"|(plm|ras|ess|orte|prte|oob)(_.*)?"
)
"""Options and parameters that say how `mpirun` comes to other hosts, which only the agent can."""
_NAMES_HOSTS: Final = re.compile(
    r"-{1,2}(f|H|hosts?|hostfile|machinefile|machine-file|default-hostfile|configfile)(=.*)?"
)
_AT_A_TIME: Final = 128
_LIST: Final = "OMPI_MCA_mca_base_env_list"


class InsideLauncher:
    """Builds command lines for any `mpirun` that is in the PATH of an image.

    It reaches no further than the task itself, and than the containers of the same task on other
    hosts: what else it is told is the user's own business. ``allow`` names options and parameters
    that users may add although they are refused otherwise.
    """

    name = "inside"
    mpi = ""

    def __init__(self, *, allow: Collection[str] = ()) -> None:
        self._allow = frozenset(allow)

    def command(self, ranks: Ranks, argv: Sequence[str]) -> tuple[str, ...]:
        """Build the command line that runs ``argv`` as these ranks. Raises `LaunchError`."""
        check_program(argv)
        command = (*self._front(ranks), *argv)
        return guarded(command, argv[0]) if ranks.guard else command

    def _front(self, ranks: Ranks) -> tuple[str, ...]:
        self._check_args(ranks)
        check_span(ranks)
        bind = None if _is_wished(ranks) else binding(ranks)
        bound = () if bind is None else ("--bind-to", bind)
        named = [word for name in ranks.env for word in ("-x", name)] if _names(ranks) else []
        return ("mpirun", "-np", str(check_np(ranks.np)), *named, *bound, *ranks.args)

    def environment(self, ranks: Ranks) -> dict[str, str]:
        """Give the variables that `mpirun` has to see beside the step's own."""
        return (
            _ENVIRONMENT
            | (_OVERSUBSCRIBE if ranks.oversubscribe else {})
            | (_bound(ranks) if _is_wished(ranks) else {})
            | (_spanning(ranks.span) if ranks.span is not None else {})
            # What Open MPI hands on to the ranks of other hosts; Hydra hands on all.
            | ({} if not ranks.span or _names(ranks) else {_LIST: ";".join(ranks.env)})
        )

    def files(self, ranks: Ranks) -> Mapping[str, str]:
        """Give the files, by their names, that have to lie in the folder of the span's agent."""
        return host_files(ranks)

    def _check_args(self, ranks: Ranks) -> None:
        for word in ranks.args:
            if word.lstrip("-").partition("=")[0] in self._allow:
                continue
            if _ENTERS.fullmatch(word) or (ranks.span and _NAMES_HOSTS.fullmatch(word)):
                raise LaunchError(
                    f"mpi.args: {word} is refused: the agent says on which hosts ranks are, and how"
                    " they get there; the operator can allow it by mpi.allow"
                )


def _is_wished(ranks: Ranks) -> bool:
    """Tell whether ranks are to be bound to cores where that works."""
    return ranks.wished and binding(ranks) == "core"


def _bound(ranks: Ranks) -> dict[str, str]:
    """Say it to each that `mpirun` may be, in as far as it works and says nothing."""
    return _BOUND | (_BOUND_WITH_MEMORY if ranks.memory else _UNBOUND)


def _names(ranks: Ranks) -> bool:
    """Tell whether variables are named by options, as only Open MPI has it: both it refuses."""
    return ranks.span is not None and any(word in ("-x", "--x") for word in ranks.args)


def _spanning(span: Span) -> dict[str, str]:
    """Say the hosts to all that `mpirun` may be; what each says twice, it says in two versions."""
    most = str(max(_AT_A_TIME, len(span.hosts)))
    said = {
        "HYDRA_HOST_FILE": hydra_hosts(span),
        "HYDRA_LAUNCHER": "ssh",
        "HYDRA_LAUNCHER_EXEC": span.agent,
        "OMPI_MCA_orte_default_hostfile": openmpi_hosts(span),
        "OMPI_MCA_orte_leave_session_attached": "1",
        "OMPI_MCA_plm": "rsh",
        "OMPI_MCA_plm_rsh_agent": span.agent,
        "OMPI_MCA_plm_rsh_no_tree_spawn": "1",
        "OMPI_MCA_plm_rsh_num_concurrent": most,
        "PRTE_MCA_prte_default_hostfile": openmpi_hosts(span),
        "PRTE_MCA_plm": "ssh",
        "PRTE_MCA_plm_ssh_agent": span.agent,
        "PRTE_MCA_plm_ssh_no_tree_spawn": "1",
        "PRTE_MCA_plm_ssh_num_concurrent": most,
    }
    if span.network is not None:
        names = ("OMPI_MCA_oob_tcp_if_include", "OMPI_MCA_btl_tcp_if_include")
        said |= dict.fromkeys(names, span.network)
    return said
