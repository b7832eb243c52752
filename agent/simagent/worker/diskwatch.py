"""The disk thread of an attempt: it notices that space runs out before the disk is full.

It waits for no store and no network, and it bounds what the step's own output takes.
"""

import math
from collections.abc import Callable
from pathlib import Path

import structlog

from simagent.domain.keys import STREAMS
from simagent.domain.quantities import size_text
from simagent.ports.clock import Wake
from simagent.ports.passing import passes
from simagent.telemetry.spool import Spool
from simagent.worker.context import Context
from simagent.worker.disk import used_bytes
from simagent.worker.journal import Journal
from simagent.worker.orders import Orders

_EVERY = 0.5
_LOOKS = 2
"""Looks in a row that find too little: less than that may be gone in the next moment."""

log = structlog.get_logger()


class DiskWatch:
    """Orders the end of an attempt's steps while there still is room for what is to be told."""

    def __init__(
        self,
        ctx: Context,
        journal: Journal,
        orders: Orders,
        *,
        make_room: Callable[[], None] = lambda: None,
    ) -> None:
        """``make_room`` gives up what the agent has put there, before the task has to end."""
        self._make_room = make_room
        self._ctx = ctx
        self._journal = journal
        self._orders = orders
        self._stop = Wake()
        self._found = 0
        most = journal.entry.max_log_bytes
        files = [journal.logs / stream for stream in STREAMS] if most is not None else []
        self._spools = [Spool(path, most or 0) for path in files]

    def run(self) -> None:
        """Look until `stop`."""
        while not self._ctx.clock.wait(_EVERY, self._stop):
            self._trim()
            self._look()

    def stop(self) -> None:
        """End the thread."""
        self._stop.set()

    def _trim(self) -> None:
        for spool in list(self._spools):
            try:
                spool.trim()
            except OSError as error:
                if passes(error) or isinstance(error, FileNotFoundError):
                    continue  # at the next look again
                # It may take what is free then, down to what is kept free.
                self._spools.remove(spool)
                path = str(self._journal.logs)
                log.warning("logs past max_log_bytes stay on disk", path=path, error=str(error))

    def _look(self) -> None:
        if self._orders.no_space is not None or not self._ctx.settings.min_free:
            return
        self._found = self._found + 1 if is_short(self._ctx, self._journal) else 0
        if self._found == 1:
            self._make_room()
        if self._found >= _LOOKS and (lack := shortage(self._ctx, self._journal)) is not None:
            self._orders.tell_no_space(lack)


def is_short(ctx: Context, journal: Journal) -> bool:
    """Tell whether less is free on a disk of an attempt than is to be kept free."""
    return any(_free(ctx, folder) < ctx.settings.min_free for folder in _folders(journal))


def shortage(ctx: Context, journal: Journal) -> str | None:
    """Say that too little is free on the disk, how much of it is the task's, and what helps.

    None where enough is free.
    """
    folder = min(_folders(journal), key=lambda folder: _free(ctx, folder))
    free = _free(ctx, folder)
    if free >= ctx.settings.min_free:
        return None
    used, all_of_it = used_bytes(folder)
    left, floor = size_text(int(free)), size_text(ctx.settings.min_free)
    own = f"the task's own files take {'' if all_of_it else 'at least '}{size_text(used)}"
    place = "state_dir" if folder == journal.folder else "mpi.shared_dir"
    return (
        f"{left} were free in {folder}, less than min_free ({floor}); {own}: "
        f"make room there, or run it with a {place} on a larger disk"
    )


def _folders(journal: Journal) -> list[Path]:
    """List where an attempt's files lie: one folder, or another that hosts share beside it."""
    return [journal.folder] if journal.base == journal.folder else [journal.folder, journal.base]


def _free(ctx: Context, folder: Path) -> float:
    try:
        return ctx.free_bytes(folder)
    except OSError as error:
        log.debug("free space not known", path=str(folder), error=str(error))
        return math.inf
