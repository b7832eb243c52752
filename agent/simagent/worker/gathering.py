"""PREPARING on several hosts: they are tried, and given the image, before anything starts."""

import os
import secrets
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager

import structlog

from simagent.cluster.calls import HostLostError, HostRefusedError, ask
from simagent.cluster.messages import TOKEN, Check, Fetch
from simagent.cluster.ssh import SshError
from simagent.domain.events import Event
from simagent.domain.reasons import Reason
from simagent.domain.spec import Spec
from simagent.domain.state import Status
from simagent.ledger import CorruptError, TooNewError
from simagent.ports.store import StoreError
from simagent.telemetry.timeline import Timeline
from simagent.worker.context import Context
from simagent.worker.disk import is_no_space
from simagent.worker.endings import Ending, StepLostError
from simagent.worker.head import Head, NotHeadError
from simagent.worker.journal import Entry, Journal, Place
from simagent.worker.orders import Orders
from simagent.worker.shared import ForeignFolderError, StalledError, held
from simagent.worker.spanning import pinned_image, shared_name

_CHECK_WITHIN = 40.0
_FETCH_WITHIN = 7200.0
_AGAIN = 1.0
_OF_THE_HOST = frozenset(
    {Reason.MPI_HOST_LOST, Reason.RUNTIME_FAILED, Reason.IMAGE_PULL, Reason.AGENT_ERROR}
)
"""Reasons of a refusal that other hosts, or another time, may not have."""

log = structlog.get_logger()


def gather(
    ctx: Context, spec: Spec, journal: Journal, orders: Orders, *, timeline: Timeline
) -> Ending | None:
    """Gather the hosts of an attempt, where it has several; the attempt's image is here already.

    It is named in the head's record, its shared folder is made and proven to be the same one on
    all hosts, and these fetch the image. Gives the task's end where a host refuses it for good.
    Returns early when the task has to end. Raises `StepLostError`, OSError, and `Interrupted`
    where an order came.
    """
    entry = journal.entry
    if not entry.hosts:
        return None
    head = ctx.head
    if head is None or head.it.cluster != entry.cluster:
        why = f"the agent does not lead cluster {entry.cluster} any more"
        raise StepLostError(Reason.MPI_HOST_LOST, why)
    if entry.prepared:  # an earlier incarnation did it all; what it named is still named
        return None
    others = entry.hosts[1:]
    with timeline.measure("gather"):
        _name(ctx, head, entry, orders)
        with _token(journal) as token:
            check = _check(ctx, spec, entry, token)
            ending = _ask_all(head, others, check, _CHECK_WITHIN, orders)
    image = pinned_image(spec, entry)
    if ending is None and image is not None:
        log.info("hosts fetch the image", task=entry.task, image=image, hosts=len(others))
        digest = entry.attempt.image_digest or ""
        fetch = Fetch(runtime=entry.runtime, image=image, digest=digest)
        with timeline.measure("gather_pull"):
            ending = _ask_all(head, others, fetch, _FETCH_WITHIN, orders)
    if ending is None and not orders.to_end:
        names = [place.name for place in entry.hosts]
        log.info(Event.HOSTS_GATHERED, task=entry.task, epoch=entry.epoch, hosts=names)
    return ending


def scatter(ctx: Context, entry: Entry) -> None:
    """Let the hosts of an attempt go: its steps are over. May be repeated."""
    if ctx.head is not None and entry.hosts:
        ctx.head.release(entry)


def _name(ctx: Context, head: Head, entry: Entry, orders: Orders) -> None:
    """Name the attempt in the head's record, through any outage."""
    while not orders.to_end:
        orders.check()
        try:
            head.name(entry)
        except NotHeadError as error:
            raise StepLostError(Reason.MPI_HOST_LOST, str(error)) from error
        except (StoreError, CorruptError, TooNewError, SshError) as error:
            log.warning("hosts not gathered yet", task=entry.task, error=str(error))
            orders.wake.clear()
            orders.check()
            ctx.clock.wait(_AGAIN, orders.wake)
        else:
            return


@contextmanager
def _token(journal: Journal) -> Iterator[str]:
    """Make the shared folder, with a token in it that is locked meanwhile. Raises OSError."""
    token = secrets.token_hex(16)
    with ExitStack() as held_meanwhile:
        try:
            held_meanwhile.enter_context(held(journal.base, TOKEN, token))
        except FileNotFoundError:
            why = f"mpi.shared_dir: there is no folder {journal.base.parent.parent}: is it mounted?"
            raise StepLostError(Reason.MPI_HOST_LOST, why) from None
        except (StalledError, ForeignFolderError) as error:
            raise StepLostError(Reason.MPI_HOST_LOST, f"mpi.shared_dir: {error}") from error
        except OSError as error:
            if is_no_space(error):
                raise
            why = f"mpi.shared_dir: {journal.base} cannot be used: {error.strerror or error}"
            raise StepLostError(Reason.MPI_HOST_LOST, why) from error
        yield token


def _check(ctx: Context, spec: Spec, entry: Entry, token: str) -> Check:
    return Check(
        folder=shared_name(entry),
        token=token,
        uid=os.geteuid() if entry.user is None else entry.user[0],
        version=ctx.identity.version,
        gpus=(spec.resources.gpus or 0) if entry.image is not None else 0,
    )


def _ask_all(
    head: Head, places: Sequence[Place], request: Check | Fetch, timeout: float, orders: Orders
) -> Ending | None:
    """Ask all hosts at a time, and those again that an order of no concern to them interrupted.

    Gives the task's end where one refuses for good. Raises `StepLostError` where one is lost, and
    `Interrupted`.
    """
    left = list(places)
    while left and not orders.to_end:
        orders.wake.clear()
        orders.check()
        answers: dict[str, object] = {}

        def put(place: Place, answers: dict[str, object] = answers) -> None:
            try:
                command = head.ssh(place)
                answers[place.name] = ask(command, request, timeout=timeout, wake=orders.wake)
            except Exception as error:  # noqa: BLE001 - judged by who asked
                answers[place.name] = error

        threads = [
            threading.Thread(target=put, args=(place,), name=f"ask {place.name}", daemon=True)
            for place in left
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        refused = [place for place in left if isinstance(answers.get(place.name), Exception)]
        if refused:
            return _judge(head, refused, answers)
        left = [place for place in left if answers.get(place.name) is None]
    return None


def _judge(head: Head, places: Sequence[Place], answers: dict[str, object]) -> Ending:
    """Say what refusals mean: the end of the task, or that it is for others. Raises all else."""
    lost: list[str] = []
    first = Reason.MPI_HOST_LOST
    for place in places:
        error, where = answers[place.name], f"host {place.name}: {answers[place.name]}"
        if isinstance(error, HostLostError | SshError):
            reason = Reason.MPI_HOST_LOST
        elif isinstance(error, HostRefusedError):
            known = error.reason in set(Reason)  # newer members may have others
            reason = Reason(error.reason) if known else Reason.AGENT_ERROR
        else:
            assert isinstance(error, Exception)
            raise error
        if reason not in _OF_THE_HOST:
            return Ending(Status.FAILED, reason, where)
        head.doubt(place, str(error))
        log.warning("host not gathered", host=place.name, error=str(error))
        lost.append(where)
        first = reason if len(lost) == 1 else first
    raise StepLostError(first, "; ".join(lost))
