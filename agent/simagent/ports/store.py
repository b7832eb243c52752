"""The object store: the only truth about tasks.

The contract is that of an S3 bucket with conditional PUT. ``tests/contract/test_store.py`` holds
every engine to it.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, Protocol


class StoreError(Exception):
    """A store call did not do what it was asked to."""


class NotFoundError(StoreError):
    """No object has this key."""


class PreconditionError(StoreError):
    """A conditional write lost (HTTP 409 or 412).

    It may have lost against itself: an earlier try of the same write can have been applied while
    its answer was lost. Callers read again before they conclude anything.
    """


class StoreUnavailableError(StoreError):
    """No usable answer (timeout, reset, 5xx, no space): the outcome is unknown; try again."""


class StoreLockedOutError(StoreUnavailableError):
    """The store refuses this machine until something is mended that is not the store's.

    Its clock, its missing or expired credentials. Agents wait for it, as for the role of a machine
    that boots; people want to be told at once.
    """


class NoSpaceError(StoreUnavailableError):
    """There is no space left where the store keeps its objects.

    ``path`` is what could not be written, where that is on this machine.
    """

    def __init__(self, message: str, path: Path | None = None) -> None:
        super().__init__(message)
        self.path = path


class StoreRefusedError(StoreError):
    """The store will not do this however often it is asked (permission, read-only, bad name)."""


class StoreForbiddenError(StoreRefusedError):
    """The store does not permit it to this machine: somebody may have taken that away just now.

    What a simulation made is kept until it is permitted again.
    """


@dataclass(frozen=True, slots=True)
class Blob:
    """A small object, read whole, with the version tag that conditional writes compare."""

    data: bytes
    etag: str


@dataclass(frozen=True, slots=True)
class Entry:
    """What a listing tells of one object. ``size`` is in bytes.

    ``checked``, of an upload: the engine held what it stored against a checksum made here, so that
    it need not be read again to know that it arrived.
    """

    key: str
    size: int
    etag: str
    checked: bool = field(default=False, compare=False)


Body = Callable[[], Iterable[bytes]]
"""Makes the chunks of a large object; called anew for every try of the upload."""


class Store(Protocol):
    """An object store. Keys are ``/``-separated, never empty, without ``.`` or ``..`` parts.

    Every method raises `StoreUnavailableError` when the outcome is unknown and
    `StoreRefusedError` when trying again is useless. Engines do not retry: their callers know
    which calls may be repeated.
    """

    def get(self, key: str) -> Blob:
        """Read a small object whole. Raises `NotFoundError`."""

    def put(
        self, key: str, data: bytes, *, if_match: str | None = None, if_absent: bool = False
    ) -> str:
        """Write an object whole and return its etag.

        ``if_match`` writes only over that version, ``if_absent`` only where there is none; either
        raises `PreconditionError` when it does not hold, also where the object is missing.
        Readers see the old object or the new one, never a part. Once it returned, the object
        survives a power cut of this machine.
        """

    def delete(self, key: str) -> None:
        """Remove an object; a missing one is no error."""

    def scan(self, prefix: str, *, after: str = "", limit: int | None = None) -> Iterator[Entry]:
        """Yield the objects whose key starts with ``prefix`` and is greater than ``after``.

        In the byte order of their keys, at most ``limit``. ``prefix`` is a plain string prefix.
        Objects written or deleted meanwhile may or may not be seen.
        """

    def head(self, key: str) -> Entry:
        """Tell an object's size and etag. Raises `NotFoundError`."""

    def open(
        self, key: str, *, start: int = 0, length: int | None = None
    ) -> AbstractContextManager[BinaryIO]:
        """Read a large object, or the byte range from ``start``, as a stream.

        Raises `NotFoundError` on entry.
        """

    def upload(self, key: str, body: Body) -> Entry:
        """Write a large object from a stream of unknown length; all of it or nothing appears.

        ``body`` may raise; then nothing is written and its exception is passed on.
        """
