"""The images that a runtime has on this machine, and how more of them get here."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from simagent.domain.images import ImageRef
from simagent.domain.reasons import Reason
from simagent.ports.clock import Waitable

Progress = Callable[[int, int | None], None]
"""Told the bytes that have come, and how many there will be where that is known."""


class ImageError(Exception):
    """An image cannot be had or used; the message says why and what to do, `reason` names it.

    ``retryable`` where another try, later or on another machine, may well succeed.
    """

    def __init__(self, reason: Reason, message: str, *, retryable: bool = False) -> None:
        super().__init__(message)
        self.reason = reason
        self.retryable = retryable


class PullInterruptedError(Exception):
    """One of ``wakes`` was ready before the image was here."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Image:
    """An image that is on this machine, whole and checked.

    ``handle`` is what a `simagent.ports.runtime.Sandbox` names it by. ``digest`` says for ever
    what it holds: of the manifest in a registry, of the file else. ``user`` is the image's own
    choice, as in a Dockerfile; empty is root.
    """

    ref: str
    digest: str
    handle: str
    size_bytes: int
    user: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class KeptImage:
    """An image that this agent has fetched. ``used`` is Unix time; one ``pinned`` is kept."""

    refs: tuple[str, ...]
    digest: str
    handle: str
    size_bytes: int
    used: float
    pinned: bool = False


class Images(Protocol):
    """The images of one runtime. Only what was fetched through it is ever listed or removed."""

    name: str

    def ensure(
        self, ref: ImageRef, *wakes: Waitable, progress: Progress | None = None, pin: bool = False
    ) -> Image:
        """Give the image, fetched if it is not here yet.

        A tag is resolved anew each time; where the registry does not answer, what the tag last
        meant here will do. Several calls for one image at a time, also of other processes, fetch
        it once. ``pin`` keeps it for ever.
        Raises `ImageError`, and `PullInterruptedError`: nothing half-fetched is ever used.
        """

    def disk(self) -> Path | None:
        """Name a folder on the disk that the images lie on; None where it is not to be seen."""

    def kept(self) -> list[KeptImage]:
        """List the images that were fetched, the least recently used first."""

    def remove(self, digest: str, *, unused_since: float | None = None) -> int:
        """Remove an image unless a container uses it; tell how many bytes were freed, about.

        It stays where it was asked for after ``unused_since``, a Unix time.
        """

    def unpin(self, digest: str) -> None:
        """Let an image be removed again."""
