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
# that also shows libopen-pal, as all of Open MPI do; since 5.0 it is libopen-pal.so.80.
# libmpi_abi.so is anybody's.
_GUARD: Final = rf"""
refuse() {{
    printf 'simagent: %s: %s\n' "$1" "$2" >&2
    exit {GUARD_CODE}
}}
whose=$1 program=$2
shift 2
command -v "$1" >/dev/null ||
    refuse mpi_unavailable "$1: no such program here (PATH is $PATH): install Open MPI or MPICH"
file=$(command -v -- "$program") && linked=$(ldd "$file" 2>/dev/null) || linked=
case $linked in
*libopen-pal.so.[1-7]*) has='an Open MPI before 5.0' ;;
*libopen-pal.so* | *libmpi.so.[2-9][0-9]*) has='Open MPI' ;;
*libmpi.so.12* | *libmpich*.so*) has=MPICH ;;
*) exec "$@" ;;
esac
if [ -z "$whose" ]; then
    told=$("$1" --version 2>/dev/null)
    case $told in
    *"(Open"*") "[0-9]*)
        told=${{told#*"(Open"*") "}}
        whose="Open MPI ${{told%%[!0-9.]*}}"
        ;;
    *HYDRA* | *Hydra* | *Intel*) whose=MPICH ;;
    *) exec "$@" ;;
    esac
fi
case "$has, $whose" in
"MPICH, MPICH"* | "Open MPI, Open MPI"* | *"before 5.0, Open MPI "[1-4].*) exec "$@" ;;
*"before 5.0, Open MPI "*)
    # Its mpirun shows its own library first to ranks, which goes in the place of an older one.
    here=$(command -v "$1")
    path=${{here%/*}}/../lib${{LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}}
    case $(LD_LIBRARY_PATH=$path ldd "$file" 2>/dev/null) in
    *libopen-pal.so.[1-7]*) ;;
    *) exec "$@" ;;
    esac
    ;;
esac
refuse mpi_mismatch "$program is linked with $has, $1 is of $whose: each rank would be a job of \
its own; use a program built for $whose, or set mpi.force"
"""


def guarded(command: Sequence[str], program: str, whose: str = "") -> tuple[str, ...]:
    """Put the guard in front of a command line that runs ``program`` as ranks.

    ``whose`` the `mpirun` is, such as ``Open MPI 5.0.7``; without that, it is asked.
    """
    return ("/bin/sh", "-c", _GUARD, "mpi-guard", whose, program, *command)
