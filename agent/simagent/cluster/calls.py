"""One question to a member, and its answer."""

from collections.abc import Sequence

from simagent.cluster.messages import Check, Checked, Fetch, Fetched
from simagent.ports.clock import Waitable


class HostLostError(Exception):
    """A host cannot be reached, or fell silent; the message says how that was seen."""


class HostRefusedError(Exception):
    """A host does not do what it was asked to; ``reason`` is a Reason's value."""

    def __init__(self, reason: str, why: str) -> None:
        super().__init__(why)
        self.reason = reason


def ask(
    command: Sequence[str], request: Check | Fetch, *, timeout: float, wake: Waitable | None = None
) -> Checked | Fetched | None:
    """Ask a member by the command line of `simagent.cluster.ssh.HeadKey.command`.

    None when ``wake`` became ready before the answer came. Raises `HostLostError`, also after
    ``timeout`` seconds, and `HostRefusedError`.
    """
    raise NotImplementedError
