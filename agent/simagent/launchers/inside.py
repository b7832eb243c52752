"""The `mpirun` of a task's own image, whichever it is: it runs inside of the container.

Only what Open MPI 4 and 5 and MPICH's Hydra have in common stands on the command line; the rest is
said by variables, which those who do not know them leave alone.
"""

from collections.abc import Sequence
from typing import Final

from simagent.launchers.arguments import binding, check_np, check_program
from simagent.ports.launcher import Ranks

_ENVIRONMENT: Final = {
    # A container's root is no one's account that could come to harm.
    "OMPI_ALLOW_RUN_AS_ROOT": "1",
    "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
}
_OVERSUBSCRIBE: Final = {
    "OMPI_MCA_rmaps_base_oversubscribe": "1",
    "PRTE_MCA_rmaps_default_mapping_policy": ":oversubscribe",
}


class InsideLauncher:
    """Builds command lines for any `mpirun` that is in the PATH of an image.

    It reaches no further than the task itself: what else it is told is the user's own business.
    """

    name = "inside"

    def command(self, ranks: Ranks, argv: Sequence[str]) -> tuple[str, ...]:
        """Build the command line that runs ``argv`` as these ranks. Raises `LaunchError`."""
        check_program(argv)
        bind = binding(ranks)
        bound = () if bind is None else ("--bind-to", bind)
        return ("mpirun", "-np", str(check_np(ranks.np)), *bound, *ranks.args, *argv)

    def environment(self, ranks: Ranks) -> dict[str, str]:
        """Give the variables that `mpirun` has to see beside the step's own."""
        return _ENVIRONMENT | (_OVERSUBSCRIBE if ranks.oversubscribe else {})
