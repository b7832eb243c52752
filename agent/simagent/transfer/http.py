"""Downloading over HTTP, resumed where a connection breaks."""

import ipaddress
import os
import re
import socket
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urljoin, urlsplit

import urllib3
from urllib3.exceptions import HTTPError, LocationValueError

from simagent.ports.clock import Clock, Waitable
from simagent.ports.retry import InterruptedRetryError, retrying
from simagent.transfer.errors import InputMissingError, InputRejectedError
from simagent.transfer.unpack import write_all

_CHUNK = 256 << 10
_TIMEOUT = urllib3.Timeout(connect=10, read=60)
_MAX_REDIRECTS = 5
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_TRY_AGAIN = frozenset({408, 425, 429})
_CONTENT_RANGE = re.compile(r"bytes ([0-9]+)-[0-9]+/([0-9]+|\*)")


class _TransientError(Exception):
    pass


class HttpLimits(NamedTuple):
    """``max_bytes`` of one file; seconds to go on without any progress."""

    max_bytes: int = 1 << 40
    patience: float = 300.0


def download_url(
    url: str,
    file: Path,
    *,
    clock: Clock,
    wake: Waitable,
    limits: HttpLimits = HttpLimits(),  # noqa: B008 - immutable
    on_progress: Callable[[int], None] | None = None,
) -> None:
    """Download a URL into a file.

    Raises `InputMissingError`, `InputRejectedError` (too large, or an address that only serves
    this machine), `simagent.ports.retry.InterruptedRetryError`, OSError.
    """
    handle = os.open(file, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        with urllib3.PoolManager(retries=False, timeout=_TIMEOUT) as pool:
            download = _Download(url, handle, pool, clock, wake)
            download.limits = limits
            download.on_progress = on_progress or download.on_progress
            download.run()
    finally:
        os.close(handle)


class _Download:
    def __init__(
        self, url: str, file: int, pool: urllib3.PoolManager, clock: Clock, wake: Waitable, /
    ) -> None:
        self._url = url
        self._file = file
        self._pool = pool
        self._clock = clock
        self._wake = wake
        self._have = 0
        self._moved = 0
        self._validator: str | None = None
        self.limits = HttpLimits()
        self.on_progress: Callable[[int], None] = lambda _count: None

    def run(self) -> None:
        while True:
            moved = self._moved
            try:
                retrying(
                    self._try,
                    clock=self._clock,
                    wake=self._wake,
                    on=(_TransientError,),
                    deadline=self._clock.now() + self.limits.patience,
                )
            except _TransientError as error:
                if self._moved > moved and self._moved <= 4 * self.limits.max_bytes:
                    continue
                raise InputMissingError(f"{_public(self._url)}: {error}") from error
            return

    def _try(self) -> None:
        headers = {"Accept-Encoding": "identity", "User-Agent": "simagent"}
        if self._have and self._validator:
            headers |= {"Range": f"bytes={self._have}-", "If-Range": self._validator}
        try:
            response = self._open(headers)
            try:
                self._receive(response)
            finally:
                response.close()
        except LocationValueError as error:
            raise InputMissingError(f"{_public(self._url)}: {error}") from error
        except (HTTPError, OSError) as error:
            if isinstance(error, OSError) and error.errno is not None and not _is_net(error):
                raise
            raise _TransientError(f"{type(error).__name__}: {error}") from error

    def _open(self, headers: dict[str, str]) -> urllib3.BaseHTTPResponse:
        url = self._url
        for _ in range(_MAX_REDIRECTS + 1):
            _check_address(url)
            response = self._pool.request(
                "GET", url, headers=headers, redirect=False, preload_content=False,
                decode_content=False,
            )  # fmt: skip
            if response.status not in _REDIRECTS or "location" not in response.headers:
                return response
            url = urljoin(url, response.headers["location"])
            response.close()
            if urlsplit(url).scheme not in ("http", "https"):
                raise InputRejectedError(f"{_public(self._url)} redirects to {_public(url)}")
        raise InputMissingError(f"{_public(self._url)} redirects more than {_MAX_REDIRECTS} times")

    def _receive(self, response: urllib3.BaseHTTPResponse) -> None:
        self._check_status(response)
        self._position(response)
        length = response.headers.get("content-length")
        if length is not None and self._have + int(length) > self.limits.max_bytes:
            raise self._too_large()
        while data := response.read(_CHUNK):
            self._have += len(data)
            if self._have > self.limits.max_bytes:
                raise self._too_large()
            write_all(self._file, data)
            self._moved += len(data)
            self.on_progress(len(data))
            if self._clock.wait(0, self._wake):
                raise InterruptedRetryError("a download was interrupted")

    def _too_large(self) -> InputRejectedError:
        limit = self.limits.max_bytes
        return InputRejectedError(f"{_public(self._url)} is larger than the {limit} bytes allowed")

    def _check_status(self, response: urllib3.BaseHTTPResponse) -> None:
        status = response.status
        if status in (200, 206):
            return
        if status == 416:
            self._have, self._validator = 0, None  # it changed: begin again
        if status == 416 or status in _TRY_AGAIN or status >= 500:
            raise _TransientError(f"HTTP status {status}")
        raise InputMissingError(f"{_public(self._url)}: HTTP status {status}")

    def _position(self, response: urllib3.BaseHTTPResponse) -> None:
        """Go to where the answer's data belong, and forget what is there already."""
        start = 0
        if response.status == 206:
            match = _CONTENT_RANGE.fullmatch(response.headers.get("content-range", ""))
            start = int(match[1]) if match else -1
        if start not in (0, self._have):
            self._have, self._validator = 0, None
            raise _TransientError("the server sent another part than was asked for")
        self._have = start
        os.ftruncate(self._file, start)
        os.lseek(self._file, start, os.SEEK_SET)
        etag = response.headers.get("etag", "")
        strong = etag if etag.startswith('"') else None
        self._validator = strong or response.headers.get("last-modified")


def _is_net(error: OSError) -> bool:
    return isinstance(error, ConnectionError | TimeoutError | socket.gaierror)


def _public(url: str) -> str:
    """Give a URL without what may be secret in it: the user's name and password, the query."""
    parts = urlsplit(url)
    host = parts.netloc.rpartition("@")[2]
    return f"{parts.scheme}://{host}{parts.path}"


def _check_address(url: str) -> None:
    """Refuse link-local addresses: a cloud's metadata service would give away its credentials."""
    parts = urlsplit(url)
    try:
        port = parts.port or (443 if parts.scheme == "https" else 80)
        found = socket.getaddrinfo(parts.hostname or "", port, type=socket.SOCK_STREAM)
    except ValueError as error:
        raise InputMissingError(f"{_public(url)}: {error}") from error
    for *_, address in found:
        ip = ipaddress.ip_address(str(address[0]).partition("%")[0])
        if ip.is_link_local or ip in _METADATA or _mapped(ip):
            raise InputRejectedError(f"{_public(url)} is an address that serves this machine only")


_METADATA = (
    ipaddress.ip_address("fd00:ec2::254"),  # EC2, over IPv6
    ipaddress.ip_address("100.100.100.200"),  # Alibaba Cloud
)


def _mapped(ip: ipaddress.IPv4Address | ipaddress.IPv6Address) -> bool:
    inner = ip.ipv4_mapped if isinstance(ip, ipaddress.IPv6Address) else None
    return inner is not None and (inner.is_link_local or inner in _METADATA)
