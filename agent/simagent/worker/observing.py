"""Takes snapshots of an agent, from what it knows: nothing is asked of the store or the queue."""

import os
import shutil
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from simagent.ports.clock import Clock
from simagent.ports.images import Images
from simagent.telemetry.contact import Contact
from simagent.telemetry.tally import Tally
from simagent.worker.context import Context
from simagent.worker.journal import Journal
from simagent.worker.slots import Slots
from simagent.worker.snapshot import (
    CountView,
    DiskView,
    EngineView,
    ImagesView,
    Snapshot,
    Stage,
)
from simagent.worker.versions import OWN, Versions, ask_engines, ask_mpi

_IMAGES_FRESH = 60.0


class Observer:
    """Looks at an agent for others. ``turn`` is the main loop's, all else any thread's."""

    def __init__(self, ctx: Context, slots: Slots, unsettled: Sequence[Journal]) -> None:
        self._ctx = ctx
        self._slots = slots
        self._unsettled = unsettled
        self._life = Life(ctx.clock)
        self._versions = Versions(
            lambda: ask_engines(ctx.runtimes, ask_mpi(ctx.launchers)), ctx.clock
        )
        self._disk = DiskLook(ctx.journals.root.parent, ctx.images, ctx.settings.min_free)

    def turn(self) -> None:
        """Note that the main loop has turned."""
        self._life.turn()

    def look(self, stage: Stage, *, role: str, text: str, notices: Iterable[str] = ()) -> Snapshot:
        """Take a snapshot; ``notices`` are those of the loop."""
        ctx, slots = self._ctx, self._slots
        disk = self._disk.look(ctx.clock)
        head = ctx.head
        return Snapshot(
            role=role,
            stage=stage,
            agent=ctx.identity.agent,
            incarnation=ctx.identity.incarnation,
            group=ctx.settings.group,
            cluster="" if head is None else head.it.cluster,
            text=text,
            pid=os.getpid(),
            at=ctx.clock.wall(),
            started=self._life.started,
            uptime=self._life.uptime,
            turned=self._life.turned,
            slots=slots.count,
            busy=slots.busy,
            unsettled=len(self._unsettled),
            tasks=slots.views(),
            engines=tuple(view_engine(contact) for contact in ctx.contacts),
            disk=disk,
            versions=self._versions.tell(),
            notices=tuple(filter(None, (*notices, disk.shortage))),
            counts=view_counts(ctx.tally),
        )


class Life:
    """When an agent began, and when its main loop last turned."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._began = clock.now()
        self._turned: float | None = None
        self.started = clock.wall()

    def turn(self) -> None:
        """Note that the main loop has turned."""
        self._turned = self._clock.now()

    @property
    def uptime(self) -> float:
        """Seconds since it began."""
        return self._clock.now() - self._began

    @property
    def turned(self) -> float | None:
        """Seconds since the last turn; None before the first."""
        return None if self._turned is None else self._clock.now() - self._turned


class DiskLook:
    """Looks at the disk of a state folder, and, once a minute, at the records of images."""

    def __init__(self, folder: Path, images: Mapping[str, Images], floor: int) -> None:
        self._folder = folder
        self._images = images
        self._floor = floor
        self._known: tuple[ImagesView, ...] = ()
        self._due = 0.0

    def look(self, clock: Clock) -> DiskView:
        """Tell how full it is."""
        if clock.now() >= self._due:
            self._due = clock.now() + _IMAGES_FRESH
            self._known = tuple(self._count(name) for name in self._images)
        free = total = None
        with suppress(OSError):
            usage = shutil.disk_usage(self._folder)
            free, total = usage.free, usage.total
        return DiskView(
            path=str(self._folder.absolute()),
            free=free,
            total=total,
            floor=self._floor,
            images=self._known,
        )

    def _count(self, name: str) -> ImagesView:
        try:
            kept = self._images[name].kept()
        except OSError:
            kept = []
        size = sum(image.size_bytes for image in kept)
        return ImagesView(runtime=name, count=len(kept), size_bytes=size)


def view_engine(contact: Contact) -> EngineView:
    """Tell how it stands with the store, or the queue."""
    met = contact.met()
    return EngineView(
        name=contact.name,
        url=contact.url,
        answered=met.answered,
        failing=met.failing,
        error=met.error,
    )


def view_counts(tally: Tally) -> tuple[CountView, ...]:
    """Tell what was counted."""
    return tuple(
        CountView(name=count.value, labels=labels, value=value)
        for (count, labels), value in sorted(tally.read().items())
    )


def first_look(role: str, clock: Clock, life: Life, *, group: str, cluster: str) -> Snapshot:
    """Take a snapshot of an agent that only starts."""
    return Snapshot(
        role=role,
        stage=Stage.STARTING,
        group=group,
        cluster=cluster,
        pid=os.getpid(),
        at=clock.wall(),
        started=life.started,
        uptime=life.uptime,
        versions=OWN,
    )
