"""The cores that MPI ranks get: how many there are, and how many threads are left to each rank."""

import math
import os
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from simagent.domain.spec import Mpi
from simagent.ports.launcher import Host

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


def has_all_cpus() -> bool:
    """Tell whether this process may use all CPUs of the machine."""
    return len(os.sched_getaffinity(0)) == os.cpu_count()


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """How the ranks of a step lie on the cores of its task: how many, and bound to what."""

    np: int
    threads: int
    """What each rank may run at a time, so that no core has two; at least one."""
    bind: str | None
    hosts: tuple[Host, ...] = ()
    """Of ranks on several hosts: these, this one first, with the ranks of each as its slots."""
    trouble: str | None = None
    """Why they are not to be started."""


def lay_out(
    mpi: Mpi,
    *,
    cpus: float | None = None,
    cores: Collection[int] = (),
    alone: bool = True,
    slots: int | None = None,
    hosts: Sequence[Host] = (),
) -> Layout:
    """Lay out the ranks of a step: one a core, or a hardware thread where they are bound to those.

    ``cpus`` is what the task has of the machine, None: all; ``cores`` what it is bound to already,
    if it is; ``slots`` are the ranks that the machine takes where that was set. Ranks are bound to
    cores of their own where each has one and the task is ``alone`` on them; otherwise not unless
    asked: two tasks would be bound to the same ones.

    ``hosts`` are those of a cluster, this one first. As many of them are used as the step asks for;
    where it does not say, as few as its ranks need.
    """
    if mpi.hosts != 1 and (len(hosts) > 1 or mpi.hosts is not None):
        layout = _lay_over(mpi, [_within(host, cpus) for host in hosts], alone and not cores)
        if layout is not None:
            return layout
    hwthread = mpi.bind == "hwthread"
    there = len(cores or os.sched_getaffinity(0)) if hwthread else physical_cores(cores)
    most = there if slots is None else slots
    most = most if cpus is None else min(most, math.ceil(cpus))
    np = (mpi.ranks_per_host or most) if mpi.np == "max" else mpi.np
    own = alone and np == there and not cores
    trouble = None
    if mpi.ranks_per_host is not None and np > mpi.ranks_per_host:
        trouble = (
            f"mpi.ranks_per_host: {np} ranks are asked for, {mpi.ranks_per_host} on each host, and "
            "there is one host: ask for more on it"
        )
    elif np > most and not mpi.oversubscribe:
        what = "hardware threads" if hwthread else "cores"
        trouble = (
            f"mpi.np: {np} ranks are asked for, there are {most} "
            f"{what if slots is None else 'slots'} for them: ask for fewer, or set "
            "mpi.oversubscribe"
        )
    return Layout(
        np=np,
        threads=max(1, most // np),
        bind=mpi.bind or ("core" if own else "none"),
        trouble=trouble,
    )


def _within(host: Host, cpus: float | None) -> Host:
    """Bound a host's slots by what the task asks for of each."""
    return host if cpus is None else replace(host, slots=min(host.slots, math.ceil(cpus)))


def _lay_over(mpi: Mpi, hosts: Sequence[Host], alone: bool) -> Layout | None:
    """Lay ranks out over hosts; None where they lie on the first alone."""
    trouble = _too_many(mpi, hosts)
    if trouble is not None:
        return Layout(np=0, threads=1, bind=None, trouble=trouble)
    room = [mpi.ranks_per_host or host.slots for host in hosts[: mpi.hosts]]
    np = sum(room) if mpi.np == "max" else mpi.np
    if mpi.hosts is not None:
        ranks = _level(room, np)
    elif np > sum(room):
        ranks = _level([np] * len(room), np) if mpi.ranks_per_host is None else room
    else:
        ranks = _filled(room, np)
    used = [(host, count) for host, count in zip(hosts, ranks, strict=False) if count]
    if len(used) < 2:
        return None
    full = all(count == host.slots for host, count in used)
    return Layout(
        np=np,
        threads=max(1, min(host.slots // count for host, count in used)),
        bind=mpi.bind or ("core" if full and alone else "none"),
        hosts=tuple(replace(host, slots=count) for host, count in used),
    )


def _too_many(mpi: Mpi, hosts: Sequence[Host]) -> str | None:
    """Tell what is asked for that these hosts do not have, None where they have it."""
    there = max(1, len(hosts))
    if mpi.hosts is not None and mpi.hosts > there:
        have = "there is no more than this one" if there == 1 else f"the cluster has {there}"
        return f"mpi.hosts: {mpi.hosts} hosts are asked for, {have}: ask for fewer"
    used = hosts[: mpi.hosts]
    each = mpi.ranks_per_host
    if each is not None and not mpi.oversubscribe:
        small = min(used, key=lambda host: host.slots)
        if each > small.slots:
            return (
                f"mpi.ranks_per_host: {each} are asked for, {small.address} has {small.slots} slots"
                ": ask for fewer, or set mpi.oversubscribe"
            )
    if mpi.np == "max":
        return None
    if mpi.hosts is not None and mpi.np < mpi.hosts:
        return f"mpi.np: {mpi.np} ranks are too few for {mpi.hosts} hosts: ask for fewer hosts"
    if each is not None and mpi.np > each * len(used):
        return (
            f"mpi.np: {mpi.np} ranks are more than {each} on each of {len(used)} hosts: "
            "ask for fewer, or for more on each"
        )
    most = sum(host.slots for host in used)
    if mpi.np > most and not mpi.oversubscribe:
        return (
            f"mpi.np: {mpi.np} ranks are asked for, the {len(used)} hosts have {most} slots: "
            "ask for fewer, or set mpi.oversubscribe"
        )
    return None


def _filled(room: Sequence[int], np: int) -> list[int]:
    """Fill host after host."""
    ranks: list[int] = []
    for most in room:
        ranks.append(min(most, np - sum(ranks)))
    return ranks


def _level(room: Sequence[int], np: int) -> list[int]:
    """Give each host a rank in turn, as far as it has room; the rest beyond all room likewise."""
    ranks = [0] * len(room)
    while (left := np - sum(ranks)) > 0:
        open_ = [at for at, most in enumerate(room) if ranks[at] < most] or list(range(len(room)))
        each = max(1, left // len(open_))
        for at in open_[:left]:
            free = room[at] - ranks[at]
            ranks[at] += min(each, free) if free > 0 else each
    return ranks
