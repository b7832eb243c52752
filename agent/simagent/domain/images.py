"""Image references: one grammar for all runtimes, so that no spec can slip an option to an engine.

========================================  ========================================================
``[docker://][HOST[:PORT]/]NAME[:TAG]``   in a registry, docker.io where none is named; also with
                                          ``@sha256:DIGEST``
``oci-archive:PATH``                      a file in the OCI image layout, as a tar archive
``docker-archive:PATH``                   a file that ``docker save`` wrote
``file:///PATH.sif``                      an Apptainer image on the agent's machine
``store://images/KEY.sif``                an Apptainer image in the store
========================================  ========================================================

The grammar of names in registries is that of the distribution project's reference package
(https://pkg.go.dev/github.com/distribution/reference).
"""

import re
from dataclasses import dataclass
from enum import StrEnum
from pathlib import PurePosixPath

DEFAULT_REGISTRY = "docker.io"
DEFAULT_TAG = "latest"
_MOST_CHARACTERS = 512
_LAST_PORT = 65535

_PART = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*"
_LABEL = r"[A-Za-z0-9](?:[A-Za-z0-9-]*[A-Za-z0-9])?"
_HOST = re.compile(rf"(?:{_LABEL}(?:\.{_LABEL})*|\[[0-9a-fA-F:]+\])(?::[0-9]{{1,5}})?")
_NAME = re.compile(rf"{_PART}(?:/{_PART})*")
_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_KEY = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*(?:/[A-Za-z0-9_][A-Za-z0-9_.-]*)*")
_PATH = re.compile(r"/[^:,]+")

_EXAMPLES = "write NAME:TAG, docker://HOST/NAME:TAG, file:///PATH.sif or store://images/NAME.sif"


class ImageKind(StrEnum):
    """Where an image is, and in which form."""

    REGISTRY = "docker"
    OCI_ARCHIVE = "oci-archive"
    DOCKER_ARCHIVE = "docker-archive"
    SIF = "file"
    STORE = "store"


@dataclass(frozen=True, slots=True)
class ImageRef:
    """An image reference that was checked.

    ``registry``, ``name``, ``tag`` and ``digest`` are set for images in a registry (``tag`` is
    empty where only a digest was given); ``path`` for the rest: an absolute path of the agent's
    machine, or the key in the store.
    """

    kind: ImageKind
    registry: str = ""
    name: str = ""
    tag: str = ""
    digest: str = ""
    path: str = ""

    def __str__(self) -> str:
        """Write the reference in full: registry and tag, too, where they were left out."""
        match self.kind:
            case ImageKind.REGISTRY:
                return f"docker://{self.pullable}"
            case ImageKind.SIF | ImageKind.STORE:
                return f"{self.kind}://{self.path}"
            case _:
                return f"{self.kind}:{self.path}"

    @property
    def repository(self) -> str:
        """The registry and the name in it."""
        return f"{self.registry}/{self.name}"

    @property
    def pullable(self) -> str:
        """What a registry client takes: no scheme, a digest rather than a tag."""
        if self.digest:
            return f"{self.repository}@{self.digest}"
        return f"{self.repository}:{self.tag}"


def parse_image(text: str) -> ImageRef:
    """Read an image reference. Raises ValueError: what is wrong, and what to write."""
    if not text or len(text) > _MOST_CHARACTERS or not text.isprintable():
        raise ValueError(
            f"an image reference has 1 to {_MOST_CHARACTERS} printable characters: {_EXAMPLES}"
        )
    scheme, mark, rest = text.partition("://")
    if mark and scheme == "docker":
        return _in_registry(text, rest)
    if mark and scheme == "file":
        return _file(ImageKind.SIF, text, rest)
    if mark and scheme == "store":
        return _in_store(text, rest)
    for kind in (ImageKind.OCI_ARCHIVE, ImageKind.DOCKER_ARCHIVE):
        if text.startswith(f"{kind}:"):
            return _file(kind, text, text.removeprefix(f"{kind}:"))
    if mark:
        raise ValueError(f"{text!r}: unknown scheme {scheme}://: {_EXAMPLES}")
    return _in_registry(text, text)


def _in_registry(text: str, rest: str) -> ImageRef:
    rest, at, digest = rest.partition("@")
    if at and not _DIGEST.fullmatch(digest):
        raise ValueError(f"{text!r}: a digest is sha256: and 64 digits of 0-9a-f")
    head, slash, tail = rest.partition("/")
    # As docker tells a host from the first part of a name.
    if slash and ("." in head or ":" in head or head == "localhost"):
        registry, rest = head, tail
    else:
        registry = DEFAULT_REGISTRY
    if not _HOST.fullmatch(registry):
        raise ValueError(f"{text!r}: {registry!r} is no host of a registry: write HOST:PORT/NAME")
    port = registry.rpartition("]")[2].partition(":")[2]
    if port and not 0 < int(port) <= _LAST_PORT:
        raise ValueError(f"{text!r}: {port} is no port: use 1 to {_LAST_PORT}")
    name, colon, tag = rest.partition(":")
    if not _NAME.fullmatch(name):
        raise ValueError(f"{text!r} is no image reference: {_EXAMPLES}, names in lower case")
    if colon and not _TAG.fullmatch(tag):
        raise ValueError(f"{text!r}: {tag!r} is no tag: use letters, digits, '_', '.' and '-'")
    if registry == DEFAULT_REGISTRY and "/" not in name:
        name = f"library/{name}"
    tag = tag if colon or digest else DEFAULT_TAG
    return ImageRef(ImageKind.REGISTRY, registry=registry, name=name, tag=tag, digest=digest)


def _file(kind: ImageKind, text: str, path: str) -> ImageRef:
    if not _PATH.fullmatch(path) or ".." in PurePosixPath(path).parts:
        raise ValueError(f"{text!r}: name the file by its absolute path, without '..', ':' and ','")
    if kind is ImageKind.SIF and not path.endswith(".sif"):
        raise ValueError(f"{text!r}: an Apptainer image ends in .sif")
    return ImageRef(kind, path=path)


def _in_store(text: str, key: str) -> ImageRef:
    if not _KEY.fullmatch(key) or not key.startswith("images/"):
        raise ValueError(f"{text!r}: images in the store are named store://images/NAME.sif")
    if not key.endswith(".sif"):
        raise ValueError(f"{text!r}: an Apptainer image ends in .sif")
    return ImageRef(ImageKind.STORE, path=key)
