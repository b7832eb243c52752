"""What of its machine each running attempt was given, and whether there is room for one more.

Nothing is measured: what was given counts, whether it is used or not. So it adds up the same after
a restart, from the journals alone.
"""

import math
import os
import re
import zlib
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from simagent.domain.quantities import size_text
from simagent.domain.spec import Resources
from simagent.domain.state import Record

_NVIDIA = Path("/proc/driver/nvidia/gpus")
_UUID = re.compile(r"^GPU UUID:\s*(GPU-\S+)", re.MULTILINE)
_NEARLY = 1e-9
"""Cores: parts of them do not add up exactly."""


class Share(Record):
    """What an attempt was given. None of `cpus` or `memory` (bytes) is all there is.

    ``slot`` counts from 0, the lowest that is free. ``cores`` are the numbers of those it is bound
    to. ``gpu_ids`` names its GPUs where the agent knows them, ``gpus`` tells how many it asked for.
    """

    slot: int = 0
    cpus: float | None = None
    memory: int | None = None
    gpus: int = 0
    gpu_ids: tuple[str, ...] = ()
    disk: int | None = None
    cores: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """What there is to share. ``gpus`` is empty where it is not known which there are."""

    cores: tuple[int, ...]
    memory: int
    gpus: tuple[str, ...] = ()


def this_machine(gpus: Collection[str] = (), *, agent: str = "") -> Machine:
    """Tell what this machine has; ``gpus`` are those it may give away, if not all of NVIDIA's.

    Several agents on one machine do not begin with the same core.
    """
    cores = sorted(os.sched_getaffinity(0))
    first = zlib.crc32(agent.encode()) % len(cores)
    return Machine(
        cores=(*cores[first:], *cores[:first]),
        memory=psutil.virtual_memory().total,
        gpus=tuple(gpus) or nvidia_gpus(),
    )


def nvidia_gpus(folder: Path = _NVIDIA) -> tuple[str, ...]:
    """Name the GPUs that NVIDIA's driver knows, by their UUIDs: numbers differ between tools."""
    found = []
    for path in sorted(folder.glob("*/information")):
        try:
            match = _UUID.search(path.read_text(errors="replace"))
        except OSError:
            continue
        if match:
            found.append(match[1])
    return tuple(found)


def lacks(
    asked: Resources, machine: Machine, slots: int, taken: Sequence[Share], *, room: int = 0
) -> str | None:
    """Tell what a task would lack beside what was ``taken``; None where there is room for it.

    ``room`` is the bytes of disk that are free and not promised to others.
    """
    if slots == 1:
        return None  # it has the machine to itself
    cpus, memory = _wanted(asked, machine, slots)
    free = len(machine.cores) - sum(len(machine.cores) if s.cpus is None else s.cpus for s in taken)
    if cpus > free + _NEARLY:
        what = _needed(f"{cpus:.4g}", asked.cpus)
        return f"cpus: {what}, {max(0.0, free):.4g} are free beside what runs here"
    left = machine.memory - sum(machine.memory if s.memory is None else s.memory for s in taken)
    if memory > left:
        what = _needed(size_text(memory), asked.memory)
        return f"memory: {what}, {size_text(max(0, left))} are free beside what runs here"
    gpus = asked.gpus or 0
    if machine.gpus and gpus > len(_gpus(machine, taken)):
        return f"gpus: {gpus} are asked for, {len(_gpus(machine, taken))} are free here"
    if gpus and not machine.gpus and any(share.gpus for share in taken):
        return "gpus: it is not known which there are, and a task has some"
    if asked.disk is not None and any(share.disk for share in taken) and asked.disk > room:
        there = f"{size_text(max(0, room))} are free that are not promised to what runs here"
        return f"disk: {size_text(asked.disk)} are asked for, {there}"
    return None


def share(asked: Resources, machine: Machine, slots: int, taken: Sequence[Share]) -> Share:
    """Give a task its share; whether there is room for it is told by `lacks`."""
    used = {each.slot for each in taken}
    slot = next(number for number in range(len(used) + 1) if number not in used)
    ids = _gpus(machine, taken)[: asked.gpus or 0]
    given = alone(asked).with_(slot=slot, gpu_ids=ids)
    if slots == 1:
        return given
    cpus, memory = _wanted(asked, machine, slots)
    return given.with_(cpus=cpus, memory=memory, cores=_cores(machine, cpus, taken))


def alone(asked: Resources) -> Share:
    """Give a task what it asks for, on a machine that it has to itself."""
    return Share(cpus=asked.cpus, memory=asked.memory, gpus=asked.gpus or 0, disk=asked.disk)


def _wanted(asked: Resources, machine: Machine, slots: int) -> tuple[float, int]:
    """Tell the cores and the bytes of memory that a task is to have: unless it says, its part."""
    cpus = len(machine.cores) / slots if asked.cpus is None else asked.cpus
    return cpus, machine.memory // slots if asked.memory is None else asked.memory


def _gpus(machine: Machine, taken: Sequence[Share]) -> tuple[str, ...]:
    """Name the GPUs that nobody has."""
    given = {name for each in taken for name in each.gpu_ids}
    return tuple(name for name in machine.gpus if name not in given)


def _cores(machine: Machine, cpus: float, taken: Sequence[Share]) -> tuple[int, ...]:
    """Choose the cores with the least on them: nobody else's, where all are given whole ones."""
    load = dict.fromkeys(machine.cores, 0.0)
    for each in taken:
        for core in each.cores:
            load[core] = load.get(core, 0.0) + (each.cpus or 0.0) / len(each.cores)
    return tuple(sorted(machine.cores, key=lambda core: load[core])[: math.ceil(cpus - _NEARLY)])


def _needed(amount: str, asked: float | None) -> str:
    if asked is None:
        return f"{amount} are its part of this machine"
    return f"{amount} are asked for"
