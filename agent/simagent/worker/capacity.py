"""What a task asks of the machine, held against what the machine has."""

import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

import psutil

from simagent.domain.spec import Resources, Spec
from simagent.ports.runtime import Runtime
from simagent.worker.choice import CONTAINERS, NoRuntimeError, choose


def refusal(
    spec: Spec,
    *,
    runtimes: Mapping[str, Runtime],
    preferred: Sequence[str] = CONTAINERS,
    allow_process: bool,
    has_mpi: bool,
    folder: Path,
) -> str | None:
    """Tell why an agent of this machine would not run a task, None where it would."""
    try:
        choose(spec, runtimes, allow_process=allow_process, preferred=preferred)
    except NoRuntimeError as error:
        return str(error)
    if not has_mpi and asks_for_mpi(spec):
        return "a step asks for MPI, and no mpirun was found: install MPICH"
    return lacking(spec.resources, folder)


def asks_for_mpi(spec: Spec) -> bool:
    """Tell whether any step runs under MPI."""
    return any(command.mpi for command in spec.commands)


def lacking(asked: Resources, folder: Path) -> str | None:
    """Tell what a task asks for that this machine lacks, None where it has it all.

    Of disk what is free now counts, where ``folder`` lies or will lie; of the rest all there is.
    """
    cores = len(os.sched_getaffinity(0))
    if asked.cpus is not None and asked.cpus > cores:
        return f"resources.cpus: {asked.cpus:g} are asked for, this machine has {cores}"
    memory = psutil.virtual_memory().total
    if asked.memory is not None and asked.memory > memory:
        return f"resources.memory: {_size(asked.memory)} are asked for, there are {_size(memory)}"
    existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if asked.disk is not None and asked.disk > (free := shutil.disk_usage(existing).free):
        return f"resources.disk: {_size(asked.disk)} are asked for, {_size(free)} are free"
    return None


def _size(count: int) -> str:
    return f"{count / 2**30:,.1f} GiB"
