"""What a command looks at before it becomes ranks, on the host or in the container, by its shell.

A program that is linked with another MPI than that of `mpirun` would not fail: each of its
processes takes itself for the only rank of a job of its own. So its libraries are listed by ldd.
Scripts, programs linked statically and images without ldd are not judged.
"""

from collections.abc import Sequence
from typing import Final

from simagent.ports.launcher import GUARD_CODE

OPEN_MPI: Final = "Open MPI"
MPICH: Final = "MPICH"

# libmpi.so.12 is MPICH's, and what has its ABI (Intel MPI, MVAPICH), but was Open MPI 1.8's, too:
# that also shows libopen-pal, as all of Open MPI do. libmpi_abi.so is anybody's.
_GUARD: Final = rf"""
refuse() {{
    printf 'simagent: %s: %s\n' "$1" "$2" >&2
    exit {GUARD_CODE}
}}
flavour=$1 program=$2
shift 2
command -v "$1" >/dev/null ||
    refuse mpi_unavailable "$1: no such program here (PATH is $PATH): install Open MPI or MPICH"
file=$(command -v -- "$program") && linked=$(ldd "$file" 2>/dev/null) || linked=
case $linked in
*libopen-pal.so* | *libmpi.so.[2-9][0-9]*) has='Open MPI' ;;
*libmpi.so.12* | *libmpich*.so*) has=MPICH ;;
*) exec "$@" ;;
esac
[ -n "$flavour" ] || case $("$1" --version 2>/dev/null) in
*Open*MPI* | *OpenRTE* | *PRTE* | *PRRTE*) flavour='Open MPI' ;;
*HYDRA* | *Hydra* | *Intel*) flavour=MPICH ;;
*) flavour=$has ;;
esac
[ "$has" = "$flavour" ] || refuse mpi_mismatch "$program is linked with $has, $1 is of $flavour: \
each rank would be a job of its own; use a program built for $flavour, or set mpi.force"
exec "$@"
"""


def guarded(command: Sequence[str], program: str, flavour: str = "") -> tuple[str, ...]:
    """Put the guard in front of a command line that runs ``program`` as ranks.

    ``flavour`` is whose the `mpirun` is; without it, it is asked.
    """
    return ("/bin/sh", "-c", _GUARD, "mpi-guard", flavour, program, *command)
