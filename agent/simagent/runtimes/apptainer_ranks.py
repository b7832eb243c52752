"""Ranks that a program of the host starts, each in an Apptainer container: hybrid MPI.

Containers of one host share their memory, as ranks without containers do: that in /dev/shm lies in
a folder of the attempt's own, and no process has numbers, or means of communication, of a container
alone. What an MPI tells its ranks by variables passes into the containers. A rank that does not see
there how many it is one of does not begin: it would be a job of its own, and succeed.
"""

import hashlib
import shlex
import stat
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final

from simagent.domain.mpi import goes_with
from simagent.ports.runtime import StepPlan
from simagent.runtimes.workplace import remove_folder

FLAGS: Final = (
    "--contain",
    "--cleanenv",
    "--no-home",
    "--writable-tmpfs",
    "--no-mount=/etc/localtime",
    "--pwd=/",
)
_REFUSED = 93
"""`simagent.ports.launcher.GUARD_CODE`."""
_SHM: Final = Path("/dev/shm")  # noqa: S108 - where MPI has the memory that ranks share

_REFUSE = f"""\
refuse() {{
    printf 'simagent: mpi_mismatch: %s\\n' "$1" >&2
    exit {_REFUSED}
}}
"""

# In the container, by its shell: shells of images may have no other program at hand.
_LOOK = (
    _REFUSE
    + r"""
program=$1 host=$2
shift 2
linked=
file=$(command -v -- "$program") && linked=$(ldd "$file" 2>/dev/null)
case $linked in
*libopen-pal.so* | *libmpi.so.[2-9][0-9]*) linked='Open MPI' ;;
*libmpi.so.12* | *libmpich*.so*) linked=MPICH ;;
*) linked= ;;
esac
[ "${linked:-${host% *}}" = "${host% *}" ] ||
    refuse "$program in the image is linked with $linked, mpirun on the host is $host: each rank \
would be a job of its own; install $linked on the host, or set mpi.force"
flavour= version=
[ ! -r /.singularity.d/labels.json ] || while IFS='"' read -r _ name _ value _; do
    case $name in
    simagent.mpi.flavour) flavour=$value ;;
    simagent.mpi.version) version=$value ;;
    esac
done </.singularity.d/labels.json
case $flavour in
openmpi) flavour='Open MPI' ;;
mpich | hydra) flavour=MPICH ;;
esac
if [ -z "$flavour" ] || [ -z "$version" ]; then
    told=$(mpirun --version 2>/dev/null)
    case $told in
    *"(Open"*") "*) flavour='Open MPI' version=${told#*"(Open"*") "} ;;
    *HYDRA*) flavour=MPICH version=${told#*Version:} ;;
    *) flavour=$linked version= ;;
    esac
    version=${version#"${version%%[0-9]*}"} version=${version%%[!0-9a-z.]*}
fi
for fits; do
    case "$flavour $version" in
    $fits) exit 0 ;;
    esac
done
[ -n "$flavour" ] || refuse "the image does not tell which MPI it has, to go with $host of the \
host: label it simagent.mpi.flavour and simagent.mpi.version, or set mpi.force"
refuse "the image has $flavour ${version:-of an unknown version}, which does not go with $host of \
the host: each rank would be a job of its own; use another version, or set mpi.force"
"""
)

# Of what an MPI is told, its own folders on the host are not those in the image.
_RANK = (
    _REFUSE
    + r"""
size=${OMPI_COMM_WORLD_SIZE:-${PMI_SIZE:-}}
[ "$size" = @NP@ ] || refuse "a rank was started that does not know of the others"
for name in $(env | sed -n 's/^\(\(OMPI\|PMIX\|PRTE\|PMI\|HYDRA\)_[A-Za-z0-9_]*\)=.*/\1/p'); do
    case $name in
    *_PREFIX | *_component_path) ;;
    *) eval "export APPTAINERENV_$name=\"\${$name}\"" ;;
    esac
done
# Containers of one user cannot open each other's files in /proc, which UCX would try.
export APPTAINERENV_UCX_POSIX_USE_PROC_LINK=n APPTAINERENV_SIMAGENT_RANKS=@NP@
"""
)

IN_CONTAINER: Final = f"""\
if [ -n "$SIMAGENT_RANKS" ] && [ "${{OMPI_COMM_WORLD_SIZE:-$PMI_SIZE}}" != "$SIMAGENT_RANKS" ]; then
    echo 'simagent: mpi_mismatch: what mpirun tells its ranks does not reach the container' >&2
    exit {_REFUSED}
fi
unset SIMAGENT_RANKS
"""
"""Before the program starts: whether it will find the other ranks."""


def shared_memory(plan: StepPlan) -> Path:
    """Name the folder of the memory that the ranks of an attempt share on each host.

    It is short, for the sockets that MPI has in it (unix(7)); two projects may use one task id.
    """
    assert plan.sandbox is not None
    labels = plan.sandbox.labels
    names = ("simagent.project", "simagent.task", "simagent.epoch")
    known = [labels[name] for name in names if name in labels] or [str(plan.folder.parent)]
    return _SHM / f"simagent.{hashlib.sha256('/'.join(known).encode()).hexdigest()[:20]}"


def forget_memory(plan: StepPlan) -> None:
    """Remove what the ranks of a step that has ended left in memory; what is not theirs stays."""
    assert plan.sandbox is not None
    memory = shared_memory(plan)
    with suppress(OSError):
        status = memory.lstat()
        if stat.S_ISDIR(status.st_mode) and status.st_uid == plan.sandbox.uid:
            remove_folder(memory)


def look(plan: StepPlan) -> list[str]:
    """Give the arguments of a shell in the container that looks whether its MPI is the right one.

    Nothing where it is not to look.
    """
    assert plan.launch is not None
    host = plan.launch.mpi
    return ["-c", _LOOK, "mpi-look", plan.argv[0], host, *goes_with(host)] if host else []


def rank_script(plan: StepPlan, container: Sequence[str]) -> str:
    """Write what each rank runs on its host: the command line of its container."""
    assert plan.launch is not None
    return f"{_RANK.replace('@NP@', str(plan.launch.np))}exec {shlex.join(container)}\n"


def launch_script(plan: StepPlan, *, rank: Path, mark: Path, look: Sequence[str]) -> str:
    """Write what starts the ranks, once ``look``, if that is not empty, found the right MPI."""
    assert plan.launch is not None
    memory = shared_memory(plan)
    folder = shlex.quote(str(memory))
    variables = {
        **plan.launch.env,
        # Where an MPI and its ranks meet: at one path on the host and in containers.
        "OMPI_MCA_orte_tmpdir_base": str(memory),
        "PRTE_MCA_prte_tmpdir_base": str(memory),
        "SIMAGENT_RANK": str(rank),
    }
    lines = [
        f"mkdir -m 700 {folder} 2>/dev/null || [ -O {folder} ] ||",
        f"    {{ echo {shlex.quote(f'{memory} is of another user: remove it')} >&2; exit 1; }}",
        f"ln -sfn . {folder}/{shlex.quote(memory.name)}",
    ]
    if look:
        lines += [
            shlex.join(look),
            f"[ $? != {_REFUSED} ] || exit {_REFUSED}",
            f"printf '?' 1<>{shlex.quote(str(mark))}",
        ]
    lines += [f"export {name}={shlex.quote(value)}" for name, value in variables.items()]
    return "\n".join([*lines, f"exec {shlex.join(plan.launch.argv)}", ""])
