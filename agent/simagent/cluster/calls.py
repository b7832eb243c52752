"""One question to a member, and its answer."""

import time
from collections.abc import Sequence

from simagent.cluster.connection import PACE, Connection, HostLostError, HostRefusedError, Pace
from simagent.cluster.messages import Check, Checked, Fetch, Fetched, Refused
from simagent.domain.reasons import Reason
from simagent.ports.clock import Waitable

__all__ = ["HostLostError", "HostRefusedError", "ask"]


def ask(
    command: Sequence[str],
    request: Check | Fetch,
    *,
    timeout: float,
    wake: Waitable | None = None,
    pace: Pace = PACE,
) -> Checked | Fetched | None:
    """Ask a member by the command line of `simagent.cluster.ssh.HeadKey.command`.

    None when ``wake`` became ready before the answer came. Raises `HostLostError`, also after
    ``timeout`` seconds, and `HostRefusedError`.
    """
    until = time.monotonic() + timeout
    wakes = () if wake is None else (wake,)
    with Connection(command, request, pace) as connection:
        while True:
            event = connection.next(max(0.0, until - time.monotonic()), *wakes)
            match event:
                case Checked() | Fetched():
                    return event
                case Refused() if event.reason == Reason.MPI_HOST_LOST:
                    raise HostLostError(event.why)
                case Refused():
                    raise HostRefusedError(event.reason, event.why)
                case None if time.monotonic() < until:
                    return None
                case None:
                    raise HostLostError(f"it did not answer within {timeout:g} s")
