"""Image files in the store: those that tasks name, and those that one agent made for all."""

import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from simagent.domain.reasons import Reason
from simagent.ports.clock import SystemClock, Waitable
from simagent.ports.images import ImageError, Progress, PullInterruptedError
from simagent.ports.store import (
    NotFoundError,
    PreconditionError,
    Store,
    StoreError,
    StoreRefusedError,
)
from simagent.runtimes.apptainer_build import disk_error
from simagent.runtimes.sif import CHUNK, architecture

_CACHE = "images/cache"


class SifStore:
    """The store, as far as it holds image files."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def etag(self, key: str) -> str:
        """Tell which version of an image file is there. Raises `ImageError`."""
        try:
            return self._store.head(key).etag
        except StoreError as error:
            raise _error(key, error) from error

    def download(
        self, key: str, file: Path, *wakes: Waitable, progress: Progress | None = None
    ) -> str:
        """Download an image file; give its digest. Raises `ImageError`, `PullInterruptedError`."""
        clock, found, done = SystemClock(), hashlib.sha256(), 0
        try:
            size = self._store.head(key).size
            with self._store.open(key) as source, file.open("wb") as target:
                while chunk := source.read(CHUNK):
                    target.write(chunk)
                    found.update(chunk)
                    done += len(chunk)
                    if progress is not None:
                        progress(done, size)
                    if wakes and clock.wait(0, *wakes):
                        raise PullInterruptedError
        except StoreError as error:
            raise _error(key, error) from error
        except OSError as error:
            raise disk_error(error, file) from error
        if done != size:
            raise ImageError(
                Reason.IMAGE_PULL, f"store://{key}: {done} bytes of {size} came", retryable=True
            )
        return f"sha256:{found.hexdigest()}"

    def find_made(
        self, digest: str, file: Path, *wakes: Waitable, progress: Progress | None = None
    ) -> bool:
        """Download what another agent made of an image, if it is what that agent wrote.

        Raises `PullInterruptedError`.
        """
        try:
            note = json.loads(self._store.get(_note(digest)).data)
            key, wanted = str(note["key"]), str(note["digest"])
            if key.startswith(f"{_CACHE}/"):
                return self.download(key, file, *wakes, progress=progress) == wanted
        except (StoreError, ImageError, ValueError, LookupError, TypeError):
            pass
        return False

    def keep_made(self, digest: str, file: Path, made: str) -> None:
        """Keep what was made of an image for all agents. Where that fails, others make it, too.

        The file comes first, under a name of its own: two agents may have made it at a time.
        """
        key = f"{_CACHE}/{_name(digest)}/{made.replace(':', '_')}.sif"

        def chunks() -> Iterator[bytes]:
            with file.open("rb") as source:
                while chunk := source.read(CHUNK):
                    yield chunk

        note = {"format": 1, "key": key, "digest": made, "size": os.path.getsize(file)}
        with suppress(StoreError, OSError):
            with suppress(NotFoundError):
                self._store.head(_note(digest))
                return
            self._store.upload(key, chunks)
            try:
                self._store.put(_note(digest), json.dumps(note).encode(), if_absent=True)
            except PreconditionError:
                if json.loads(self._store.get(_note(digest)).data).get("key") != key:
                    self._store.delete(key)

    def forget_made(self, digest: str) -> None:
        """Let what was made of an image be made anew: it is not what was written."""
        with suppress(StoreError):
            self._store.delete(_note(digest))


def _name(digest: str) -> str:
    return f"{digest.replace(':', '_')}-{architecture()}"


def _note(digest: str) -> str:
    return f"{_CACHE}/{_name(digest)}.json"


def _error(key: str, error: StoreError) -> ImageError:
    if isinstance(error, NotFoundError):
        message = f"store://{key} is not in the store: put it there"
        return ImageError(Reason.IMAGE_NOT_FOUND, message)
    if isinstance(error, StoreRefusedError):
        return ImageError(Reason.IMAGE_DENIED, f"store://{key}: {error}")
    return ImageError(Reason.IMAGE_PULL, f"store://{key}: {error}", retryable=True)
