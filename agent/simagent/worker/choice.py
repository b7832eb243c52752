"""Which runtime runs a task here: by the kind of its image, and by what the machine has."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from simagent.domain.images import ImageKind, ImageRef
from simagent.domain.spec import Spec
from simagent.ports.runtime import Runtime
from simagent.worker.hybrid import RUNTIME, Mode, objection, wants_hybrid

CONTAINERS = ("docker", "apptainer")
"""The runtimes that run images, in the order in which `runtime: auto` tries them."""

_APPTAINER_ONLY = (ImageKind.SIF, ImageKind.STORE)
_MISSING = {
    "docker": "no Docker Engine is set up here: install docker.io, or set docker_host",
    "apptainer": "no Apptainer is installed here: install apptainer",
}


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a task is not taken here; ``lasting`` where that stays so while this agent runs.

    ``room`` where it would be taken if less ran here.
    """

    why: str
    lasting: bool = False
    room: bool = False


class NoRuntimeError(Exception):
    """Nothing here can run the task; the message says why, and what would help.

    ``lasting`` where that stays so while this agent runs; an engine may answer again.
    """

    def __init__(self, message: str, *, lasting: bool = False) -> None:
        super().__init__(message)
        self.lasting = lasting


def choose(
    spec: Spec,
    runtimes: Mapping[str, Runtime],
    *,
    allow_process: bool = True,
    preferred: Sequence[str] = CONTAINERS,
    mode: Mode = "auto",
) -> str:
    """Name the runtime that is to run a task, of images the first of ``preferred`` that can.

    Others of the ``runtimes`` are there for what runs already. ``mode`` is what starts the ranks of
    images. Raises `NoRuntimeError`.
    """
    ref = spec.image_ref
    if ref is None:
        if not allow_process:
            raise NoRuntimeError(
                "it runs programs of the machine, which is not allowed here: name an image, or set "
                "allow_process",
                lasting=True,
            )
        return "process"
    against = objection(spec, mode)
    if against is not None:
        raise NoRuntimeError(against, lasting=True)
    there = {name: runtimes[name] for name in preferred if name in runtimes}
    if wants_hybrid(spec, mode):
        return choose_for(ref, there, (RUNTIME,))
    return choose_for(ref, there, preferred if spec.runtime == "auto" else (spec.runtime,))


def choose_for(ref: ImageRef, runtimes: Mapping[str, Runtime], wanted: Sequence[str]) -> str:
    """Name the first of the ``wanted`` runtimes that can run an image. Raises `NoRuntimeError`."""
    wanted = wanted or CONTAINERS
    if ref.kind in _APPTAINER_ONLY:
        wanted = [name for name in wanted if name == "apptainer"] or ["apptainer"]
    troubles = []
    for name in wanted:
        runtime = runtimes.get(name)
        trouble = _MISSING[name] if runtime is None else runtime.trouble()
        if trouble is None:
            return name
        troubles.append(trouble)
    raise NoRuntimeError("; ".join(troubles), lasting=not any(name in runtimes for name in wanted))
