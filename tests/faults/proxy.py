"""A proxy before S3 or SQS that harms what passes: HTTP whose operations it knows by name.

    with Proxy(server) as proxy:
        proxy.rules.append(Rule(LOST, "PutObject state.json:finalizing", each=1))
        ... use proxy.endpoint ...

Operations are named as S3 and SQS name them, those of S3 with the key they are about, ids and
numbers left out, and what is written to a state with the status: ``PutObject state.json:running
again`` is a renewal. Requests go on as they came, signed for the proxy's own address.
"""

import asyncio
import json
import random
import re
import struct
import threading
import zlib
from base64 import b64encode
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from socket import SO_LINGER, SOL_SOCKET
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from engines.ports import free_port

RESET = "reset before it is passed on"
LOST = "applied, and its answer lost"
STALL = "stalled before it is passed on"
STALL_AFTER = "applied, and its answer stalled"
SLOW_DOWN = "503 SlowDown"
BROKEN = "500 InternalError"
BROKEN_AFTER = "applied, and 500 InternalError"
CONFLICT = "409 ConditionalRequestConflict"
SKEWED = "403 RequestTimeTooSkewed"
EXPIRED = "ExpiredToken"
CUT_UP = "cut on its way up"
CUT_DOWN = "its answer cut"
BENT_UP = "a byte changed on its way up"
BENT_DOWN = "a byte of its answer changed"
WRONG_SUM = "its answer with a wrong checksum"
LATE = "applied seconds after its client gave up"
STRANGER = "answered by somebody else, 200 and a page"
KINDS = (
    RESET,
    LOST,
    STALL,
    STALL_AFTER,
    SLOW_DOWN,
    BROKEN,
    BROKEN_AFTER,
    CONFLICT,
    SKEWED,
    EXPIRED,
    CUT_UP,
    CUT_DOWN,
    BENT_UP,
    BENT_DOWN,
    WRONG_SUM,
    LATE,
    STRANGER,
)

_REFUSALS = {  # the status; the codes of S3 and of SQS
    SLOW_DOWN: (503, "SlowDown", "ServiceUnavailable"),
    BROKEN: (500, "InternalError", "InternalFailure"),
    BROKEN_AFTER: (500, "InternalError", "InternalFailure"),
    CONFLICT: (409, "ConditionalRequestConflict", ""),
    SKEWED: (403, "RequestTimeTooSkewed", "RequestExpired"),
    EXPIRED: (400, "ExpiredToken", "ExpiredTokenException"),
}
_AFTER = {LOST, STALL_AFTER, BROKEN_AFTER}
_LONGEST_STALL = 90.0
_PAGE = b"<html><body>Please log in to use this network.</body></html>"


@dataclass(kw_only=True)
class Request:
    """One request as it came, whole."""

    head: bytes
    body: bytes
    method: str
    target: str
    headers: dict[str, str]
    name: str = ""

    @property
    def of_sqs(self) -> bool:
        """Whether SQS is asked, else S3."""
        return "x-amz-target" in self.headers

    @property
    def conditional(self) -> bool:
        """Whether it is only to be done where something holds."""
        return "if-match" in self.headers or "if-none-match" in self.headers


@dataclass
class Rule:
    """Harms what matches: a share of it by chance, ``each`` operation so many times at most.

    ``seconds`` is for how long it stalls, or how late it is applied; ``then`` is called when it
    strikes, before anything of it is passed on, or for the faults after that, once it is applied.
    """

    kind: str
    at: str = "*"
    share: float = 1.0
    each: int | None = None
    times: int | None = None
    seconds: float = 2.0
    then: Callable[[], None] | None = None
    struck: Counter[str] = field(default_factory=Counter)

    def strikes(self, request: Request, dice: random.Random) -> bool:
        """Tell whether this request is harmed, and count it."""
        if not (fnmatchcase(request.name, self.at) and _can_be(self.kind, request)):
            return False
        if self.each is not None and self.struck[request.name] >= self.each:
            return False
        if self.times is not None and self.struck.total() >= self.times:
            return False
        if dice.random() >= self.share:
            return False
        self.struck[request.name] += 1
        return True


def _can_be(kind: str, request: Request) -> bool:
    if kind == CONFLICT:
        return request.conditional
    if kind in (CUT_UP, BENT_UP):
        return bool(request.body) and not request.of_sqs
    if kind in (BENT_DOWN, WRONG_SUM):
        return request.name.startswith("GetObject ")
    return True


class Proxy:
    """Stands before ``server``, http://HOST:PORT, while it is entered. Chance is by ``seed``."""

    def __init__(self, server: str, *rules: Rule, seed: int = 0) -> None:
        parts = urlsplit(server)
        self._server = parts.hostname or "", parts.port or 80
        self.rules = list(rules)
        self.passed: Counter[str] = Counter()
        """How often each operation was asked for."""
        self._dice = random.Random(seed)
        self._written: dict[str, str] = {}
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._listener: asyncio.Server | None = None
        self._open: set[asyncio.StreamWriter] = set()
        self._port = free_port()  # the same again after `down`: nobody else is to have it

    @property
    def endpoint(self) -> str:
        """The URL to use in the place of the server's."""
        return f"http://127.0.0.1:{self._port}"

    def __enter__(self) -> "Proxy":
        self._thread.start()
        self._wait(self._listen())
        return self

    def __exit__(self, *_: object) -> None:
        self._wait(self._shut())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()

    @contextmanager
    def harming(self, *rules: Rule) -> Iterator[None]:
        """Keep to these rules, before those there are, for a while."""
        before, self.rules = self.rules, [*rules, *self.rules]
        try:
            yield
        finally:
            self.rules = before

    @contextmanager
    def down(self) -> Iterator[None]:
        """Break all connections and take no new ones for a while."""
        self._wait(self._shut())
        try:
            yield
        finally:
            self._wait(self._listen())

    def _wait(self, what: Any) -> None:
        asyncio.run_coroutine_threadsafe(what, self._loop).result(30)

    async def _listen(self) -> None:
        self._listener = await asyncio.start_server(
            self._serve, "127.0.0.1", self._port, limit=2**20, reuse_address=True
        )

    async def _shut(self) -> None:
        if self._listener is not None:
            self._listener.close()
        for writer in list(self._open):
            _reset(writer)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._open.add(writer)
        try:
            while request := await read_request(reader, writer):
                self._name(request)
                if not await self._handle(request, reader, writer):
                    break
        except (OSError, asyncio.IncompleteReadError, ValueError):
            pass  # a client, or the server, broke off
        finally:
            self._open.discard(writer)
            writer.close()

    def _name(self, request: Request) -> None:
        request.name = name_of(request)
        if request.name.endswith("state.json") and request.method == "PUT":
            with suppress(ValueError, KeyError):
                status = json.loads(request.body)["status"]
                again = " again" if self._written.get(request.target) == status else ""
                self._written[request.target] = status
                request.name += f":{status}{again}"
        self.passed[request.name] += 1

    async def _handle(
        self, request: Request, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> bool:
        """Answer, or harm; False where the connection is over with that."""
        rule = next((r for r in self.rules if r.strikes(request, self._dice)), None)
        if rule is None:
            return await self._answer(await self._ask(request), writer)
        answer = await self._ask(request) if rule.kind in _AFTER else b""
        if rule.then is not None:
            await asyncio.to_thread(rule.then)
        return await self._harm(rule, request, answer, reader, writer)

    async def _harm(
        self,
        rule: Rule,
        request: Request,
        answer: bytes,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
    ) -> bool:
        match rule.kind:
            case _ if rule.kind in _REFUSALS:
                return await self._answer(_refusal(rule.kind, request), writer)
            case _ if rule.kind == STRANGER:
                return await self._answer(_respond(200, "text/html", _PAGE), writer)
            case _ if rule.kind in (STALL, STALL_AFTER):
                await _gone(reader, _LONGEST_STALL)
            case _ if rule.kind == LATE:
                _reset(writer)
                await asyncio.sleep(rule.seconds)
                await self._ask(request)
            case _ if rule.kind == CUT_UP:
                await self._ask(request, most=len(request.body) // 2)
            case _ if rule.kind == BENT_UP:
                return await self._answer(await self._ask_bent(request), writer)
            case _ if rule.kind in (CUT_DOWN, BENT_DOWN, WRONG_SUM):
                answer = _harmed(rule.kind, await self._ask(request))
                await self._answer(answer, writer)
                if rule.kind != CUT_DOWN:
                    return True
        _reset(writer)
        return False

    async def _ask(self, request: Request, most: int | None = None) -> bytes:
        """Pass a request on, or only so many bytes of its body; give the whole answer."""
        reader, writer = await asyncio.open_connection(*self._server)
        try:
            writer.write(request.head + request.body[:most])
            if most is not None:
                writer.write_eof()
            await writer.drain()
            return await reader.read(-1)
        finally:
            _reset(writer) if most is not None else writer.close()

    async def _ask_bent(self, request: Request) -> bytes:
        """Change a byte of the body, which S3 finds where a checksum was sent along."""
        body = bytearray(request.body)
        body[len(body) // 2] ^= 1
        declared = request.headers.get("x-amz-checksum-crc32")
        if declared == b64encode(zlib.crc32(request.body).to_bytes(4)).decode():
            return _refusal(BENT_UP, request)  # also where the server does not look at it
        bent = Request(
            head=request.head,
            body=bytes(body),
            method=request.method,
            target=request.target,
            headers=request.headers,
        )
        return await self._ask(bent)

    async def _answer(self, answer: bytes, writer: asyncio.StreamWriter) -> bool:
        writer.write(answer)
        await writer.drain()
        return False  # the server was asked to close its connection, and says so


async def read_request(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter
) -> Request | None:
    """Read a request; None where the client has gone. Raises ValueError, OSError."""
    try:
        head = await reader.readuntil(b"\r\n\r\n")
    except asyncio.IncompleteReadError:
        return None
    first, *lines = head.decode("latin-1").rstrip("\r\n").split("\r\n")
    method, target, _ = first.split(" ", 2)
    headers = {}
    for line in lines:
        key, _, value = line.partition(":")
        headers[key.strip().lower()] = value.strip()
    if headers.get("expect", "").lower() == "100-continue":
        writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
    body = await reader.readexactly(int(headers.get("content-length", 0)))
    kept = [x for x in lines if x.partition(":")[0].lower() not in ("connection", "expect")]
    passed = "\r\n".join([first, *kept, "Connection: close", "", ""]).encode("latin-1")
    return Request(head=passed, body=body, method=method, target=target, headers=headers)


def name_of(request: Request) -> str:
    """Name the operation as its server does, with what it is about."""
    if request.of_sqs:
        return request.headers["x-amz-target"].rpartition(".")[2]
    parts = urlsplit(request.target)
    query = parse_qs(parts.query, keep_blank_values=True)
    _, _, key = unquote(parts.path).lstrip("/").partition("/")
    if not key:
        prefix = _short(query.get("prefix", [""])[0])
        return f"ListObjectsV2 {prefix}" if request.method == "GET" else f"{request.method} bucket"
    return f"{_operation(request, query)} {_short(key)}"


def _operation(request: Request, query: dict[str, list[str]]) -> str:
    match request.method:
        case "POST":
            return "CreateMultipartUpload" if "uploads" in query else "CompleteMultipartUpload"
        case "PUT":
            return "UploadPart" if "uploadId" in query else "PutObject"
        case "DELETE":
            return "AbortMultipartUpload" if "uploadId" in query else "DeleteObject"
    return f"{request.method.capitalize()}Object"


def _short(key: str) -> str:
    """Leave out of a key what differs from run to run."""
    key = re.sub(r"^.*?\b(?=p/|open/|sweep/|agents/|checks/)", "", key)
    key = re.sub(r"p/[^/]+/tasks/[^/]+/", "", key)
    key = re.sub(r"open/([^/]+)/.+", r"open/\1/ID", key)
    key = re.sub(r"\b[0-9A-HJKMNP-TV-Z]{26}\b", "ID", key)
    key = re.sub(r"[0-9a-f]{16,32}", "H", key)
    return re.sub(r"\d+", "N", key)


def _refusal(kind: str, request: Request) -> bytes:
    status, code, of_sqs = _REFUSALS.get(kind, (400, "BadDigest", ""))
    if request.of_sqs:
        said = json.dumps({"__type": f"com.amazonaws.sqs#{of_sqs}", "message": kind}).encode()
        return _respond(status, "application/x-amz-json-1.0", said)
    text = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>{kind}</Message></Error>"
    return _respond(status, "application/xml", b"" if request.method == "HEAD" else text.encode())


def _respond(status: int, kind: str, body: bytes) -> bytes:
    head = f"HTTP/1.1 {status} -\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}"
    return f"{head}\r\nConnection: close\r\n\r\n".encode() + body


def _harmed(kind: str, answer: bytes) -> bytes:
    head, _, body = answer.partition(b"\r\n\r\n")
    if kind == CUT_DOWN:
        return answer[: len(head) + 4 + len(body) // 2]
    if kind == BENT_DOWN and body:
        body = (
            body[: len(body) // 2] + bytes([body[len(body) // 2] ^ 1]) + body[len(body) // 2 + 1 :]
        )
    if kind == WRONG_SUM:
        head = re.sub(rb"(?i)(x-amz-checksum-crc32: )\S+", rb"\1AAAAAA==", head)
    return head + b"\r\n\r\n" + body


async def _gone(reader: asyncio.StreamReader, seconds: float) -> None:
    """Wait until a client gives up."""
    with suppress(TimeoutError):
        await asyncio.wait_for(reader.read(1), seconds)


def _reset(writer: asyncio.StreamWriter) -> None:
    """Break a connection off, so that the other side sees a reset."""
    with suppress(OSError, AttributeError):
        socket = writer.get_extra_info("socket")
        socket.setsockopt(SOL_SOCKET, SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()
