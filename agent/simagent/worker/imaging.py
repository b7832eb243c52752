"""PREPARING: have the task's image here, and write down which it is."""

import structlog

from simagent.domain.events import Event
from simagent.domain.images import ImageRef
from simagent.domain.reasons import Reason
from simagent.domain.spec import Spec
from simagent.ports.clock import Clock
from simagent.ports.images import Image, ImageError, PullInterruptedError
from simagent.ports.retry import InterruptedRetryError, retrying
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

    What may pass is tried again for `pull_patience`. Returns early when the task has to end. Raises
    `ImageError`, and `Interrupted` where an order came.
    """
    ref = spec.image_ref
    if ref is None or journal.entry.image is not None:
        return
    progress = _Progress(ctx.clock, journal.entry.task, ref)
    deadline = ctx.clock.now() + ctx.settings.pull_patience
    while not orders.to_end:
        orders.check()
        try:
            with timeline.measure("pull") as pull:
                image = _ensure(ctx, journal, orders, progress=progress, deadline=deadline)
                pull.bytes = progress.done
        except (PullInterruptedError, InterruptedRetryError):
            orders.wake.clear()
            continue
        user = _user_of(ctx, image, journal.entry.share.slot)
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


def _ensure(
    ctx: Context, journal: Journal, orders: Orders, *, progress: "_Progress", deadline: float
) -> Image:
    images = ctx.images[journal.entry.runtime]

    def ensure() -> Image:
        try:
            return images.ensure(progress.ref, orders.wake, progress=progress)
        except ImageError as error:
            raise _PassingError(error) if error.retryable else error from None

    def tell(error: BaseException, seconds: float) -> None:
        log.warning(
            Event.IMAGE_AWAITED,
            task=journal.entry.task,
            image=str(progress.ref),
            error=str(error),
            again_in=round(seconds, 1),
        )

    try:
        return retrying(
            ensure,
            clock=ctx.clock,
            wake=orders.wake,
            on=(_PassingError,),
            deadline=deadline,
            first=1.0,
            log=tell,
        )
    except _PassingError as passing:
        raise passing.error from None


class _PassingError(Exception):
    def __init__(self, error: ImageError) -> None:
        super().__init__(str(error))
        self.error = error


def _user_of(ctx: Context, image: Image, slot: int) -> tuple[int, int]:
    """Tell whom the image's commands run as. Raises `ImageError`."""
    if image.user.partition(":")[0] not in _ROOT:
        return ctx.settings.users.container(slot)
    if ctx.settings.allow_root_images:
        return 0, 0
    raise ImageError(
        Reason.IMAGE_UNUSABLE,
        f"{image.ref} asks to be run as root: give it a USER, or set allow_root_images",
    )


class _Progress:
    """Notes how far a pull is, and tells the agent's log now and then."""

    def __init__(self, clock: Clock, task: str, ref: ImageRef) -> None:
        self.ref = ref
        self.done = 0
        self._clock = clock
        self._task = task
        self._told = clock.now()

    def __call__(self, done: int, total: int | None) -> None:
        self.done = done
        if self._clock.now() - self._told < _TELL_EVERY:
            return
        self._told = self._clock.now()
        log.info(Event.IMAGE_PULLING, task=self._task, image=str(self.ref), bytes=done, of=total)
