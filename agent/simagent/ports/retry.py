"""The one way to try again: capped exponential waits with jitter, on an injected clock."""

from collections.abc import Callable
from typing import Protocol, TypeVar

from tenacity import RetryCallState, Retrying, retry_if_exception, wait_random_exponential

from simagent.ports.clock import Clock, Waitable
from simagent.ports.store import StoreUnavailableError

T = TypeVar("T")


class InterruptedRetryError(Exception):
    """Somebody set the wake while a retry was being waited for."""


class Retry(Protocol):
    """Calls something until it works, or until there is no point in going on."""

    def __call__(self, call: Callable[[], T], /) -> T:
        """Give what ``call`` gives."""


def retrying(
    call: Callable[[], T],
    *,
    clock: Clock,
    wake: Waitable | None = None,
    on: tuple[type[BaseException], ...] = (StoreUnavailableError,),
    but: tuple[type[BaseException], ...] = (),
    deadline: float | None = None,
    first: float = 0.5,
    cap: float = 30.0,
    log: Callable[[BaseException, float], None] | None = None,
) -> T:
    """Call until it raises none of ``on``, or one of them that is in ``but``; give the result.

    Between tries it waits a random time of up to ``first`` seconds, doubled each time, at most
    ``cap``. After ``deadline`` (on ``clock``) the last error is raised as it is; while ``wake``
    is ready no wait begins or goes on, and `InterruptedRetryError` is raised. ``log`` is told
    each error that is tried again, and the seconds until then.
    """

    def stop(_state: RetryCallState) -> bool:
        return deadline is not None and clock.now() >= deadline

    def sleep(seconds: float) -> None:
        if deadline is not None:
            seconds = min(seconds, max(0.0, deadline - clock.now()))
        if clock.wait(seconds, *([wake] if wake is not None else [])):
            raise InterruptedRetryError("a retry was interrupted")

    def tell(state: RetryCallState) -> None:
        error = state.outcome.exception() if state.outcome else None
        if log is not None and error is not None:
            log(error, state.upcoming_sleep)

    return Retrying(
        retry=retry_if_exception(lambda e: isinstance(e, on) and not isinstance(e, but)),
        wait=wait_random_exponential(multiplier=first, max=cap),
        stop=stop,
        sleep=sleep,
        before_sleep=tell,
        reraise=True,
    )(call)
