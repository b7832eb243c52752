"""The images of a Docker Engine that this agent fetched."""

import hashlib
import time
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

from simagent.domain.images import ImageKind, ImageRef, parse_image
from simagent.domain.reasons import Reason
from simagent.ports.clock import Waitable, Wake
from simagent.ports.images import (
    Image,
    ImageError,
    KeptImage,
    Progress,
    PullInterruptedError,
)
from simagent.runtimes.docker_archives import (
    ImageFile,
    file_digest,
    loadable,
    missing_file,
    read_image_file,
)
from simagent.runtimes.docker_engine import (
    DockerEngine,
    EngineAwayError,
    EngineRefusedError,
    EngineStream,
)
from simagent.runtimes.docker_pull import LOCAL_SILENCE, Job, attend, explain, pull
from simagent.runtimes.image_records import ImageRecord, ImageRecords
from simagent.runtimes.sif import check_kind

_SILENCE = 60.0
_CHUNK = 1024 * 1024
_ARCHIVES = "simagent/archive"
_RUNS_TOO = {"amd64": ("386",), "arm64": ("arm",)}


class DockerImages:
    """Images in an engine. `simagent.ports.images.Images` tells what each method does."""

    name = "docker"

    def __init__(self, engine: DockerEngine, folder: Path, *, silence: float = _SILENCE) -> None:
        """Records are in ``folder``. A pull without progress for ``silence`` seconds has failed."""
        self._engine = engine
        self._records = ImageRecords(folder)
        self._silence = silence

    def ensure(
        self, ref: ImageRef, *wakes: Waitable, progress: Progress | None = None, pin: bool = False
    ) -> Image:
        """Give the image, fetched if it is not here yet.

        Raises `ImageError` and `PullInterruptedError`.
        """
        if ref.kind in (ImageKind.SIF, ImageKind.STORE):
            message = f"image {ref} is one of Apptainer's, which Docker cannot run"
            raise ImageError(Reason.IMAGE_UNUSABLE, message)
        with self._records.fetching(str(ref), *wakes):
            if ref.kind is ImageKind.REGISTRY:
                digest, name, new = self._fetched(ref, wakes, progress)
            else:
                digest, name, new = self._loaded(ref, wakes, progress)
            found = self._inspect(name)
            if found is None:
                message = f"image {ref} was removed as soon as it was here"
                raise ImageError(Reason.IMAGE_PULL, message, retryable=True)
            try:
                self._check_platform(ref, found)
            except ImageError:
                if new:
                    self._untag(name)
                raise
            return self._noted(ref, digest, found, new=new, pin=pin)

    def disk(self) -> Path | None:
        """Name a folder on the disk that the images lie on; None where it is not to be seen."""
        try:
            folder = self._engine.data_folder()
        except (EngineAwayError, EngineRefusedError):
            return None
        return folder if folder.is_dir() else None

    def kept(self) -> list[KeptImage]:
        """List the images that were fetched, the least recently used first."""
        return self._records.kept()

    def unpin(self, digest: str) -> None:
        """Let an image be removed again."""
        self._records.unpin(digest)

    def remove(self, digest: str, *, unused_since: float | None = None) -> int:
        """Remove an image unless a container uses it; tell how many bytes were freed, about."""
        record = self._records.of(digest)
        if record is None or not record.ours:
            return 0
        now = Wake()
        now.set()
        try:
            with ExitStack() as turns:
                for ref in record.refs:  # whoever has a turn with it is about to use it
                    turns.enter_context(self._records.fetching(ref, now))
                if not self._records.is_left_alone(digest, unused_since):
                    return 0
                return self._removed(record)
        except (PullInterruptedError, EngineAwayError, EngineRefusedError):
            return 0

    def _fetched(
        self, ref: ImageRef, wakes: tuple[Waitable, ...], progress: Progress | None
    ) -> tuple[str, str, bool]:
        """Give an image's digest, a name of it, and whether it is new here."""
        same = self._records.of(ref.digest) if ref.digest else None
        if same is not None and self._here(same):  # perhaps by another name, from elsewhere
            return same.digest, same.handle, False
        made = None if ref.digest else self._made_here(ref)
        if made is not None:
            return made, ref.pullable, False
        try:
            digest, new = pull(self._engine, ref, *wakes, progress=progress, silence=self._silence)
        except ImageError as error:
            last = self._records.meant(str(ref))
            if error.reason is Reason.IMAGE_PULL and last is not None and self._here(last):
                return last.digest, last.handle, False
            raise
        return digest, f"{ref.repository}@{digest}", new

    def _made_here(self, ref: ImageRef) -> str | None:
        """Give the id of an image that was built or loaded under this name, and never pulled.

        It is asked for at no registry: whoever owns its name there may be a stranger.
        """
        found = self._inspect(ref.pullable)
        if found is None or found.get("RepoDigests"):
            return None
        return str(found["Id"])

    def _loaded(
        self, ref: ImageRef, wakes: tuple[Waitable, ...], progress: Progress | None
    ) -> tuple[str, str, bool]:
        signature = _signature(ref)
        last = self._records.meant(str(ref))
        if last is not None and signature == last.details.get("file") and self._here(last):
            return last.digest, last.handle, False
        image = read_image_file(ref)
        digest = image.digest or file_digest(image.path)
        handle = self._load(ref, image, wakes, progress)
        # Without a name, a prune of the engine's would take it away.
        tag = hashlib.sha256(digest.encode()).hexdigest()[:32]
        try:
            self._engine.ask(lambda client: client.tag(handle, _ARCHIVES, tag))
        except (EngineAwayError, EngineRefusedError) as error:
            raise explain(f"image {ref}", error) from error
        return digest, handle, True

    def _load(
        self,
        ref: ImageRef,
        image: ImageFile,
        wakes: tuple[Waitable, ...],
        progress: Progress | None,
    ) -> str:
        with loadable(image) as source:
            chunks = iter(lambda: source.read(_CHUNK), b"")

            def begin() -> EngineStream:
                return self._engine.stream("/images/load", {}, data=chunks, silence=LOCAL_SILENCE)

            job = Job(begin)
            what = f"image {ref}"
            try:
                attend(job, *wakes, progress=progress, silence=LOCAL_SILENCE, what=what)
            except ImageError as error:
                if error.reason is Reason.IMAGE_PULL:
                    raise ImageError(Reason.IMAGE_CORRUPT, str(error)) from error
                raise
        mark = "Loaded image ID: "
        handles = [said.removeprefix(mark) for said in job.said if said.startswith(mark)]
        if len(handles) != 1:
            message = f"image {ref}: the engine found no image in it: {' '.join(job.said)}"
            raise ImageError(Reason.IMAGE_CORRUPT, message)
        return handles[0].strip()

    def _here(self, record: ImageRecord | None) -> bool:
        return record is not None and self._inspect(record.handle) is not None

    def _inspect(self, name: str) -> dict[str, Any] | None:
        """Inspect an image; None if there is none. Raises `ImageError`."""
        try:
            found: dict[str, Any] = self._engine.ask(lambda client: client.inspect_image(name))
        except EngineRefusedError as error:
            if error.status == 404:
                return None
            raise explain(f"image {name}", error) from error
        except EngineAwayError as error:
            raise explain(f"image {name}", error) from error
        return found

    def _check_platform(self, ref: ImageRef, found: Mapping[str, Any]) -> None:
        try:
            version = self._engine.version()
        except (EngineAwayError, EngineRefusedError) as error:
            raise explain(f"image {ref}", error) from error
        own, wanted = version["Arch"], found.get("Architecture") or version["Arch"]
        system = found.get("Os") or "linux"
        if system == "linux" and wanted in (own, *_RUNS_TOO.get(own, ())):
            return
        message = f"image {ref} is for {system}/{wanted}, this machine is linux/{own}"
        raise ImageError(Reason.IMAGE_PLATFORM, message)

    def _noted(
        self, ref: ImageRef, digest: str, found: Mapping[str, Any], *, new: bool, pin: bool
    ) -> Image:
        before = self._records.of(digest)
        details: dict[str, Any] = {"names": list(before.details["names"]) if before else []}
        if ref.kind is ImageKind.REGISTRY:
            details["names"] = sorted({*details["names"], f"{ref.repository}@{digest}"})
        else:
            details["file"] = _signature(ref)
        record = ImageRecord(
            refs=(str(ref),),
            digest=digest,
            handle=found["Id"],
            size_bytes=found["Size"],
            used=time.time(),
            ours=new if before is None else before.ours,
            details=details,
        )
        # On a full disk it is only not known for the next time.
        with suppress(OSError):
            self._records.note(record, ref=str(ref), pin=pin)
        config = found.get("Config") or {}
        return Image(
            ref=str(ref),
            digest=digest,
            handle=found["Id"],
            size_bytes=found["Size"],
            user=config.get("User") or "",
            labels=config.get("Labels") or {},
        )

    def _removed(self, record: ImageRecord) -> int:
        def used(client: Any) -> bool:
            return bool(client.containers(all=True, filters={"ancestor": record.handle}))

        before = self._inspect(record.handle)
        if before is not None:
            if self._engine.ask(used):
                return 0
            for name in self._names(record, before):
                self._untag(name)
            left = self._inspect(record.handle)
            if left is not None and not left.get("RepoTags") and not left.get("RepoDigests"):
                self._untag(record.handle)
                left = self._inspect(record.handle)
                if left is not None:
                    return 0
            before = before if left is None else None  # others know it by a name of theirs
        self._records.forget(record.digest)
        return 0 if before is None else int(before["Size"])

    def _names(self, record: ImageRecord, found: Mapping[str, Any]) -> list[str]:
        """Give the names by which the engine knows the image because of this agent."""
        names = [name for name in found.get("RepoTags") or [] if name.startswith(f"{_ARCHIVES}:")]
        names += record.details["names"]
        for ref in map(parse_image, record.refs):
            if ref.kind is ImageKind.REGISTRY and not ref.digest:
                tagged = self._inspect(ref.pullable)  # it may mean another image by now
                if tagged is not None and tagged["Id"] == record.handle:
                    names.append(ref.pullable)
        return names

    def _untag(self, name: str) -> None:
        with suppress(EngineRefusedError, EngineAwayError):  # it is gone already, or in use
            self._engine.ask(lambda client: client.remove_image(name))


def _signature(ref: ImageRef) -> list[int]:
    """Give what changes with a file. Raises `ImageError` where there is none."""
    try:
        stat = check_kind(Path(ref.path))
    except OSError as error:
        gone = isinstance(error, FileNotFoundError | NotADirectoryError)
        message = missing_file(ref) if gone else f"image {ref}: {error.strerror}"
        raise ImageError(Reason.IMAGE_NOT_FOUND, message) from error
    return [stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns]
