"""Somebody else answers in the place of S3 or SQS, as the log-in page of a network does."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
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


@contextmanager
def answering(status: int, kind: str, page: bytes) -> Iterator[str]:
    """Answer every call with the page; give the endpoint."""

    class Handler(BaseHTTPRequestHandler):
        def _any(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length") or 0))
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(page)))
            self.end_headers()
            self.wfile.write(page if self.command != "HEAD" else b"")

        do_GET = do_PUT = do_HEAD = do_DELETE = do_POST = _any

        def log_message(self, format: str, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()


PAGES = pytest.mark.parametrize(
    ("status", "kind", "page"),
    [
        # As proxies and balancers answer while no server is behind them.
        (404, "text/plain", b"404 page not found\n"),
        (404, "text/html", b"<html><body><h1>Not Found</h1></body></html>"),
        (404, "text/plain", b""),
        (403, "text/html", b"<html><body>Blocked</body></html>"),
        (407, "text/html", b"<html><body>Who are you?</body></html>"),
    ],
)


@PAGES
@pytest.mark.usefixtures("moto")
def test_no_call_takes_the_error_of_a_stranger_for_that_of_s3(
    status: int, kind: str, page: bytes
) -> None:
    """A state that seems to be gone would end the simulation."""
    with answering(status, kind, page) as endpoint:
        store = S3Store("s3://box/pre", Access(endpoint, "eu-west-1"), prove=True)
        for call in STORE.values():
            with pytest.raises(StoreUnavailableError, match="is no S3"):
                call(store)


@pytest.mark.parametrize(
    ("status", "kind", "page"),
    [
        (200, "application/json", b'{"login": "please"}'),
        (200, "application/json", b'"login"'),
        (200, "text/plain", b"log in"),
        (200, "text/plain", b""),
        (400, "application/json", b'["no"]'),
        (400, "application/json", b'{"__type": 5}'),
    ],
)
@pytest.mark.usefixtures("moto")
def test_what_sqs_would_never_say_ends_nobody(status: int, kind: str, page: bytes) -> None:
    with answering(status, kind, page) as endpoint:
        queue = SqsQueue("q", "default", SystemClock(), region="eu-west-1", endpoint=endpoint)
        for call in QUEUE.values():
            with pytest.raises(QueueUnavailableError, match="is no SQS"):
                call(queue)


@PAGES
@pytest.mark.usefixtures("moto")
def test_no_call_takes_the_error_of_a_stranger_for_that_of_sqs(
    status: int, kind: str, page: bytes
) -> None:
    with answering(status, kind, page) as endpoint:
        queue = SqsQueue("q", "default", SystemClock(), region="eu-west-1", endpoint=endpoint)
        for call in QUEUE.values():
            with pytest.raises(QueueUnavailableError, match="is no SQS"):
                call(queue)
