"""Hybrid MPI: steps whose ranks the host's own mpirun starts, in a container each."""

from typing import Final, Literal

from simagent.domain.spec import Command, Spec

Mode = Literal["auto", "contained", "hybrid"]
"""What starts the ranks of images, by the operator's will; ``auto``: by that of the step."""

RUNTIME: Final = "apptainer"
"""The one that starts containers without a service, as children of whoever asks."""


def is_hybrid(spec: Spec, command: Command, mode: Mode) -> bool:
    """Tell whether the ranks of a command are started by the host's mpirun in containers."""
    if spec.image is None or command.mpi is None:
        return False
    return mode == "hybrid" or (mode == "auto" and command.mpi.version is not None)


def wants_hybrid(spec: Spec, mode: Mode) -> bool:
    """Tell whether any command of a task is of that kind."""
    return any(is_hybrid(spec, command, mode) for command in spec.commands)


def objection(spec: Spec, mode: Mode) -> str | None:
    """Tell why a task's ranks cannot be started in that way; None where they can, or need not."""
    for number, command in enumerate(spec.commands):
        if mode == "contained" and spec.image and command.mpi and command.mpi.version:
            return (
                f"commands[{number}].mpi.version: the machine's mpirun starts no ranks in images "
                "here (mpi.mode is contained): remove it"
            )
        if not is_hybrid(spec, command, mode):
            continue
        if spec.runtime not in ("auto", RUNTIME):
            return (
                f"runtime: commands[{number}] has its ranks started by the machine's mpirun, which "
                f"works with {RUNTIME} only: remove it"
            )
        if spec.network == "none":
            return (
                f"network: commands[{number}] has its ranks started by the machine's mpirun, which "
                "speaks with them over it: remove it"
            )
    return None
