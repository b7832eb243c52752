"""The task by which `simagent mpi check` looks at MPI: the probe, and what finds it a Python."""

import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from simagent import mpi_probe
from simagent.api import Spec
from simagent.api.specs import to_spec
from simagent.config import Config

_PROBE: Final = "mpi-check.py"
_SCRIPT: Final = "mpi-check.sh"
_TIME_LIMIT: Final = 900.0

# Whichever of the shells it gets. What is left without any Python is told by the shell itself.
_START: Final = f"""\
first=
agent=$(command -v simagent) && read -r agent < "$agent" && agent=${{agent#"#!"}}
for python in "$@" "$agent" python3 /usr/bin/python3 python; do
    command -v "$python" >/dev/null 2>&1 || continue
    "$python" -c 'import sys; sys.exit(sys.version_info < (3, 7))' 2>/dev/null || continue
    first=${{first:-$python}}
    "$python" {_PROBE} meet
    code=$?
    [ "$code" -eq {mpi_probe.UNSUITED} ] || exit "$code"
done
[ -z "$first" ] || exec "$first" {_PROBE} alone
read -r host < /proc/sys/kernel/hostname
library=$(mpirun --version 2>/dev/null | while read -r line; do
    case $line in
    mpirun*) echo "${{line#mpirun }}" && break ;;
    Version:*) echo "MPICH $line" && break ;;
    esac
done)
rank=${{OMPI_COMM_WORLD_RANK:-${{PMIX_RANK:-${{PMI_RANK:-null}}}}}}
size=${{OMPI_COMM_WORLD_SIZE:-${{PMI_SIZE:-null}}}}
record='{{"id": "'$host-$$'", "host": "'$host'", "told": ['$rank', '$size'],'
record=$record' "library": "'$library'", "python": null, "met": false}}'
mkdir -p {mpi_probe.FOLDER}
echo "$record" > "{mpi_probe.FOLDER}/$host-$$.json"
echo "{mpi_probe.MARK}$record"
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What is to be checked: ``np`` ranks, on ``hosts`` hosts, in an ``image`` or without."""

    np: int | str = "max"
    hosts: int | None = None
    ranks_per_host: int | None = None
    image: str | None = None
    runtime: str | None = None
    version: str | None = None


def write_inputs(folder: Path) -> None:
    """Write the files that the task needs into a folder."""
    shutil.copyfile(mpi_probe.__file__, folder / _PROBE)
    (folder / _SCRIPT).write_text(_START)


@contextmanager
def probe_inputs() -> Iterator[Path]:
    """Give a folder with these files."""
    with tempfile.TemporaryDirectory(prefix="simagent-mpi-check-") as name:
        write_inputs(Path(name))
        yield Path(name)


def check_spec(asked: Asked, config: Config, inputs: Path) -> Spec:
    """Make the task, with these inputs. Raises `UsageError`."""
    # Without an image that Python may be there, and be the one that has mpi4py.
    pythons = [] if asked.image else [sys.executable]
    mpi: dict[str, Any] = {
        "np": asked.np,
        "hosts": asked.hosts,
        "ranks_per_host": asked.ranks_per_host,
        "version": asked.version,
    }
    fields: dict[str, Any] = {
        "name": "mpi check",
        "image": asked.image,
        "runtime": asked.runtime or "auto",
        "inputs": [str(inputs)],
        "commands": [
            {
                "run": ["/bin/sh", _SCRIPT, *pythons],
                "mpi": {name: value for name, value in mpi.items() if value is not None},
            }
        ],
        "outputs": {"include": [f"{mpi_probe.FOLDER}/*"]},
        "time_limit": _TIME_LIMIT,
        "max_attempts": 1,
    }
    spec, _ = to_spec(None, {k: v for k, v in fields.items() if v is not None}, config)
    return spec
