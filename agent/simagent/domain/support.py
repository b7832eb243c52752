"""What of the spec is honoured so far. Asking for the rest is refused, never ignored."""

from collections.abc import Iterator

from simagent.domain.images import ImageKind
from simagent.domain.spec import Spec

_PLANNED = (
    "watches",
    "progress",
    "priority",
    "depends_on",
    "expires_at",
    "retention",
    "idempotency_key",
)
_OF_CONTAINERS = ("gpus", "shm")


def unsupported(spec: Spec) -> Iterator[str]:
    """Yield a line for each field of the spec that is not honoured yet."""
    for name in _PLANNED:
        if getattr(spec, name) != Spec.model_fields[name].get_default(call_default_factory=True):
            yield f"{name}: unsupported by this version: remove it"
    yield from _in_containers(spec) if spec.image is not None else _on_the_host(spec)
    for number, command in enumerate(spec.commands):
        if command.mpi is not None and (command.mpi.hosts or 1) > 1 and spec.network == "none":
            yield (
                f"network: commands[{number}].mpi.hosts asks for several hosts, whose ranks need "
                "the network: set it to host, or remove it"
            )


def _in_containers(spec: Spec) -> Iterator[str]:
    ref = spec.image_ref
    assert ref is not None
    if spec.runtime == "process":
        yield "runtime: process runs no images: remove it, or the image"
    if spec.runtime == "docker" and ref.kind in (ImageKind.SIF, ImageKind.STORE):
        yield f"runtime: docker cannot run {ref}: use apptainer"


def _on_the_host(spec: Spec) -> Iterator[str]:
    if spec.runtime in ("docker", "apptainer"):
        yield f"runtime: {spec.runtime} needs an image: name one"
    if spec.network == "none":
        yield "network: programs of the machine cannot be cut off: remove it, or name an image"
    for name in _OF_CONTAINERS:
        if getattr(spec.resources, name) is not None:
            yield f"resources.{name}: only containers can be given it: remove it, or name an image"
