"""The cores that MPI ranks get: how many there are, and how many threads are left to each rank."""

import math
import os
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from simagent.domain.spec import Mpi

_CPUS = Path("/sys/devices/system/cpu")


def physical_cores(among: Collection[int] = (), *, cpus: Path = _CPUS) -> int:
    """Count the cores ``among`` some CPUs, or all that this process may use.

    Several hardware threads of one core count once: ``topology/thread_siblings_list`` of each CPU
    tells them (Linux, Documentation/ABI/stable/sysfs-devices-system-cpu). Where a machine does not
    tell, each CPU counts.
    """
    cores = set()
    for cpu in among or os.sched_getaffinity(0):
        try:
            text = (cpus / f"cpu{cpu}" / "topology" / "thread_siblings_list").read_text().strip()
        except OSError:
            text = str(cpu)
        cores.add(text)
    return len(cores)


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """How the ranks of a step lie on the cores of its task: how many, and bound to what."""

    np: int
    threads: int
    """What each rank may run at a time, so that no core has two; at least one."""
    bind: str | None
    trouble: str | None = None
    """Why they are not to be started."""


def lay_out(
    mpi: Mpi,
    *,
    cpus: float | None = None,
    cores: Collection[int] = (),
    alone: bool = True,
) -> Layout:
    """Lay out the ranks of a step: one a core, or a hardware thread where they are bound to those.

    ``cpus`` is what the task has of the machine, None: all; ``cores`` what it is bound to already,
    if it is. Ranks are bound to cores of their own where each has one and the task is ``alone`` on
    them; otherwise not unless asked: two tasks would be bound to the same ones.
    """
    hwthread = mpi.bind == "hwthread"
    there = len(cores or os.sched_getaffinity(0)) if hwthread else physical_cores(cores)
    slots = there if cpus is None else min(there, math.ceil(cpus))
    np = slots if mpi.np == "max" else mpi.np
    own = alone and np == there and not cores
    trouble = None
    if np > slots and not mpi.oversubscribe:
        trouble = (
            f"mpi.np: {np} ranks are asked for, there are {slots} "
            f"{'hardware threads' if hwthread else 'cores'} for them: ask for fewer, or set "
            "mpi.oversubscribe"
        )
    return Layout(
        np=np,
        threads=max(1, slots // np),
        bind=mpi.bind or ("core" if own else "none"),
        trouble=trouble,
    )
