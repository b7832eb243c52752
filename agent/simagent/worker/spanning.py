"""On which hosts of a cluster a task runs: chosen before it is claimed, once for each attempt."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import PurePath

from simagent.domain.images import ImageKind
from simagent.domain.spec import Spec
from simagent.worker.choice import NoRuntimeError
from simagent.worker.cores import Layout, lay_out
from simagent.worker.head import Head
from simagent.worker.journal import Entry, Place


def choose_hosts(
    spec: Spec, head: Head | None, *, slots: int | None = None, runtime: str | None = None
) -> tuple[Place, ...]:
    """Choose the hosts of a task, this one first; none where it runs on this one alone.

    As many as the step with the most of them needs.

    ``slots`` are the ranks that this host takes where that was set, ``runtime`` is what runs the
    task. Raises `NoRuntimeError` where its steps cannot be had, or not just now.
    """
    places = head.places() if head is not None else ()
    most = 0
    for number, command in enumerate(spec.commands):
        if command.mpi is None:
            continue
        layout = lay_out(
            command.mpi,
            cpus=spec.resources.cpus,
            slots=slots,
            hosts=[place.host for place in places],
        )
        wide = command.mpi.hosts != 1 and (command.mpi.np == "max" or (command.mpi.hosts or 1) > 1)
        if head is not None and (wide or layout.trouble is not None or layout.hosts):
            _require_ready(head, number, layout)
        if layout.trouble is not None:
            # A member may still come; where all had the time to, nobody waits for one.
            lasting = head is None or head.settled
            away = head.away() if head is not None else ""
            raise NoRuntimeError(f"commands[{number}].{layout.trouble}{away}", lasting=lasting)
        most = max(most, len(layout.hosts))
    if head is None or not most:
        return ()
    chosen = places[:most]
    _require_common(spec, head, chosen, runtime)
    return chosen


def _require_ready(head: Head, number: int, layout: Layout) -> None:
    """See that ranks can be started on the others. Raises `NoRuntimeError`."""
    trouble = head.trouble()
    if trouble is not None:
        # What is missing in the configuration matters to tasks for several hosts alone.
        if head.it.trouble and not layout.hosts and layout.trouble is None:
            return
        raise NoRuntimeError(f"commands[{number}].mpi: {trouble}", lasting=bool(head.it.trouble))


def _require_common(spec: Spec, head: Head, chosen: tuple[Place, ...], runtime: str | None) -> None:
    """See that the hosts have what the task needs of all of them. Raises `NoRuntimeError`."""
    if spec.network == "none":
        raise NoRuntimeError(
            f"network: its ranks lie on {len(chosen)} hosts and need the network: set it to host, "
            "remove it, or set mpi.hosts to 1",
            lasting=True,
        )
    if spec.image is None or runtime is None:
        return
    for place in chosen[1:]:
        member = head.member(place)
        if member is not None and runtime not in member.runtimes:
            why = f"runtime: host {place.name} has no {runtime}: install it there"
            raise NoRuntimeError(why)


def shared_name(entry: Entry) -> str:
    """Name the shared folder of an attempt as all hosts have it: beneath their own shared_dir."""
    assert entry.shared is not None
    path = PurePath(entry.shared)
    return str(path.relative_to(path.parent.parent))


def pinned_image(spec: Spec, entry: Entry) -> str | None:
    """Name the image of an attempt such that all hosts have the very same one; None without one."""
    ref = spec.image_ref
    digest = entry.attempt.image_digest
    if ref is None or ref.kind is not ImageKind.REGISTRY or digest is None:
        return None if ref is None else str(ref)
    return str(replace(ref, digest=digest))


def on_hosts(entry: Entry, hosts: Sequence[Place], head: Head | None) -> Entry:
    """Write down the hosts of an attempt, where there are several, and where its files lie.

    Its folder is named by its agent, too: an intent that another's claim made void is removed with
    its files.
    """
    if head is None or not hosts:
        return entry
    assert head.it.shared_dir is not None
    name = f"{entry.project}.{entry.task}.{entry.epoch}.{entry.agent}"
    return entry.with_(
        cluster=head.it.cluster,
        hosts=tuple(hosts),
        network=head.it.network,
        shared=str(head.it.shared_dir / head.it.cluster / name),
    )
