"""That a member is about to go away, for its head to hear while there is time."""

from simagent.cluster.messages import Departs
from simagent.ports.clock import Clock, Waitable, Wake


class Departure:
    """Announced once by the agent, told by each connection that has ranks here. Any thread may."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._why = ""
        self._until = 0.0
        self._announced = Wake()

    @property
    def announced(self) -> Waitable:
        """Ready once there is something to tell."""
        return self._announced

    def announce(self, why: str, until: float) -> None:
        """Let heads know. ``until`` is when what runs here has to be over, on the agent's clock."""
        if not self._why:
            self._why, self._until = why, until
            self._announced.set()

    def told(self) -> Departs:
        """Say it."""
        return Departs(why=self._why, left=max(0.0, self._until - self._clock.now()))
