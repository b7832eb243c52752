"""The sets of files that an attempt keeps: found, copied, stored, and named in the task's state."""

from collections.abc import Callable
from contextlib import suppress
from copy import copy as copy_of
from functools import partial

import structlog

from simagent.domain import mutations
from simagent.domain.spec import Spec
from simagent.domain.state import Checkpoint
from simagent.ports.retry import Retry
from simagent.ports.store import StoreError
from simagent.transfer.checkpoint import (
    FileSet,
    UnsettledError,
    copy,
    drop,
    file_clock,
    find,
    store_set,
)
from simagent.transfer.outputs import EMPTY, Snapshot
from simagent.worker.context import Context
from simagent.worker.journal import ARTIFACTS, Journal
from simagent.worker.laying import remove_checkpoints

SETTLED = 1.0
"""Seconds for which no file of a set may have changed before it is read."""
_LOOK_EVERY = 0.25
_LOOKS_SHARE = 4.0
"""How many times longer than a look through many files the pause after it is."""
_SHARE_TO_BEGIN = 0.5
"""Of the time in which a set is looked for: until then files that were asked for have to change."""

log = structlog.get_logger()


class CheckpointSets:
    """The sets of one attempt. ``latest`` is what the task's state names when it is begun."""

    def __init__(
        self, ctx: Context, spec: Spec, journal: Journal, latest: Checkpoint | None
    ) -> None:
        assert spec.checkpoint is not None
        self._ctx = ctx
        self._journal = journal
        self._paths = spec.checkpoint.paths
        self._number = latest.number if latest is not None else 0
        self._replaced = latest
        self._kept: Snapshot | None = None
        self._crowded = False
        self._copies = journal.scratch / "checkpoint"

    def beside(self) -> "CheckpointSets":
        """Give what may be used while a call to this one hangs."""
        other = copy_of(self)
        other._number += 1
        other._copies = self._copies.with_name("checkpoint-last")
        return other

    # --- Files --------------------------------------------------------------------------------

    def find(self) -> FileSet:
        """Look which files there are. Raises OSError."""
        return find(self._journal.base, self._inputs(), self._paths, beneath=ARTIFACTS)

    def is_new(self, files: FileSet) -> bool:
        """Tell whether there is something to keep in a set."""
        return bool(files.members) and not self._is_kept(files)

    def settled(
        self,
        within: float,
        pause: Callable[[float], None],
        check: Callable[[], None],
        *,
        unlike: FileSet | None = None,
    ) -> tuple[FileSet, FileSet] | None:
        """Copy a set that nothing writes to; None where there is nothing new.

        ``unlike`` is what there was when another set was asked for: some time is given for that to
        be begun. ``pause`` waits so many seconds; it and ``check`` may raise. Raises
        `UnsettledError` where there is no such moment ``within`` these seconds, and OSError.
        """
        clock = self._ctx.clock
        began = quiet_since = clock.now()
        seen: FileSet | None = None
        while clock.now() - began < within:
            look = clock.now()
            files = self.find()
            waits = look - began < _SHARE_TO_BEGIN * within
            if not (waits and unlike is not None and files.marks == unlike.marks):
                if not self.is_new(files):
                    return None
                if seen is None or files.marks != seen.marks:
                    seen, quiet_since = files, look
                elif look - quiet_since >= SETTLED:
                    with suppress(UnsettledError):
                        copies = self.copy(files, check)
                        if self.find().marks == files.marks:
                            return files, copies
                    seen = None
            pause(max(_LOOK_EVERY, _LOOKS_SHARE * (clock.now() - look)))
        raise UnsettledError(f"its files were never left alone for {SETTLED:g} s")

    def copy(self, files: FileSet, check: Callable[[], None]) -> FileSet:
        """Copy a set on this machine. Raises OSError, `UnsettledError`, and as ``check``."""
        self._crowded = False
        free = self._ctx.free_bytes(self._journal.folder)
        if free - files.bytes < self._ctx.settings.min_free:
            raise OSError(f"no room on the disk to copy {files.bytes} bytes")
        self.clear()
        self._copies.mkdir(parents=True)
        try:
            return copy(files, self._copies, check)
        except BaseException:
            self.clear()
            raise

    def clear(self) -> None:
        """Remove what was copied."""
        drop(self._copies)

    def make_room(self) -> None:
        """Give up the set that is being kept, and the room it takes. Any thread may call it."""
        self._crowded = True
        self.clear()

    def check_room(self) -> None:
        """Raise OSError where the copy had to give way."""
        if self._crowded:
            raise OSError("the disk runs full, and the copy gave way")

    def _inputs(self) -> Snapshot:
        try:
            return Snapshot.load(self._journal.inputs)
        except (OSError, ValueError):
            return EMPTY

    # --- The store ----------------------------------------------------------------------------

    def store(
        self, copies: FileSet, retry: Retry, check: Callable[[], None], *, threads: int = 1
    ) -> Checkpoint:
        """Upload a set that was copied, under a key that was never used. Raises as `store_set`.

        One thread gives way to the task's commands, several do not.
        """
        self._number += 1
        entry = self._journal.entry
        key = entry.keys.attempt(entry.epoch).checkpoint(self._number, entry.incarnation)
        try:
            if not self._journal.kept.exists():  # by it whoever ends the task knows of sets
                Snapshot({}).save(self._journal.kept)
            stored = store_set(
                self._ctx.ledger.store, key, copies, retry=retry, check=check, threads=threads
            )
        finally:
            self.clear()
        return Checkpoint(
            epoch=entry.epoch,
            number=self._number,
            archive=key,
            sha256=stored.sha256,
            archive_bytes=stored.archive_bytes,
            files=stored.files,
            bytes=stored.bytes,
            at=self._ctx.clock.wall(),
        )

    def publish(self, checkpoint: Checkpoint, files: FileSet, retry: Retry) -> None:
        """Name a set in the task's state. Raises what ``retry`` lets through."""
        me = self._journal.entry.holder
        keep = partial(mutations.keep_checkpoint, me=me, checkpoint=checkpoint)
        retry(lambda: self._ctx.ledger.change(self._journal.entry.keys, keep))
        self._kept = Snapshot(files.marks)
        with suppress(OSError):  # without it an agent that starts again keeps the same once more
            self._kept.save(self._journal.kept)

    def remove_older(self, checkpoint: Checkpoint) -> None:
        """Remove what the state names no more, and what earlier tries have left."""
        task = self._journal.entry.keys
        epochs = {checkpoint.epoch} | ({self._replaced.epoch} if self._replaced else set())
        self._replaced = checkpoint
        try:
            remove_checkpoints(self._ctx, task, epochs, but=checkpoint.archive)
        except StoreError as error:
            log.debug("old checkpoint not removed", task=task.id, error=str(error))

    # --- What is known of the last one --------------------------------------------------------

    def last_at(self) -> float:
        """Tell when the last set was kept, as far as it is known: in seconds of the clock."""
        try:
            age = (file_clock() - self._journal.kept.stat().st_mtime_ns) / 1e9
        except OSError:
            return 0.0
        return self._ctx.clock.now() - max(0.0, age)

    def _is_kept(self, files: FileSet) -> bool:
        if self._kept is None:  # not before: it is noted, too, where a set was laid back
            self._load()
        return self._kept is not None and dict(self._kept.marks) == dict(files.marks)

    def _load(self) -> None:
        try:
            self._kept = Snapshot.load(self._journal.kept)
        except (OSError, ValueError):
            self._kept = Snapshot({})
