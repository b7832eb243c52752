"""Work done ahead on threads, its results given out in order."""

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, NamedTuple, TypeVar

from simagent.ports.retry import Retry
from simagent.ports.store import StoreUnavailableError

MOST_BYTES = 64 << 20
"""Bytes that may be held at a time, of jobs whose results nobody has taken yet."""

T = TypeVar("T")


class Job(NamedTuple, Generic[T]):
    """Something to do, whose result holds so many bytes. It may be called again."""

    call: Callable[[], T]
    size: int = 0


def in_order(jobs: Iterable[Job[T]], *, threads: int, retry: Retry) -> Generator[T, None, None]:
    """Do the jobs on threads; yield what they give in their order.

    At most four a thread, or `MOST_BYTES`, are under way. One that finds the store unavailable is
    repeated by ``retry``, on the caller's thread, once its turn has come. Raises what a job
    raises; none is under way any more once this has ended, also where it is closed early.
    """
    under_way: deque[tuple[Job[T], Future[T]]] = deque()
    held = 0
    with ThreadPoolExecutor(threads, "transfer") as pool:
        try:
            for job in jobs:
                while under_way and (len(under_way) >= 4 * threads or held + job.size > MOST_BYTES):
                    first, future = under_way.popleft()
                    held -= first.size
                    yield _result(first, future, retry)
                    del future
                under_way.append((job, pool.submit(job.call)))
                held += job.size
            while under_way:
                yield _result(*under_way.popleft(), retry)
        finally:
            pool.shutdown(cancel_futures=True)


def _result(job: Job[T], future: Future[T], retry: Retry) -> T:
    try:
        return future.result()
    except StoreUnavailableError:
        return retry(job.call)
