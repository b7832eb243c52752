"""One question to a metadata server: short, never by way of a proxy."""

import http.client
import json
import socket
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from typing import Any
from urllib.parse import urlsplit

from simagent.ports.cloud import CloudError

LINK_LOCAL = "http://169.254.169.254"
_SECONDS = 2.0
_IN_ALL = 5.0
_LATE = f"no whole answer came within {_IN_ALL:g} s"
_MOST_BYTES = 1 << 20


class NothingThereError(CloudError):
    """The server knows no such thing: an answer, not a failure."""


class DeniedError(CloudError):
    """The server does not let the question through (401 or 403)."""


def ask(
    base: str,
    path: str,
    headers: Mapping[str, str],
    *,
    method: str = "GET",
    body: str | None = None,
) -> str:
    """Give the body of the answer. Raises `CloudError`.

    ``base`` is http://HOST[:PORT]. It takes 2 s to connect and 2 s between bytes at most, and the
    answer 5 s in all.
    """
    where = urlsplit(base)
    connection = http.client.HTTPConnection(where.hostname or "", where.port, timeout=_SECONDS)
    try:
        connection.connect()
        with _cut_off(connection.sock) as late:
            connection.request(method, path, body, headers=dict(headers))
            answer = connection.getresponse()
            said = answer.read(_MOST_BYTES).decode(errors="replace")
        if late.is_set():
            raise TimeoutError(_LATE)
    except (OSError, http.client.HTTPException, ValueError) as error:  # the last of odd headers
        raise CloudError(f"{base}{path}: {error or type(error).__name__}") from error
    finally:
        connection.close()
    match answer.status:
        case 200:
            return said
        case 404:
            raise NothingThereError(f"{base}{path}: there is none")
        case 401 | 403:
            raise DeniedError(f"{base}{path}: answered {answer.status}")
    raise CloudError(f"{base}{path}: answered {answer.status}")


@contextmanager
def _cut_off(sock: socket.socket) -> Iterator[threading.Event]:
    """End a conversation that takes too long; gives what is set then. Raises TimeoutError."""
    late = threading.Event()

    def cut() -> None:
        late.set()
        with suppress(OSError):
            sock.shutdown(socket.SHUT_RDWR)

    timer = threading.Timer(_IN_ALL, cut)
    timer.daemon = True
    timer.start()
    try:
        yield late
    except (OSError, http.client.HTTPException) as error:
        if late.is_set():
            raise TimeoutError(_LATE) from error
        raise
    finally:
        timer.cancel()


def parse_object(text: str, cloud: str) -> dict[str, Any]:
    """Read a JSON object, the answer of a ``cloud``. Raises `CloudError`."""
    try:
        told = json.loads(text)
    except ValueError:
        told = None
    if not isinstance(told, dict):
        raise CloudError(f"the metadata server of {cloud} answered {text[:80]!r}")
    return told


def seconds_until(text: str, form: str, now: float) -> float:
    """Tell how long it is until a time in UTC, from the Unix time ``now``. Raises `CloudError`."""
    try:
        return datetime.strptime(text, form).replace(tzinfo=UTC).timestamp() - now
    except ValueError:
        raise CloudError(f"{text[:80]!r} is no time of the form {form}") from None
