"""Apptainer's images on this machine: files, one for each digest, made or fetched once.

A file appears under its name whole and checked, or not at all. It is made under a lock that all
processes heed, in a folder beside it that is gone afterwards.
"""

import os
import stat
import time
from collections.abc import Callable, Collection
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from simagent.domain.images import ImageKind, ImageRef
from simagent.domain.reasons import Reason
from simagent.ports.clock import Waitable, Wake
from simagent.ports.images import Image, ImageError, KeptImage, Progress, PullInterruptedError
from simagent.ports.owners import as_owner
from simagent.ports.store import Store
from simagent.runtimes.apptainer_build import Builder, Source, disk_error
from simagent.runtimes.apptainer_program import ApptainerProgram
from simagent.runtimes.image_records import ImageRecord, ImageRecords
from simagent.runtimes.registry import Registry
from simagent.runtimes.sif import check_kind, check_sif, checksum, unreadable
from simagent.runtimes.sif_store import SifStore
from simagent.runtimes.workplace import aside, clear_workplaces, workplace

_PATIENCE = 180.0
_TRIES = 3


class ApptainerImages:
    """The image files of Apptainer in ``folder``. `Images` tells what each method does."""

    name = "apptainer"

    def __init__(
        self,
        program: str,
        folder: Path,
        store: Store | None = None,
        *,
        insecure_registries: Collection[str] = (),
        sif_cache: bool = False,
        patience: float = _PATIENCE,
    ) -> None:
        """``store`` has the images of store://, and with ``sif_cache`` what agents made of others.

        A pull that does not get on for ``patience`` seconds has failed.
        """
        self.folder = folder.absolute()
        self._records = ImageRecords(self.folder / "records")
        self._builder = Builder(ApptainerProgram(program), patience=patience)
        self._store = None if store is None else SifStore(store)
        self._share = self._store if sif_cache else None
        self._insecure = insecure_registries
        self._patience = patience
        self._sums: dict[Path, tuple[object, str]] = {}
        self._cleared = False

    def ensure(
        self, ref: ImageRef, *wakes: Waitable, progress: Progress | None = None, pin: bool = False
    ) -> Image:
        """Give the image, fetched if it is not here yet.

        Raises `ImageError`, and `PullInterruptedError`: nothing half-fetched is ever used.
        """
        try:
            _make_way(self.folder)
            if not self._cleared:
                clear_workplaces(self.folder)
                self._cleared = True
            if ref.kind is ImageKind.SIF:
                return self._in_place(ref, *wakes)
            record = _Fetch(self, ref, wakes, progress).noted(pin=pin)
        except OSError as error:
            raise disk_error(error, self.folder) from error
        return Image(
            ref=str(ref),
            digest=record.digest,
            handle=record.handle,
            size_bytes=record.size_bytes,
            labels=record.details.get("labels", {}),
        )

    def kept(self) -> list[KeptImage]:
        """List the images that were fetched, the least recently used first."""
        return self._records.kept()

    def remove(self, digest: str, *, unused_since: float | None = None) -> int:
        """Remove an image unless a container uses it; tell how many bytes were freed."""
        now = Wake()
        now.set()
        with suppress(PullInterruptedError), self._records.fetching(digest, now):
            record = self._records.of(digest)
            if record is None or not self._records.is_left_alone(digest, unused_since):
                return 0
            if _is_open(file := Path(record.handle)):
                return 0
            if file.parent == self.folder:  # nothing else was ever put there
                file.unlink(missing_ok=True)
            self._records.forget(digest)
            return record.size_bytes
        return 0

    def unpin(self, digest: str) -> None:
        """Let an image be removed again."""
        self._records.unpin(digest)

    def disk(self) -> Path | None:
        """Name a folder on the disk that the images lie on."""
        return next(path for path in (self.folder, *self.folder.parents) if path.exists())

    def _in_place(self, ref: ImageRef, *wakes: Waitable) -> Image:
        """Use an image file where it lies: it is not this agent's, and so never removed."""
        path = Path(ref.path)
        check_sif(path)
        digest = self._digest_of(path, *wakes)
        return Image(ref=str(ref), digest=digest, handle=str(path), size_bytes=path.stat().st_size)

    def _digest_of(self, path: Path, *wakes: Waitable) -> str:
        """Give the digest of a file of this machine, computed anew only where it has changed."""
        try:
            status = check_kind(path)
            stamp = (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)
            known = self._sums.get(path)
            if known is None or known[0] != stamp:
                known = self._sums[path] = (stamp, checksum(path, *wakes))
            return known[1]
        except OSError as error:
            raise unreadable(path, error) from None


class _Fetch:
    """One call of `ApptainerImages.ensure`."""

    def __init__(
        self,
        images: ApptainerImages,
        ref: ImageRef,
        wakes: tuple[Waitable, ...],
        progress: Progress | None,
    ) -> None:
        self._images = images
        self._records = images._records
        self._ref = ref
        self._wakes = wakes
        self._progress = progress

    def noted(self, *, pin: bool) -> ImageRecord:
        """Give the record of the image, written down as used now. Raises as `record`.

        In the turn of who removes it: that either finds it in use, or was there before.
        """
        for _ in range(_TRIES):
            record = self.record()
            with self._records.fetching(record.digest, *self._wakes):
                if self._here(record.digest) is not None:
                    record = replace(record, used=time.time())
                    self._records.note(record, ref=str(self._ref), pin=pin)
                    return record
        message = f"image {self._ref} is removed as soon as it is here"
        raise ImageError(Reason.IMAGE_PULL, message, retryable=True)

    def record(self) -> ImageRecord:
        """Give the record of the image, which is here then. Raises as `ensure` does; OSError."""
        if self._ref.kind is ImageKind.REGISTRY:
            return self._of_registry()
        if self._ref.kind is ImageKind.STORE:
            return self._of_store()
        digest = self._images._digest_of(Path(self._ref.path), *self._wakes)
        name = f"{self._ref.kind}:{self._ref.path}"
        return self._fetched(
            digest, lambda: (Source(name=name, otherwise=Reason.IMAGE_CORRUPT), {})
        )

    def _of_registry(self) -> ImageRecord:
        ref, wakes = self._ref, self._wakes
        limit = self._images._patience
        try:
            registry = aside(lambda: Registry(ref, self._images._insecure), *wakes, limit=limit)
            digest = aside(registry.digest, *wakes, limit=limit)
        except ImageError as error:
            before = self._meant() if error.retryable else None
            if before is None:
                raise
            return before

        def find() -> tuple[Source, dict[str, object]]:
            found = aside(lambda: registry.find(digest), *wakes, limit=limit)
            source = Source(
                name=f"docker://{ref.repository}@{found.manifest}",
                total_bytes=found.size_bytes,
                plain=registry.plain,
                logins=registry.logins(),
            )
            return source, {"labels": dict(found.labels)}

        return self._fetched(digest, find)

    def _of_store(self) -> ImageRecord:
        store = self._images._store
        if store is None:
            raise ImageError(Reason.IMAGE_NOT_FOUND, f"{self._ref}: this agent has no store")
        before = self._meant()
        try:
            etag = store.etag(self._ref.path)
        except ImageError as error:
            if before is None or not error.retryable:
                raise
            return before
        # What it holds is known only when it is here: until then its version stands for it.
        key = f"{self._ref}#{etag}"
        with self._records.fetching(key, *self._wakes):
            before = self._meant()
            if before is not None and before.details.get("etag") == etag:
                return before
            with workplace(self._images.folder, key) as folder:
                part = folder / "image.sif"
                digest = store.download(self._ref.path, part, *self._wakes, progress=self._progress)
                with self._records.fetching(digest, *self._wakes):
                    here = self._here(digest)
                    if here is None:
                        return self._put(digest, part, {"etag": etag})
        return replace(here, details={**here.details, "etag": etag})

    def _meant(self) -> ImageRecord | None:
        record = self._records.meant(str(self._ref))
        return None if record is None else self._here(record.digest)

    def _here(self, digest: str) -> ImageRecord | None:
        """Find an image that is here, and whole as far as that shows."""
        record = self._records.of(digest)
        if record is not None:
            with suppress(ImageError):
                check_sif(Path(record.handle), size=record.size_bytes)
                return record
        return None

    def _fetched(
        self, digest: str, find: Callable[[], tuple[Source, dict[str, object]]]
    ) -> ImageRecord:
        """Have an image made of what ``find`` finds, unless it is here or another makes it."""
        record = self._here(digest)
        if record is not None:
            return record
        with self._records.fetching(digest, *self._wakes):
            record = self._here(digest)
            if record is not None:
                return record
            source, details = find()
            with workplace(self._images.folder, digest) as folder:
                part = self._shared(digest, folder) or self._made(digest, source, folder)
                return self._put(digest, part, details)

    def _shared(self, digest: str, folder: Path) -> Path | None:
        """Get what another agent made of the image."""
        share = self._images._share
        part = folder / "image.sif"
        if share is None:
            return None
        if share.find_made(digest, part, *self._wakes, progress=self._progress):
            with suppress(ImageError):
                check_sif(part)
                return part
        return None

    def _made(self, digest: str, source: Source, folder: Path) -> Path:
        part = self._images._builder.build(
            source, folder / "build", *self._wakes, progress=self._progress
        )
        if self._images._share is not None:
            self._images._share.keep_made(digest, part, checksum(part, *self._wakes))
        return part

    def _put(self, digest: str, part: Path, details: dict[str, object]) -> ImageRecord:
        """Give a file that is whole its name, and write it down. Raises `ImageError`, OSError."""
        check_sif(part)
        file = self._images.folder / f"{digest.replace(':', '_')}.sif"
        part.chmod(0o644)
        with part.open("rb") as written:
            os.fsync(written.fileno())
        part.replace(file)
        record = ImageRecord(
            refs=(),
            digest=digest,
            handle=str(file),
            size_bytes=file.stat().st_size,
            used=time.time(),
            details=details,
        )
        self._records.note(record, ref=str(self._ref))
        return record


def _make_way(folder: Path) -> None:
    """Make the folder: the files in it are for the tasks' user, too, whatever the umask."""
    folder.mkdir(parents=True, exist_ok=True)
    for each in (folder, folder.parent):
        mode = stat.S_IMODE(each.stat().st_mode)
        if os.geteuid() == 0 and not mode & stat.S_IXOTH:
            each.chmod(mode | stat.S_IXGRP | stat.S_IXOTH)


def _is_open(file: Path) -> bool:
    """Tell whether a process holds the file open, as what serves a container does."""
    for process in filter(str.isdigit, os.listdir("/proc")):
        # It ended meanwhile, or is another user's.
        with suppress(OSError), as_owner(Path("/proc", process)):
            for name in os.listdir(f"/proc/{process}/fd"):
                with suppress(OSError):
                    if os.path.basename(os.readlink(f"/proc/{process}/fd/{name}")) == file.name:
                        return True
    return False
