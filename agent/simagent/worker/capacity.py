"""What a task asks of the machine, held against what the machine has."""

import os
import shutil
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import psutil

from simagent.domain.quantities import size_text
from simagent.domain.spec import Resources, Spec
from simagent.ports.launcher import LaunchError, Launchers
from simagent.ports.runtime import Runtime
from simagent.worker.choice import CONTAINERS, NoRuntimeError, Refusal, choose
from simagent.worker.disk import free_bytes
from simagent.worker.head import Head
from simagent.worker.hybrid import Mode, is_hybrid
from simagent.worker.spanning import choose_hosts


def refusal(
    spec: Spec,
    *,
    runtimes: Mapping[str, Runtime],
    preferred: Sequence[str] = CONTAINERS,
    allow_process: bool,
    launchers: Launchers,
    folder: Path,
    min_free: int,
    tags: Collection[str] = (),
    gpus: Collection[str] = (),
    mpi_slots: int | None = None,
    mpi_mode: Mode = "auto",
    head: Head | None = None,
    hosts_known: bool = True,
) -> Refusal | None:
    """Tell why an agent of this machine would not run a task, None where it would.

    What lasts goes before what may pass. ``tags`` are the agent's; ``gpus`` is empty where it is
    not known which the machine has. ``head`` is that of the cluster which it leads; it is
    not ``hosts_known`` which hosts there are before such a head runs.
    """
    passing, runtime = None, None
    try:
        runtime = choose(
            spec, runtimes, allow_process=allow_process, preferred=preferred, mode=mpi_mode
        )
    except NoRuntimeError as error:
        if error.lasting:
            return Refusal(str(error), lasting=True)
        passing = str(error)
    lasting = too_small(spec.resources, folder, gpus) or _untagged(spec.require, tags)
    lasting = lasting or _unlaunchable(spec, launchers, mpi_mode)
    try:
        if lasting is None and hosts_known:
            choose_hosts(spec, head, slots=mpi_slots, runtime=runtime)
    except NoRuntimeError as error:
        if error.lasting:
            lasting = str(error)
        passing = passing or str(error)
    if lasting is not None:
        return Refusal(lasting, lasting=True)
    passing = passing or short_of_space(folder, min_free)
    passing = passing or lacking(spec.resources, folder, min_free)
    return None if passing is None else Refusal(passing)


def short_of_space(folder: Path, min_free: int) -> str | None:
    """Tell how much is free where a folder lies or will lie, where that is less than is kept."""
    free = _free(folder)
    if free >= min_free:
        return None
    return (
        f"{size_text(free)} are free in {folder}, less than min_free ({size_text(min_free)}): "
        "make room there, or name another state_dir"
    )


def lacking(asked: Resources, folder: Path, min_free: int = 0) -> str | None:
    """Tell what a task asks for that this machine lacks, None where it has it all.

    Of disk what is free now counts, where ``folder`` lies or will lie, without the ``min_free``
    bytes that are kept; of the rest all there is.
    """
    small = too_small(asked, folder)
    if small is not None:
        return small
    if asked.disk is not None and asked.disk > (free := max(0, _free(folder) - min_free)):
        return f"resources.disk: {size_text(asked.disk)} are asked for, {size_text(free)} are free"
    return None


def _untagged(required: Sequence[str], tags: Collection[str]) -> str | None:
    missing = [tag for tag in required if tag not in tags]
    if not missing:
        return None
    there = f"only {', '.join(tags)}" if tags else "no tags"
    return f"require: the agent has not {', '.join(missing)}: it has {there}"


def _unlaunchable(spec: Spec, launchers: Launchers, mode: Mode) -> str | None:
    """Tell why MPI ranks cannot be started as asked; None where they can, or there are none."""
    for number, command in enumerate(spec.commands):
        if command.mpi is None:
            continue
        try:
            if spec.image is None or is_hybrid(spec, command, mode):
                launchers.find(command.mpi.version)
        except LaunchError as error:
            return f"commands[{number}]: {error}"
    return None


def too_small(asked: Resources, folder: Path, gpus: Collection[str] = ()) -> str | None:
    """Tell what a task asks for that a machine of this size cannot have, None where it can."""
    cores = len(os.sched_getaffinity(0))
    if asked.cpus is not None and asked.cpus > cores:
        return f"resources.cpus: {asked.cpus:g} are asked for, this machine has {cores}"
    memory = psutil.virtual_memory().total
    if asked.memory is not None and asked.memory > memory:
        wanted, there = size_text(asked.memory), size_text(memory)
        return f"resources.memory: {wanted} are asked for, there are {there}"
    if gpus and asked.gpus is not None and asked.gpus > len(gpus):
        return f"resources.gpus: {asked.gpus} are asked for, this machine has {len(gpus)}"
    disk = shutil.disk_usage(_existing(folder)).total
    if asked.disk is not None and asked.disk > disk:
        wanted, there = size_text(asked.disk), size_text(disk)
        return f"resources.disk: {wanted} are asked for, the disk has {there}"
    return None


def _free(folder: Path) -> int:
    return free_bytes(_existing(folder))


def _existing(folder: Path) -> Path:
    return next(path for path in (folder, *folder.absolute().parents) if path.exists())
