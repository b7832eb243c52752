"""What starts the ranks of an MPI step: a pure builder of command lines."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol


class LaunchError(ValueError):
    """The ranks cannot be started as asked; the message names the field and the fix."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ranks:
    """The ranks of one step.

    ``np`` is their number, ``env`` the names of the variables that must reach every rank,
    ``args`` further options of the user for the launcher itself.
    """

    np: int
    env: tuple[str, ...] = ()
    bind: str | None = None
    args: tuple[str, ...] = ()


class Launcher(Protocol):
    """One MPI implementation's way to start ranks."""

    name: str

    def command(self, ranks: Ranks, argv: Sequence[str]) -> tuple[str, ...]:
        """Build the command line that runs ``argv`` as these ranks. Raises `LaunchError`."""
