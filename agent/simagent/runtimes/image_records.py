"""What was fetched: a small file for each image, so that only that is ever listed or removed."""

import fcntl
import hashlib
import json
import os
import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from simagent.ports.clock import SystemClock, Waitable
from simagent.ports.images import KeptImage, PullInterruptedError

FORMAT = 1
_LOOK_EVERY = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageRecord:
    """One image that is on this machine.

    ``refs`` are the references that last meant it here, ``used`` is Unix time. What was here
    before it was asked for is not ``ours``: it is known, and never removed. ``details`` are the
    runtime's own.
    """

    refs: tuple[str, ...]
    digest: str
    handle: str
    size_bytes: int
    used: float
    pinned: bool = False
    ours: bool = True
    details: Mapping[str, Any] = field(default_factory=dict)


class ImageRecords:
    """The records of one runtime in ``folder``, for all processes that use it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def all(self) -> list[ImageRecord]:
        """Give all records, the least recently used first. One that is damaged is set aside."""
        found = []
        for path in self.folder.glob("*.json"):
            record = _read(path)
            if record is not None:
                found.append(record)
        return sorted(found, key=lambda record: record.used)

    def kept(self) -> list[KeptImage]:
        """List the images that are this agent's, the least recently used first."""
        return [
            KeptImage(
                refs=record.refs,
                digest=record.digest,
                handle=record.handle,
                size_bytes=record.size_bytes,
                used=record.used,
                pinned=record.pinned,
            )
            for record in self.all()
            if record.ours
        ]

    def of(self, digest: str) -> ImageRecord | None:
        """Find an image by its digest."""
        return _read(self._path(digest))

    def is_left_alone(self, digest: str, since: float | None) -> bool:
        """Tell whether an image is known that nobody has asked for since a Unix time, if named."""
        record = self.of(digest)
        return record is not None and (since is None or record.used <= since)

    def meant(self, ref: str) -> ImageRecord | None:
        """Find what a reference last meant here."""
        return next((record for record in self.all() if ref in record.refs), None)

    def note(self, record: ImageRecord, *, ref: str, pin: bool = False) -> None:
        """Write down an image, and that ``ref`` means it from now on. Raises OSError.

        What was known of it is kept: other references, that it is pinned, whose it is.
        """
        with self._written():
            for other in self.all():
                if other.digest != record.digest and ref in other.refs:
                    self._write(replace(other, refs=tuple(r for r in other.refs if r != ref)))
            before = self.of(record.digest)
            refs, pinned, ours = record.refs, record.pinned or pin, record.ours
            if before is not None:
                refs, pinned = (*refs, *before.refs), pinned or before.pinned
                ours = before.ours
            refs = tuple(dict.fromkeys((ref, *refs)))
            self._write(replace(record, refs=refs, pinned=pinned, ours=ours))

    def unpin(self, digest: str) -> None:
        """Let an image be removed again."""
        with self._written():
            record = self.of(digest)
            if record is not None:
                self._write(replace(record, pinned=False))

    def forget(self, digest: str) -> None:
        """Remove the record of an image."""
        with self._written():
            self._path(digest).unlink(missing_ok=True)

    @contextmanager
    def fetching(self, key: str, *wakes: Waitable) -> Iterator[None]:
        """Be the only one that fetches, or removes, what ``key`` names, of all processes.

        Raises `PullInterruptedError` where one of ``wakes`` is ready before it is one's turn.
        """
        # By a hash: the file stays, and a reference may be longer than a name can be.
        name = hashlib.sha256(key.encode()).hexdigest()[:16]
        with self._open(f"fetch-{name}.lock") as lock:
            while not _taken(lock):
                if SystemClock().wait(_LOOK_EVERY, *wakes):
                    raise PullInterruptedError
            yield

    @contextmanager
    def _written(self) -> Iterator[None]:
        with self._open("write.lock") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    @contextmanager
    def _open(self, name: str) -> Iterator[int]:
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = os.open(self.folder / name, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            yield lock
        finally:
            os.close(lock)

    def _path(self, digest: str) -> Path:
        return self.folder / f"{digest.replace(':', '_')}.json"

    def _write(self, record: ImageRecord) -> None:
        path = self._path(record.digest)
        part = path.with_name(f"{path.name}.{secrets.token_hex(4)}.part")
        try:
            part.write_text(json.dumps({"format": FORMAT, **asdict(record)}))
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)


def _taken(lock: int) -> bool:
    with suppress(BlockingIOError):
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True
    return False


def _read(path: Path) -> ImageRecord | None:
    try:
        fields = json.loads(path.read_bytes())
        return ImageRecord(
            refs=tuple(fields["refs"]),
            digest=fields["digest"],
            handle=fields["handle"],
            size_bytes=fields["size_bytes"],
            used=fields["used"],
            pinned=fields["pinned"],
            ours=fields["ours"],
            details=fields["details"],
        )
    except FileNotFoundError:
        return None
    except (ValueError, LookupError, TypeError):
        with suppress(OSError):
            path.replace(path.with_suffix(".corrupt"))
        return None
