"""Looks after what containers leave on a machine: images, and containers that nobody knows."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import psutil
import structlog

from simagent.domain.events import Event
from simagent.domain.images import ImageRef, parse_image
from simagent.ports.clock import Clock, Wake
from simagent.ports.images import ImageError, Images, KeptImage, PullInterruptedError
from simagent.ports.runtime import Runtime, RuntimeFailedError
from simagent.worker.choice import NoRuntimeError, choose_for
from simagent.worker.disk import free_bytes, on_same_disk
from simagent.worker.journal import holds_attempt

FRESH = 3600.0
"""Seconds since its last use in which an image is never removed: a task may be about to begin."""

_EVERY = 300.0
_FIRST = 2.0
_AGAIN = 15.0

log = structlog.get_logger()


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageMarks:
    """Shares of the disk: above ``high`` images are removed, until ``low`` is reached."""

    high: float = 0.85
    low: float = 0.75


def tidy(
    images: Images,
    *,
    used: Callable[[], float],
    marks: ImageMarks,
    spared: Callable[[KeptImage], bool],
) -> None:
    """Remove images, the least recently used first, until the disk is used to the low mark.

    Nothing where the high mark is not reached; never one that is pinned or ``spared``. ``used``
    tells the used share of the disk.
    """
    if used() <= marks.high:
        return
    for image in images.kept():
        if image.pinned or spared(image):
            continue
        try:
            freed = images.remove(image.digest, unused_since=image.used)
        except (ImageError, OSError) as error:
            log.warning("image not removed", image=image.refs, error=str(error))
            continue
        if freed == 0:
            continue  # it made no room: it is in use, or was asked for meanwhile
        log.info(Event.IMAGE_REMOVED, image=image.refs, digest=image.digest, bytes=freed)
        if used() <= marks.low:
            break


def used_share(folder: Path) -> float:
    """Tell the used share of the disk that a folder lies on, as df does."""
    disk = psutil.disk_usage(str(folder))
    return disk.percent / 100


class Records(Protocol):
    """What is written down of what runs here, as `Journals` have it."""

    @property
    def root(self) -> Path:
        """The folder of the records."""

    def handles(self) -> set[str]:
        """Give the handles of the images that are in use."""


class Caretaker:
    """A thread of the agent that keeps order among its containers and images.

    First of all it fetches the images of ``prefetch``, which stay.
    """

    def __init__(
        self,
        *,
        clock: Clock,
        journals: Records,
        runtimes: Mapping[str, Runtime],
        images: Mapping[str, Images],
        marks: ImageMarks,
        prefetch: Sequence[str],
        containers: Sequence[str],
        min_free: int = 0,
        used: Callable[[Path], float] = used_share,
        free: Callable[[Path], int] = free_bytes,
        known: Callable[[Path], bool] = lambda folder: holds_attempt(folder.parent),
    ) -> None:
        """``known`` tells of a folder of a runtime's records whether it is of what shall run here.

        ``prefetch`` are references of images, ``containers`` the runtimes to fetch them for.

        Images also make room where less than ``min_free`` bytes are free beside the journals, as no
        task is taken then.
        """
        self._clock = clock
        self._journals = journals
        self._runtimes = runtimes
        self._unreaped: list[Runtime] = []
        self._images = images
        self._marks = marks
        self._prefetch = [parse_image(ref) for ref in prefetch]
        self.settled = not prefetch
        """Whether each image that is to be here was tried once."""
        self._containers = containers
        self._min_free = min_free
        self._used = used
        self._free = free
        self._known = known

    def run(self, stop: Wake) -> None:
        """Look after everything now and then, until ``stop`` is set."""
        pause, due = _FIRST, self._clock.now() + _FIRST
        while not self._clock.wait(pause, stop):
            if self._clock.now() >= due:
                self.look(stop)
                due = self._clock.now() + _EVERY
            else:
                self._reap(self._unreaped)
            pause = min(_AGAIN if self._unreaped else _EVERY, due - self._clock.now())

    def look(self, stop: Wake) -> None:
        """Do what there is to do now."""
        self._reap(list(self._runtimes.values()))
        self._prefetch = [ref for ref in self._prefetch if not self._fetch(ref, stop)]
        self.settled = True
        for images in self._images.values():
            try:
                self._tidy(images)
            except OSError as error:  # at the next look again
                log.warning("images not looked after", runtime=images.name, error=str(error))

    def _reap(self, runtimes: Sequence[Runtime]) -> None:
        """Let runtimes end what nobody knows; note those that cannot just now."""
        self._unreaped = []
        for runtime in runtimes:
            try:
                count = runtime.reap(self._known)
            except (RuntimeFailedError, OSError) as error:
                log.debug("not reaped", runtime=runtime.name, error=str(error))
                self._unreaped.append(runtime)
                continue
            if count:
                log.warning(Event.CONTAINERS_REAPED, runtime=runtime.name, count=count)

    def _fetch(self, ref: ImageRef, stop: Wake) -> bool:
        """Fetch an image that shall be here; tell whether that is settled."""
        try:
            there = {n: r for n, r in self._runtimes.items() if n in self._containers}
            name = choose_for(ref, there, self._containers)
            image = self._images[name].ensure(ref, stop, pin=True)
        except PullInterruptedError:
            return False
        except (ImageError, NoRuntimeError, OSError) as error:
            log.warning("image not prefetched", image=str(ref), error=str(error))
            return isinstance(error, ImageError) and not error.retryable
        log.info("image prefetched", image=str(ref), digest=image.digest, runtime=name)
        return True

    def _tidy(self, images: Images) -> None:
        folder = images.disk()
        if folder is None:
            return
        in_use = self._journals.handles()
        fresh = self._clock.wall() - FRESH

        def spared(image: KeptImage) -> bool:
            return image.handle in in_use or image.used > fresh

        def used() -> float:
            root = self._journals.root
            short = self._free(root) < self._min_free and on_same_disk(folder, root)
            return math.inf if short else self._used(folder)

        tidy(images, used=used, marks=self._marks, spared=spared)
