"""Opens what agents and clients share: the store and the queues that the configuration names."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

from simagent.config import Config
from simagent.ports.clock import SystemClock, Wake
from simagent.ports.queue import Queue, QueueRefusedError, QueueUnavailableError
from simagent.ports.setup import Finding, Way
from simagent.ports.store import Store, StoreUnavailableError

if TYPE_CHECKING:
    from simagent.queues.sqs import SqsQueue
    from simagent.stores.s3_calls import Access


def open_store(
    config: Config,
    *,
    existing: bool = False,
    prove: bool = False,
    lease: bool = False,
    told: Callable[[str], None] = lambda _why: None,
) -> Store:
    """Make the store, one that was there before if ``existing``.

    ``prove`` is for who relies on its conditional writes: where they might be missing they are
    tried, at once or, of an ``existing`` store or one that cannot be reached, with the first;
    ``told`` hears why it could not be.
    ``lease`` is for renewals, which wait for no answer for long.
    Raises `simagent.ports.store.StoreRefusedError`.
    """
    if _scheme(config.store_url) == "s3":
        return _open_s3(config, existing=existing, prove=prove, lease=lease, told=told)
    from simagent.stores.directory import DirectoryStore

    return DirectoryStore(_path(config.store_url), existing=existing)


def _open_s3(
    config: Config, *, existing: bool, prove: bool, lease: bool, told: Callable[[str], None]
) -> Store:
    from simagent.stores.s3 import S3Store
    from simagent.stores.s3_calls import LEASE_ANSWER, LEASE_CONNECT

    access = _access(config)
    if lease:
        access = replace(access, connect=LEASE_CONNECT, answer=LEASE_ANSWER)
    store = S3Store(config.store_url, access, prove=prove)
    if prove and not existing:
        # An outage passes, and the agent has more to do meanwhile than to start again and again.
        try:
            store.prove()
        except StoreUnavailableError as error:
            told(str(error))
    return store


def _access(config: Config) -> "Access":
    from simagent.stores.s3_calls import Access

    return Access(
        endpoint=config.s3_endpoint,
        region=config.s3_region,
        path_style=config.s3_path_style,
        ca_bundle=config.s3_ca_bundle,
        kms_key=config.s3_kms_key,
    )


def open_queue(config: Config, group: str, *, prove: bool = False) -> Queue:
    """Make the queue of a group. Raises `simagent.ports.queue.QueueRefusedError`.

    ``prove`` is for who polls it: where it might be missing it is looked for. One that cannot be
    reached may be there.
    """
    if _scheme(config.queue_url) == "sqs":
        queue = _open_sqs(config, group)
        if prove:
            with suppress(QueueUnavailableError):
                queue.find()
        return queue
    from simagent.queues.sqlite import SqliteQueue

    return SqliteQueue(_path(config.queue_url), group, SystemClock())


def _open_sqs(config: Config, group: str) -> "SqsQueue":
    from simagent.queues.sqs import SqsQueue

    name = config.queue_url.removeprefix("sqs://")
    if "{group}" not in name and group != config.group:
        raise QueueRefusedError(
            f"sqs://{name} is the queue of group {config.group!r} alone, not of {group!r}: "
            f"set group to that, or name the queues as sqs://{name}-{{group}}"
        )
    return SqsQueue(
        name,
        group,
        SystemClock(),
        region=config.sqs_region,
        endpoint=config.sqs_endpoint,
        ca_bundle=config.sqs_ca_bundle,
    )


def try_queue(config: Config) -> str:
    """Use the queue, and tell what was found. Raises QueueError, OSError."""
    if _scheme(config.queue_url) == "sqs":
        # Nothing is sent: an agent of the group would hear it.
        return _open_sqs(config, config.group).check()
    queue = open_queue(config, "simagent-doctor")
    queue.send("doctor")
    message = queue.receive(visibility=30.0, wait=1.0, wake=Wake())
    if message is None:
        raise QueueUnavailableError("a message that was sent did not come")
    queue.delete(message.receipt)
    return "a message was sent and received"


def queues(config: Config) -> Callable[[str], Queue]:
    """Give what opens the queue of a group, once each."""
    opened: dict[str, Queue] = {}

    def open_once(group: str) -> Queue:
        if group not in opened:
            opened[group] = open_queue(config, group)
        return opened[group]

    return open_once


def set_up_store(config: Config, way: Way) -> Iterator[Finding]:
    """Make what the store needs, and try it. Raises StoreError."""
    if _scheme(config.store_url) != "s3":
        yield Finding("store", "ok", f"{config.store_url} needs nothing to be set up")
        return
    from simagent.stores.s3 import S3Store
    from simagent.stores.s3_setup import BucketSetup

    setup = BucketSetup(config.store_url, _access(config), way)
    yield from setup.findings()
    if way.dry:
        yield Finding("store", "planned", f"{config.store_url}: compare-and-swap would be tried")
        return
    S3Store(config.store_url, _access(config), prove=True).prove()
    yield Finding("store", "ok", f"{config.store_url}: compare-and-swap tried")


def set_up_queues(config: Config, groups: Sequence[str], way: Way) -> Iterator[Finding]:
    """Make the queues of groups. Raises QueueError."""
    if _scheme(config.queue_url) != "sqs":
        yield Finding("queue", "ok", f"{config.queue_url} needs nothing to be set up")
        return
    from simagent.queues.sqs_setup import set_up_queue

    for name in dict.fromkeys(queue_names(config, groups)):
        yield from set_up_queue(
            name,
            way,
            region=config.sqs_region,
            endpoint=config.sqs_endpoint,
            ca_bundle=config.sqs_ca_bundle,
        )


def queue_names(config: Config, groups: Sequence[str]) -> list[str]:
    """Name the queues that groups have in SQS, if they have any. Raises `QueueRefusedError`."""
    if _scheme(config.queue_url) != "sqs":
        return []
    return [_open_sqs(config, group).name for group in groups]


def queue_region(config: Config) -> str:
    """Tell the region of the queues in SQS. Raises `QueueRefusedError`."""
    from simagent.queues.sqs_calls import find_region

    return find_region(config.sqs_region)


def _scheme(url: str) -> str:
    return urlsplit(url).scheme


def _path(url: str) -> Path:
    return Path(unquote(urlsplit(url).path))
