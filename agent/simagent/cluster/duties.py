"""What a member does for its head, as its entrance sees it."""

from typing import Protocol

from simagent.cluster.messages import (
    Check,
    Checked,
    Departs,
    Enter,
    Exited,
    Fetch,
    Fetched,
    Sampled,
)
from simagent.domain.reasons import Reason
from simagent.ports.clock import Waitable


class RefusedError(Exception):
    """The member does not do what it is asked for; the message says why, `reason` names it."""

    def __init__(self, reason: Reason, why: str) -> None:
        super().__init__(why)
        self.reason = reason


class Hold(Protocol):
    """What a connection has of a run that it asked for, until another one asks for the same."""

    @property
    def taken(self) -> Waitable:
        """Ready once another connection has the run."""

    def wait(self, timeout: float | None, *wakes: Waitable) -> Exited | None:
        """Give the run's end as soon as nothing of it is left; as `Step.wait` does."""

    def sample(self) -> Sampled:
        """Take a sample of the host and of the run."""

    def leave(self, grace: float, why: str) -> None:
        """Ask for the run's end: SIGTERM, ``grace`` seconds, SIGKILL. Returns at once."""

    def release(self) -> None:
        """Let go of the run: who wants it has to ask for it again before long."""


class Duties(Protocol):
    """What a member does. All may take long, and raise `RefusedError`.

    ``gone`` is ready when nobody waits for the answer any more.
    """

    @property
    def departs(self) -> Waitable:
        """Ready once the member is about to go away; then `departure` tells of it."""

    def departure(self) -> Departs:
        """Tell why the member goes away, and when."""

    def check(self, request: Check) -> Checked:
        """See whether this host can take part."""

    def fetch(self, request: Fetch, gone: Waitable) -> Fetched:
        """Have an image."""

    def enter(self, request: Enter, gone: Waitable) -> Hold:
        """Start a run, or give the one that was started for the same entry before."""
