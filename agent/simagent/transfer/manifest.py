"""The manifest: what an attempt's outputs are, with their checksums. Written last."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

FORMAT = 1
PIECE = 8 << 20
"""Bytes of a piece: a large file comes back in pieces, several at a time. The last is shorter."""


class ManifestError(ValueError):
    """A manifest cannot be read; the message says why."""


@dataclass(frozen=True, slots=True)
class File:
    """A file: ``size`` in bytes, ``mode`` its permission bits, ``mtime`` Unix time in ns.

    ``key`` is its object's, relative to the manifest's, where outputs are single files. ``cuts``
    tell where in an archive each `PIECE` of it begins, and the last one ends: each can be inflated
    without the others.
    """

    path: str
    size: int
    mode: int
    mtime: int
    sha256: str
    key: str = ""
    cuts: tuple[int, ...] = ()

    @property
    def in_pieces(self) -> bool:
        """Whether ``cuts`` tell of all of it."""
        return len(self.cuts) > 1 and len(self.cuts) - 1 == -(-self.size // PIECE)


@dataclass(frozen=True, slots=True)
class Link:
    """A symbolic link, as it was found; ``target`` where no archive has it."""

    path: str
    target: str = ""


@dataclass(frozen=True, slots=True)
class Skipped:
    """Something that is not published, or not as it was when selected, and why."""

    path: str
    why: str


@dataclass(frozen=True, slots=True)
class ArchiveRef:
    """The archive: its size in bytes and its checksum."""

    size: int
    sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """What was published. Paths are those of the archive's members, where there is an archive."""

    epoch: int
    files: tuple[File, ...]
    links: tuple[Link, ...] = ()
    folders: tuple[str, ...] = ()
    skipped: tuple[Skipped, ...] = ()
    changed: tuple[Skipped, ...] = ()
    archive: ArchiveRef | None
    format: int = FORMAT

    def dump(self) -> bytes:
        """Give its JSON. Bytes of names that are no UTF-8 are written as lone surrogates."""
        # Made into plain types while it is written, not before: there may be a million files.
        return json.dumps(_plain(self), separators=(",", ":"), default=_plain).encode()

    @classmethod
    def load(cls, data: bytes) -> "Manifest":
        """Read its JSON. Raises `ManifestError`."""
        try:
            loaded = json.loads(data)
            if loaded["format"] > FORMAT:
                raise ManifestError(f"it has format {loaded['format']}, newer than {FORMAT}")
            return cls(
                epoch=loaded["epoch"],
                files=tuple(map(_file, loaded["files"])),
                links=tuple(Link(link["path"], link.get("target", "")) for link in loaded["links"]),
                folders=tuple(loaded["folders"]),
                skipped=tuple(Skipped(s["path"], s["why"]) for s in loaded["skipped"]),
                changed=tuple(Skipped(s["path"], s["why"]) for s in loaded["changed"]),
                archive=_archive(loaded["archive"]),
            )
        except (KeyError, TypeError) as error:
            raise ManifestError(f"a field is missing or wrong: {error}") from error
        except json.JSONDecodeError as error:
            raise ManifestError(str(error)) from error


def _file(found: Mapping[str, Any]) -> File:
    return File(
        found["path"],
        found["size"],
        found["mode"],
        found["mtime"],
        found["sha256"],
        found.get("key", ""),
        tuple(found.get("cuts", ())),
    )


def _archive(found: Any) -> ArchiveRef | None:
    return None if found is None else ArchiveRef(found["size"], found["sha256"])


def _plain(item: Any) -> dict[str, object]:
    values = {field.name: getattr(item, field.name) for field in fields(item)}
    # Only where there is one: it would be in the way a million times.
    return {name: value for name, value in values.items() if value or name not in _FEW}


_FEW = frozenset({"key", "target", "cuts"})
