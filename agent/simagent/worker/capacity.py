"""What a task asks of the machine, held against what the machine has."""

import os
import shutil
from pathlib import Path

import psutil

from simagent.domain.spec import Resources


def lacking(asked: Resources, folder: Path) -> str | None:
    """Tell what a task asks for that this machine lacks, None where it has it all.

    Of disk what is free now counts, where ``folder`` lies; of the rest what there is in all.
    """
    cores = len(os.sched_getaffinity(0))
    if asked.cpus is not None and asked.cpus > cores:
        return f"resources.cpus: {asked.cpus:g} are asked for, this machine has {cores}"
    memory = psutil.virtual_memory().total
    if asked.memory is not None and asked.memory > memory:
        return f"resources.memory: {_size(asked.memory)} are asked for, there are {_size(memory)}"
    if asked.disk is not None and asked.disk > (free := shutil.disk_usage(folder).free):
        return f"resources.disk: {_size(asked.disk)} are asked for, {_size(free)} are free"
    return None


def _size(count: int) -> str:
    return f"{count / 2**30:,.1f} GiB"
