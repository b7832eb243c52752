"""What a run produced: found by comparing the folder with what it was, and published."""

import json
import os
import time
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import NamedTuple, Self

from simagent.domain.spec import Outputs
from simagent.transfer.batch import Member
from simagent.transfer.errors import TooManyOutputsError
from simagent.transfer.globs import Globs
from simagent.transfer.manifest import (
    Skipped,
)
from simagent.transfer.tree import UNLISTED, scan

MAX_OUTPUTS = 1_000_000
"""Each takes about a kilobyte of memory while it is published."""

_FORMAT = 1
_PACKED = frozenset({"file", "folder", "link"})
_COARSE_CLOCK = 5  # CLOCK_REALTIME_COARSE of linux/time.h: what the kernel stamps files with
_MAX_TICKS = 50
_READ = 1 << 20

Mark = tuple[int, int, int, int]
"""Size, mtime in ns, ctime in ns, inode: an unchanged file has the same."""


def mark_of(status: os.stat_result) -> Mark:
    """Give what an unchanged file keeps."""
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino


class Snapshot(NamedTuple):
    """What a folder contained, by path."""

    marks: Mapping[str, Mark]

    def save(self, path: Path) -> None:
        """Write it to a file, whole or not at all. Raises OSError."""
        fields = {"format": _FORMAT, "marks": self.marks}
        temporary = path.with_name(path.name + ".new")
        with temporary.open("w", encoding="ascii") as file:
            file.write(json.dumps(fields, separators=(",", ":")))
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)

    def without(self, paths: Collection[str]) -> "Snapshot":
        """Leave some paths out: what lies there counts as made by the task."""
        return Snapshot({path: mark for path, mark in self.marks.items() if path not in paths})

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read it from a file. Raises OSError, ValueError."""
        fields = json.loads(path.read_text(encoding="ascii"))
        try:
            return cls({path: _as_mark(*mark) for path, mark in fields["marks"].items()})
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{path} is no snapshot: {error}") from error


def _as_mark(size: int, mtime: int, ctime: int, inode: int) -> Mark:
    return size, mtime, ctime, inode


EMPTY = Snapshot({})


def snapshot(root: Path, beneath: str = "") -> Snapshot:
    """Note what a folder contains, before the first step.

    It lies ``beneath`` the root: no link on the way from there is followed. Returns once the clock
    that stamps files has moved on, so that even a change made at once is seen. Raises OSError.
    """
    marks = {
        found.path: mark_of(found.status)
        for found in scan(root, beneath)
        if found.kind != "folder" or found.empty
    }
    newest = max((mark[2] for mark in marks.values()), default=0)
    for _ in range(_MAX_TICKS):
        if time.clock_gettime_ns(_COARSE_CLOCK) > newest:
            break
        time.sleep(0.001)
    return Snapshot(marks)


class Selection(NamedTuple):
    """What to publish, and what is left out: it can be no member of an archive, or be read."""

    members: list[Member]
    skipped: list[Skipped]

    @property
    def bytes(self) -> int:
        """The size of all files, in bytes."""
        return sum(member.size for member in self.members)


def select(
    root: Path,
    before: Snapshot,
    outputs: Outputs,
    *,
    beneath: str = "",
    most: int = MAX_OUTPUTS,
) -> Selection:
    """Find what the run made or changed in a folder, as far as the spec asks for it.

    The folder lies ``beneath`` the root: no link on the way from there is followed. Links in it
    are taken as links, folders only where they are empty; what this user owns and may not read is
    made readable. Raises OSError, `TooManyOutputsError` where there are more than ``most``.
    """
    include, exclude = Globs(outputs.include), Globs(outputs.exclude)
    marks = EMPTY.marks if outputs.unchanged_inputs else before.marks
    members: list[Member] = []
    skipped: list[Skipped] = []
    folder = str(root)
    prefix = beneath + "/" if beneath else ""
    for path, kind, status, empty in scan(root, beneath, mend=True):
        if kind == "folder" and not empty:
            continue
        if path in marks and marks[path] == mark_of(status):
            continue
        wanted = include.match_beneath if kind == UNLISTED else include.match
        if not wanted(path) or exclude.match(path):
            continue
        if len(members) + len(skipped) == most:
            raise TooManyOutputsError(
                f"there are more than {most} outputs: pack them, as with tar, by the last command, "
                "or leave some out by outputs.exclude"
            )
        if kind in _PACKED:
            size = status.st_size if kind == "file" else 0
            members.append(Member(path, folder, prefix + path, kind, size))
        else:
            skipped.append(Skipped(path, kind))
    return Selection(members, skipped)
