"""Somebody else answers in the place of S3 or SQS, as the log-in page of a network does."""

from collections.abc import Callable
from typing import Any

import pytest

from fakes.aws import Moto
from fakes.s3 import Bucket, make_store
from faults.proxy import STRANGER, Proxy, Rule
from simagent.ports.clock import SystemClock, Wake
from simagent.ports.queue import Message, QueueUnavailableError
from simagent.ports.store import StoreUnavailableError
from simagent.queues.sqs import SqsQueue
from simagent.stores.s3 import S3Store
from simagent.stores.s3_calls import Access

STORE: dict[str, Callable[[S3Store], Any]] = {
    "get": lambda store: store.get("a"),
    "put": lambda store: store.put("a", b"1"),
    "create": lambda store: store.put("a", b"1", if_absent=True),
    "change": lambda store: store.put("a", b"1", if_match='"1"'),
    "delete": lambda store: store.delete("a"),
    "scan": lambda store: list(store.scan("a")),
    "head": lambda store: store.head("a"),
    "open": lambda store: store.open("a").__enter__(),
    "read on": lambda store: store.open("a", start=5).__enter__(),
    "upload": lambda store: store.upload("a", lambda: [b"1"]),
    "upload in parts": lambda store: store.upload("a", lambda: [bytes(17 << 20)]),
    "prove": lambda store: store.prove(),
}
QUEUE: dict[str, Callable[[SqsQueue], Any]] = {
    "send": lambda queue: queue.send("a"),
    "receive": lambda queue: queue.receive(visibility=5.0, wait=1.0, wake=Wake()),
    "hide": lambda queue: queue.hide("r", 5.0),
    "delete": lambda queue: queue.delete("r"),
    "reject": lambda queue: queue.reject(Message("a", "r", 1), "why"),
    "check": lambda queue: queue.check(),
}


@pytest.mark.parametrize("call", STORE)
def test_no_call_takes_it_for_s3(bucket: Bucket, call: str) -> None:
    make_store(bucket).put("a", b"what was there")
    with Proxy(bucket.endpoint, Rule(STRANGER)) as proxy:
        store = S3Store(bucket.url, Access(proxy.endpoint, bucket.region), prove=True)
        with pytest.raises(StoreUnavailableError):
            STORE[call](store)
    assert make_store(bucket).get("a").data == b"what was there"


@pytest.mark.parametrize("call", QUEUE)
def test_no_call_takes_it_for_sqs(moto: Moto, call: str) -> None:
    with Proxy(moto.endpoint, Rule(STRANGER)) as proxy:
        queue = SqsQueue(
            "name", "default", SystemClock(), region=moto.region, endpoint=proxy.endpoint
        )
        with pytest.raises(QueueUnavailableError):
            QUEUE[call](queue)
