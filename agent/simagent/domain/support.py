"""What of the spec is honoured so far. Asking for the rest is refused, never ignored."""

from collections.abc import Iterator

from simagent.domain.spec import Spec

_PLANNED = (
    "checkpoint",
    "watches",
    "progress",
    "require",
    "priority",
    "array",
    "depends_on",
    "expires_at",
    "retention",
    "idempotency_key",
)
_PLANNED_RESOURCES = ("gpus", "shm")
_PLANNED_MPI = ("hosts", "ranks_per_host", "version")


def unsupported(spec: Spec) -> Iterator[str]:
    """Yield a line for each field of the spec that is not honoured yet."""
    for name in _PLANNED:
        if getattr(spec, name) != Spec.model_fields[name].get_default(call_default_factory=True):
            yield f"{name}: unsupported by this version: remove it"
    for name in _PLANNED_RESOURCES:
        if getattr(spec.resources, name) is not None:
            yield f"resources.{name}: unsupported by this version: remove it"
    if spec.image is not None:
        yield "image: unsupported by this version, which runs programs of the host: remove it"
    if spec.runtime not in ("auto", "process"):
        yield f"runtime: {spec.runtime} is unsupported by this version: use process"
    if spec.network == "none":
        yield "network: host programs cannot be cut off from the network: remove it"
    if spec.outputs.layout != "archive":
        yield f"outputs.layout: {spec.outputs.layout} is unsupported by this version: use archive"
    for number, command in enumerate(spec.commands):
        for name in _PLANNED_MPI:
            if command.mpi is not None and getattr(command.mpi, name) is not None:
                yield f"commands[{number}].mpi.{name}: unsupported by this version: remove it"
