"""What this agent left in the folder that hosts share, of which it has no journal any more."""

import re
from pathlib import Path

import structlog

from simagent.ports.clock import Waitable
from simagent.worker.context import Context
from simagent.worker.shared import StalledError, names_in, remove

_EVERY = 600.0
_REMOVED_WITHIN = 60.0

log = structlog.get_logger()


class Strays:
    """Removes them, at the agent's start and from time to time: in a thread of its own.

    A file server that does not answer holds up nothing else; what could not be removed is
    looked for again.
    """

    def __init__(self, ctx: Context) -> None:
        self._ctx = ctx

    def run(self, ended: Waitable) -> None:
        """Look until the agent has ended."""
        while True:
            self.remove()
            if self._ctx.clock.wait(_EVERY, ended):
                return

    def remove(self) -> None:
        """Remove what is there just now."""
        head = self._ctx.head
        if head is None or head.it.shared_dir is None:
            return
        folder = Path(head.it.shared_dir, head.it.cluster)
        # Another agent's name may end like this one's: before it stands the epoch.
        own = re.compile(rf".+\.[0-9]+\.{re.escape(head.it.own.agent)}")
        try:
            found = [folder / name for name in names_in(folder) if own.fullmatch(name)]
            # Looked at after that: what is begun meanwhile has its journal before its folder.
            known = set(self._ctx.journals.shared()) if found else set()
        except (StalledError, OSError, ValueError, RecursionError) as error:
            log.warning("shared folder not looked through", path=str(folder), error=str(error))
            return
        strays = [path for path in found if str(path) not in known]
        if strays:
            remove(*strays, within=_REMOVED_WITHIN)
