"""Image files for an engine: archives of ``docker save``, and OCI layouts made into such.

What an archive calls its images is left out: loading one must not change what a name means here.
"""

import hashlib
import io
import json
import os
import platform
import tarfile
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from simagent.domain.images import ImageKind, ImageRef
from simagent.domain.reasons import Reason
from simagent.ports.images import ImageError

_MANIFEST, _INDEX = "manifest.json", "index.json"
_MOST_JSON = 4 * 1024 * 1024
_INDEXES = ("application/vnd.oci.image.index.v1+json",
            "application/vnd.docker.distribution.manifest.list.v2+json")  # fmt: skip
_MACHINES = {"x86_64": "amd64", "aarch64": "arm64", "ppc64le": "ppc64le", "s390x": "s390x"}


@dataclass(frozen=True, slots=True)
class ImageFile:
    """An archive that holds one image: its files in there, as ``docker load`` is told of them."""

    path: Path
    config: str
    layers: tuple[str, ...]
    digest: str
    """Of the manifest in an OCI layout; empty for an archive of ``docker save``."""


def missing_file(ref: ImageRef) -> str:
    """Say that an archive is not there, and what would help."""
    return f"image {ref}: there is no such file on the agent's machine: put it there"


def read_image_file(ref: ImageRef) -> ImageFile:
    """Look into an archive. Raises `ImageError`."""
    path = Path(ref.path)
    try:
        with tarfile.open(path) as archive:
            if ref.kind is ImageKind.DOCKER_ARCHIVE:
                return _saved(path, archive)
            return _layout(path, archive)
    except (FileNotFoundError, NotADirectoryError):
        raise ImageError(Reason.IMAGE_NOT_FOUND, missing_file(ref)) from None
    except IsADirectoryError:
        raise ImageError(
            Reason.IMAGE_CORRUPT, f"image {ref} is a folder: name a file that `docker save` wrote"
        ) from None
    except PermissionError:
        raise ImageError(
            Reason.IMAGE_DENIED, f"image {ref}: the agent may not read that file"
        ) from None
    except (tarfile.TarError, ValueError, LookupError, TypeError, EOFError) as error:
        # What tarfile says is a table of all it tried.
        why = "" if isinstance(error, tarfile.ReadError) else f": {error}"
        message = f"image {ref}: the file is damaged, or no {ref.kind}{why}: make it again"
        raise ImageError(Reason.IMAGE_CORRUPT, message) from None
    except OSError as error:
        raise ImageError(Reason.IMAGE_PULL, f"image {ref}: {error}", retryable=True) from error


@contextmanager
def loadable(image: ImageFile) -> Iterator[BinaryIO]:
    """Give what an engine loads; it is made while it is read."""
    read, write = os.pipe()
    maker = threading.Thread(target=_pack, args=(image, write), name="pack image", daemon=True)
    with open(read, "rb") as source:
        maker.start()
        yield source
    maker.join()


def file_digest(path: Path) -> str:
    """Give the digest of a file. Raises OSError."""
    with path.open("rb") as file:
        return f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}"


def _pack(image: ImageFile, write: int) -> None:
    with (
        # Nobody reads on; or the file is damaged, which the engine finds then, too.
        suppress(OSError, tarfile.TarError, EOFError, LookupError),
        open(write, "wb") as sink,
        tarfile.open(image.path) as source,
    ):
        packed = tarfile.open(fileobj=sink, mode="w|", format=tarfile.PAX_FORMAT)  # noqa: SIM115
        entry = {"Config": image.config, "RepoTags": None, "Layers": list(image.layers)}
        _add(packed, _MANIFEST, json.dumps([entry]).encode())
        # What a layer may be a link to is needed, too.
        for member in source:
            if member.name in (_MANIFEST, _INDEX, "repositories", "oci-layout"):
                continue
            packed.addfile(member, source.extractfile(member) if member.isreg() else None)
        packed.close()  # without this end, which an error leaves out, nothing loads


def _add(archive: tarfile.TarFile, name: str, data: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(data)
    archive.addfile(member, io.BytesIO(data))


def _saved(path: Path, archive: tarfile.TarFile) -> ImageFile:
    entries = json.loads(_content(archive, _MANIFEST))
    if len(entries) != 1:
        raise ValueError(f"it holds {len(entries)} images: save one")
    entry = entries[0]
    config, layers = entry["Config"], tuple(entry["Layers"])
    for name in (config, *layers):
        archive.getmember(name)
    return ImageFile(path, config, layers, "")


def _layout(path: Path, archive: tarfile.TarFile) -> ImageFile:
    chosen = json.loads(_content(archive, _INDEX))["manifests"]
    digest = _choose(chosen)
    manifest = _blob(archive, digest)
    for _ in range(2):  # an index may hold another, made for several kinds of machine
        if manifest.get("mediaType") not in _INDEXES and "manifests" not in manifest:
            break
        digest = _choose(manifest["manifests"])
        manifest = _blob(archive, digest)
    _blob(archive, manifest["config"]["digest"])
    layers = tuple(_blob_name(layer["digest"]) for layer in manifest["layers"])
    for name in layers:
        archive.getmember(name)
    return ImageFile(path, _blob_name(manifest["config"]["digest"]), layers, digest)


def _choose(manifests: list[Mapping[str, Any]]) -> str:
    machine = _MACHINES.get(platform.machine(), platform.machine())
    fitting = [
        entry
        for entry in manifests
        if entry.get("platform", {}).get("architecture", machine) == machine
    ]
    if manifests and not fitting:
        raise ImageError(Reason.IMAGE_PLATFORM, f"the archive holds no image for {machine}")
    if len(fitting) != 1:
        raise ValueError(f"it holds {len(fitting)} images: save one")
    return str(fitting[0]["digest"])


def _blob_name(digest: str) -> str:
    algorithm, _, value = digest.partition(":")
    return f"blobs/{algorithm}/{value}"


def _blob(archive: tarfile.TarFile, digest: str) -> dict[str, Any]:
    """Read a small file that is named by its digest, and check that it has that."""
    content = _content(archive, _blob_name(digest))
    if f"sha256:{hashlib.sha256(content).hexdigest()}" != digest:
        raise ValueError(f"{digest} has other content than its name says")
    found: dict[str, Any] = json.loads(content)
    return found


def _content(archive: tarfile.TarFile, name: str) -> bytes:
    member = archive.getmember(name)
    if member.size > _MOST_JSON:
        raise ValueError(f"{name} is too large")
    file = archive.extractfile(member)
    if file is None:
        raise ValueError(f"{name} is no file")
    return file.read()
