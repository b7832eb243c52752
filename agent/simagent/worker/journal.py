"""The journal: what this agent wrote down about each attempt before it acted.

One folder an attempt under ``attempts/``; its ``journal.json`` is replaced atomically and synced.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import structlog

from simagent.domain.events import Event
from simagent.ports.passing import passes
from simagent.transfer.removal import remove_tree
from simagent.worker.disk import Reserve, is_no_space
from simagent.worker.durable import sync_folder, write_durably
from simagent.worker.journal_entry import (
    FORMAT,
    NAME,
    Entry,
    NewerFormatError,
    NewerJournal,
    Place,
    is_newer,
    newer_journal,
    read_entry,
    read_fields,
)
from simagent.worker.shared import remove as remove_shared

__all__ = ["ARTIFACTS", "FORMAT", "Entry", "Journal", "Journals", "Place"]

ARTIFACTS = "work/output/artifacts"
"""Where, beneath an attempt's base, inputs are laid and commands start."""

log = structlog.get_logger()


class Journal:
    """The folder of one attempt, and what is written down about it."""

    def __init__(self, folder: Path, entry: Entry) -> None:
        self.folder = folder
        self.entry = entry
        self.reserve = Reserve(folder.parent.parent)

    @property
    def steps(self) -> Path:
        """Where the runtime keeps its records."""
        return steps_folder(self.folder)

    @property
    def base(self) -> Path:
        """Where `ARTIFACTS` lie: in its folder, or in the one that the hosts of a cluster share."""
        shared = self.entry.shared
        return self.folder if shared is None else Path(shared)

    @property
    def artifacts(self) -> Path:
        """Where inputs are laid and commands start."""
        return self.base / ARTIFACTS

    @property
    def logs(self) -> Path:
        """Where the steps' standard output and error are."""
        return self.folder / "logs"

    @property
    def metrics(self) -> Path:
        """The samples, one JSON object a line."""
        return self.folder / "metrics.jsonl"

    @property
    def inputs(self) -> Path:
        """The snapshot of the task's folder as it was before the first step."""
        return self.folder / "inputs.json"

    @property
    def kept(self) -> Path:
        """The snapshot of the files of the last checkpoint; its age is theirs."""
        return self.folder / "checkpoint.json"

    @property
    def tmp(self) -> Path:
        """What containers see as /tmp."""
        return self.folder / "tmp"

    @property
    def scratch(self) -> Path:
        """Where inputs are downloaded to."""
        return self.folder / "scratch"

    def write(self, **changes: object) -> None:
        """Change the entry, durably. Raises OSError; the entry is unchanged then.

        On a full disk the reserve is used for it.
        """
        entry = self.entry.with_(**changes)
        while True:
            try:
                self._write(entry)
            except OSError as error:
                if not (is_no_space(error) and self.reserve.give_up()):
                    raise
            else:
                self.entry = entry
                return

    def begin(self) -> None:
        """Write the entry for the first time, durably. Raises OSError."""
        self._write(self.entry)

    def _write(self, entry: Entry) -> None:
        write_durably(self.folder / NAME, entry.model_dump_json(indent=1).encode())

    def remove(self) -> None:
        """Forget the attempt: what others share, then the journal, then everything else of it."""
        if self.entry.shared is not None:
            remove_shared(self.base)
        (self.folder / NAME).unlink(missing_ok=True)
        remove_tree(self.folder)


class Journals:
    """All attempts of this agent."""

    def __init__(self, state_dir: Path) -> None:
        self.root = state_dir / "attempts"
        self._aside = state_dir / "set-aside"
        self.reserve = Reserve(state_dir)
        self.root.mkdir(parents=True, exist_ok=True)

    @property
    def empty(self) -> bool:
        """Whether no attempt was left behind by an earlier incarnation."""
        return not any(self.root.iterdir())

    def create(self, entry: Entry) -> Journal:
        """Begin the journal of an attempt, durably. Raises OSError."""
        folder = self.root / f"{entry.project}.{entry.task}.{entry.epoch}"
        if folder.exists():  # an earlier incarnation's intent that was never applied
            remove_tree(folder)
        folder.mkdir(mode=0o755)
        journal = Journal(folder, entry)
        try:
            journal.begin()
        except OSError:
            remove_tree(folder)
            raise
        sync_folder(self.root)
        return journal

    def all(self, *, end: Callable[[Path], None] = lambda _folder: None) -> Iterator[Journal]:
        """Read every journal; set aside what cannot be read, remove what has none.

        ``end`` ends what an attempt whose journal is lost still runs. Those of a `newer` version
        stay as they are. Raises OSError where one cannot be read just now.
        """
        for folder in sorted(self.root.iterdir()):
            try:
                yield Journal(folder, read_entry(folder))
            except NewerFormatError:
                continue
            except FileNotFoundError:
                remove_tree(folder)
            except (OSError, ValueError, RecursionError) as error:
                if passes(error):
                    raise  # nothing is amiss with it, nor with what it runs
                end(folder)
                self.set_aside(folder, str(error).splitlines()[0])

    def newer(self) -> list[NewerJournal]:
        """List the attempts that a newer version of the agent began, which was here before."""
        found = []
        for folder in sorted(self.root.iterdir()):
            with suppress(OSError, ValueError, RecursionError):
                fields = read_fields(folder)
                if is_newer(fields):
                    found.append(newer_journal(folder, fields))
        return found

    def handles(self) -> set[str]:
        """Give the handles of the images that attempts use.

        Raises OSError where one cannot be read just now: its image may be any.
        """
        found = set()
        for folder in self.root.iterdir():
            try:
                image = read_fields(folder).get("image")
            except (OSError, ValueError, RecursionError) as error:
                if passes(error):
                    raise
                continue
            if isinstance(image, str):
                found.add(image)
        return found

    def set_aside(self, folder: Path, why: str) -> None:
        """Move an attempt's folder out of the way, for people to look at."""
        self._aside.mkdir(exist_ok=True)
        target = self._aside / folder.name
        suffix = 0
        while target.exists():
            suffix += 1
            target = self._aside / f"{folder.name}.{suffix}"
        folder.rename(target)
        os.utime(target)  # its age counts from now
        log.warning(Event.JOURNAL_SET_ASIDE, path=str(target), error=why)

    def shared(self) -> Iterator[str]:
        """Yield the folders that hosts share of all attempts, also of those that were set aside.

        Raises OSError, ValueError, RecursionError where what runs cannot be read.
        """
        for folder in self.root.iterdir():
            with suppress(FileNotFoundError):  # it is begun, or removed, just now
                yield from _shared(folder)
        for folder in self._aside.iterdir() if self._aside.exists() else ():
            with suppress(OSError, ValueError, RecursionError):
                yield from _shared(folder)

    def expire(self, *, before: float, agent: str) -> None:
        """Remove what was set aside before a Unix time, with what ``agent`` shared of it.

        What others shared may be in use by them: the disk of their machine was cloned.
        """
        try:
            folders = list(self._aside.iterdir())
        except OSError:
            return  # there are none, or they cannot be looked at just now
        for folder in folders:
            with suppress(FileNotFoundError):  # people remove such, too
                if folder.lstat().st_mtime < before:
                    _discard(folder, agent)


def holds_attempt(folder: Path) -> bool:
    """Tell whether a folder is that of an attempt which is not over."""
    return (folder / NAME).exists()


def _discard(folder: Path, agent: str) -> None:
    try:
        entry = read_entry(folder)
        if entry.shared is not None and entry.agent == agent:
            remove_shared(Path(entry.shared))
    except (OSError, ValueError, RecursionError) as error:
        if passes(error):
            return  # the next time: else what it shared would stay
    if folder.is_dir() and not folder.is_symlink():
        remove_tree(folder)
    else:
        folder.unlink(missing_ok=True)


def _shared(folder: Path) -> Iterator[str]:
    shared = read_fields(folder).get("shared")
    if isinstance(shared, str):
        yield shared


def steps_folder(attempt: Path) -> Path:
    """Tell where the runtime keeps its records of an attempt."""
    return attempt / "steps"
