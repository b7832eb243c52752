"""The agents of a fleet, as the Python client tells of them."""

from dataclasses import dataclass

from simagent.domain.fleet import Heartbeat

DAY = 86_400.0
TOLERANCE = 60.0
"""Seconds by which two machines' clocks may differ before an agent looks silent for it."""


@dataclass(frozen=True, slots=True)
class AgentInfo:
    """An agent as it showed itself last.

    ``heartbeat`` is all that it told: ``slots`` and how many are ``free``, ``tasks``, ``machine``,
    ``runtimes``, ``tags``, ``version``. ``age`` is the seconds since then, and ``silent`` whether
    they are too many; both by its clock and this machine's, so no more than a hint.
    """

    heartbeat: Heartbeat
    age: float
    silent: bool

    @property
    def name(self) -> str:
        """What it is called."""
        return self.heartbeat.agent

    @property
    def group(self) -> str:
        """The group whose tasks it takes."""
        return self.heartbeat.group

    @property
    def state(self) -> str:
        """What it did last: `idle`, `busy` or `draining`."""
        return self.heartbeat.state
