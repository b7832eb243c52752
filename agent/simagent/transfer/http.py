"""Downloading over HTTP, resumed where a connection breaks."""

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
from simagent.transfer.addresses import (
    METADATA,
    AddressRefusedError,
    Network,
    check_address,
    checked_pool,
)
from simagent.transfer.errors import InputMissingError, InputRejectedError
from simagent.transfer.unpack import write_all

_CHUNK = 256 << 10
_TIMEOUT = urllib3.Timeout(connect=10, read=60)
_SLOWEST = 1024  # bytes a second
_MAX_REDIRECTS = 5
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_TRY_AGAIN = frozenset({408, 425, 429})
_CONTENT_RANGE = re.compile(r"bytes ([0-9]+)-[0-9]+/([0-9]+|\*)")


class _TransientError(Exception):
    pass


class HttpLimits(NamedTuple):
    """``max_bytes`` of one file; seconds to go on without progress; what is never talked to.

    Less than a kilobyte a second is no progress.
    """

    max_bytes: int = 1 << 40
    patience: float = 300.0
    refused: tuple[Network, ...] = METADATA


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
        with checked_pool(limits.refused, _TIMEOUT) as pool:
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
                moved = self._moved - moved
                if self._is_progress(moved) and self._moved <= 4 * self.limits.max_bytes:
                    continue
                raise InputMissingError(f"{_public(self._url)}: {error}") from error
            return

    def _is_progress(self, moved: int) -> bool:
        return moved >= _SLOWEST * self.limits.patience

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
        except AddressRefusedError as error:
            message = f"{_public(self._url)} leads to {error}, an address that serves this machine"
            raise InputRejectedError(f"{message} only") from error
        except (HTTPError, OSError) as error:
            if isinstance(error, OSError) and error.errno is not None and not _is_net(error):
                raise
            raise _TransientError(f"{type(error).__name__}: {error}") from error

    def _open(self, headers: dict[str, str]) -> urllib3.BaseHTTPResponse:
        url = self._url
        for _ in range(_MAX_REDIRECTS + 1):
            self._check(url)
            response = self._pool.request(
                "GET", url, headers=headers, redirect=False, preload_content=False,
                decode_content=False,
            )  # fmt: skip
            if response.status not in _REDIRECTS or "location" not in response.headers:
                return response
            response.close()
            url = self._redirected(url, response.headers["location"])
        raise InputMissingError(f"{_public(self._url)} redirects more than {_MAX_REDIRECTS} times")

    def _redirected(self, url: str, location: str) -> str:
        try:
            target = urljoin(url, location)
            scheme = urlsplit(target).scheme
        except ValueError as error:
            raise InputMissingError(f"{_public(self._url)} redirects to no URL: {error}") from error
        if scheme not in ("http", "https"):
            raise InputRejectedError(f"{_public(self._url)} redirects to {_public(target)}")
        return target

    def _check(self, url: str) -> None:
        """Look at a URL's addresses before any is connected to."""
        try:
            parts = urlsplit(url)
            port = parts.port or (443 if parts.scheme == "https" else 80)
            found = socket.getaddrinfo(parts.hostname or "", port, type=socket.SOCK_STREAM)
        except ValueError as error:
            raise InputMissingError(f"{_public(url)}: {error}") from error
        for *_, address in found:
            check_address(str(address[0]), self.limits.refused)

    def _receive(self, response: urllib3.BaseHTTPResponse) -> None:
        self._check_status(response)
        self._position(response)
        length = response.headers.get("content-length", "0")
        if not length.isdecimal():
            raise InputMissingError(f"{_public(self._url)}: its length is no number")
        if self._have + int(length) > self.limits.max_bytes:
            raise self._too_large()
        since, moved = self._clock.now(), self._moved
        # As it comes: a server that is slow to fill a buffer is not to be waited for.
        while data := response.read1(_CHUNK):
            self._have += len(data)
            if self._have > self.limits.max_bytes:
                raise self._too_large()
            write_all(self._file, data)
            self._moved += len(data)
            self.on_progress(len(data))
            if self._clock.wait(0, self._wake):
                raise InterruptedRetryError("a download was interrupted")
            if self._clock.now() - since >= self.limits.patience:
                if not self._is_progress(self._moved - moved):
                    raise InputMissingError(f"{_public(self._url)}: the server is too slow")
                since, moved = self._clock.now(), self._moved

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
    try:
        parts = urlsplit(url)
    except ValueError:
        return "the URL"
    host = parts.netloc.rpartition("@")[2]
    return f"{parts.scheme}://{host}{parts.path}"
