"""The cloud that a machine is rented from: what it is there, and whether it is about to go."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol


class CloudError(Exception):
    """The cloud's metadata server gave no usable answer; the message says what came."""


class StaysError(CloudError):
    """The cloud does not let the machine go: it is needed."""


@dataclass(frozen=True, slots=True)
class Notice:
    """The machine is to go away.

    ``left`` is the seconds until then, counted from the question. ``certain`` is False where the
    cloud only tells of a greater risk.
    """

    what: str
    left: float
    certain: bool = True


class Cloud(Protocol):
    """One cloud's metadata server, as a machine of it sees it. Each call ends in few seconds."""

    name: str
    poll_every: float
    """Seconds between two questions for a notice."""

    def facts(self) -> Mapping[str, str]:
        """Tell ``instance``, ``instance_type``, ``region`` and ``price`` (`spot`, `on-demand`).

        What the cloud does not tell is left out. Raises `CloudError`.
        """

    def notice(self) -> Notice | None:
        """Ask whether the machine is to go away. Raises `CloudError`."""

    def done(self) -> None:
        """Let the cloud know that after a notice nothing is left to be done here.

        Only where it would wait longer for nobody's sake but this machine's. Raises `CloudError`.
        """


class Terminable(Protocol):
    """A cloud that ends a machine when the machine asks for it."""

    def terminate(self, *, replace: bool) -> bool:
        """Have this machine ended for good, and another one started if it is to be ``replaced``.

        False where the machine belongs to no group of the cloud's that would start another one:
        then it has to power itself off. Raises `StaysError`, `CloudError`.
        """
