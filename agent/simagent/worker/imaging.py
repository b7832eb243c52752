"""PREPARING: have the task's image here, and write down which it is."""

import structlog

from simagent.domain.events import Event
from simagent.domain.reasons import Reason
from simagent.domain.spec import Spec
from simagent.ports.clock import Clock
from simagent.ports.images import Image, ImageError, PullInterruptedError
from simagent.telemetry.timeline import Timeline
from simagent.worker.context import Context
from simagent.worker.journal import Journal
from simagent.worker.orders import Orders

_TELL_EVERY = 10.0
_ROOT = ("root", "0")

log = structlog.get_logger()


def fetch_image(
    ctx: Context, spec: Spec, journal: Journal, orders: Orders, *, timeline: Timeline
) -> None:
    """Fetch the image of a task unless it is here already.

    Returns early when the task has to end. Raises `ImageError`, and `Interrupted` where an order
    came.
    """
    ref = spec.image_ref
    if ref is None or journal.entry.image is not None:
        return
    images = ctx.images[journal.entry.runtime]
    progress = _Progress(ctx.clock, journal.entry.task, str(ref))
    while not orders.to_end:
        orders.check()
        try:
            with timeline.measure("pull") as pull:
                image = images.ensure(ref, orders.wake, progress=progress)
                pull.bytes = progress.done
        except PullInterruptedError:
            orders.wake.clear()
            continue
        user = _user_of(ctx, image)
        attempt = journal.entry.attempt.with_(image_digest=image.digest, timings=timeline.as_dict())
        journal.write(image=image.handle, user=user, attempt=attempt)
        log.info(
            Event.IMAGE_READY,
            task=journal.entry.task,
            image=image.ref,
            digest=image.digest,
            runtime=journal.entry.runtime,
            bytes=progress.done,
        )
        return


def _user_of(ctx: Context, image: Image) -> tuple[int, int]:
    """Tell whom the image's commands run as. Raises `ImageError`."""
    if image.user.partition(":")[0] not in _ROOT:
        return ctx.settings.task_user
    if ctx.settings.allow_root_images:
        return 0, 0
    raise ImageError(
        Reason.IMAGE_UNUSABLE,
        f"{image.ref} asks to be run as root: give it a USER, or set allow_root_images",
    )


class _Progress:
    """Notes how far a pull is, and tells the agent's log now and then."""

    def __init__(self, clock: Clock, task: str, image: str) -> None:
        self.done = 0
        self._clock = clock
        self._task = task
        self._image = image
        self._told = clock.now()

    def __call__(self, done: int, total: int | None) -> None:
        self.done = done
        if self._clock.now() - self._told < _TELL_EVERY:
            return
        self._told = self._clock.now()
        log.info(Event.IMAGE_PULLING, task=self._task, image=self._image, bytes=done, of=total)
