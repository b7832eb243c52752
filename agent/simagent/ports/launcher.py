"""What starts the ranks of an MPI step: a pure builder of command lines."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

from simagent.domain.reasons import Reason


class LaunchError(ValueError):
    """The ranks cannot be started as asked; the message names the field and the fix."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Host:
    """A host that ranks are started on: its address, and how many it takes."""

    address: str
    slots: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """The hosts of ranks that lie on several, the one where `mpirun` runs first.

    ``agent`` is the program that `mpirun` calls in place of ssh, at its path as `mpirun` sees it,
    without blanks: ``agent [-x] ADDRESS WORDS...``, once for each host but the first, with what
    `mpirun` itself runs with as its environment. ADDRESS is that of the `Host`, letter for letter.
    The WORDS, joined by blanks, are a line for /bin/sh there, which starts the MPI's daemon: Open
    MPI 4 says `` orted -mca ess "env" ...``, Open MPI 5 ``A=b;export A;...;/path/prted ...``, Hydra
    ``"/path/hydra_pmi_proxy" ...``. A word ``--daemonize`` is to be left out: Open MPI 5 says it
    where it cannot be told not to. All else goes over connections that the daemon makes to
    `mpirun`: nothing is read from the agent's stdin, and what it prints is for people alone.

    The agent lasts as long as the daemon. It never exits with 0 where the daemon was not started,
    for Open MPI then waits for it without end.

    Beside the agent lie the `Launcher.files`. Open MPI 5 does not know the host that it runs on by
    an address on the command line (there "are not enough slots"), but in a file it does.

    ``network`` is what MPI's own connections use, as ADDRESS/BITS.
    """

    hosts: tuple[Host, ...]
    agent: str
    network: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Ranks:
    """The ranks of one step.

    ``np`` is their number, ``env`` the names of the variables that must reach every rank,
    ``args`` further options of the user for the launcher itself. ``bind`` is what they are bound
    to; with ``wished`` nobody asked for it, and where it cannot be had in silence they are not
    bound. Where their ``memory`` cannot be bound, some MPIs complain, or give up. With
    ``oversubscribe`` there may be more ranks than cores. Without ``span`` all of them are on this
    host. With ``guard`` the command looks first whether the program can become ranks of that
    `mpirun`, where this can be seen: `guard_said` tells what it found. ``boxed`` ranks are in a
    container each, which starts outside of it: no option may set variables there.
    """

    np: int
    env: tuple[str, ...] = ()
    bind: str | None = None
    wished: bool = False
    memory: bool = True
    oversubscribe: bool = False
    args: tuple[str, ...] = ()
    span: Span | None = None
    guard: bool = False
    boxed: bool = False


GUARD_CODE: Final = 93
"""What a guarded command exits with where it did not start the ranks."""

_GUARD_SAYS: Final = re.compile(r"^simagent: (mpi_mismatch|mpi_unavailable): (.+)$", re.MULTILINE)


def guard_said(stderr: str) -> tuple[Reason, str] | None:
    """Tell why a guarded command that exited with `GUARD_CODE` did not start the ranks.

    None where what it wrote last does not tell: then it is the program's own exit code.
    """
    said = list(_GUARD_SAYS.finditer(stderr))
    return (Reason(said[-1][1]), said[-1][2]) if said else None


class Launcher(Protocol):
    """One MPI implementation's way to start ranks."""

    name: str
    mpi: str
    """Whose `mpirun` it is, such as ``Open MPI 4.1.4``; empty where it is that of an image."""

    def command(self, ranks: Ranks, argv: Sequence[str]) -> tuple[str, ...]:
        """Build the command line that runs ``argv`` as these ranks. Raises `LaunchError`."""

    def environment(self, ranks: Ranks) -> Mapping[str, str]:
        """Give the variables that the launcher itself has to see beside the step's own."""

    def files(self, ranks: Ranks) -> Mapping[str, str]:
        """Give the files, by their names, that have to lie in the folder of the span's agent."""


class Launchers(Protocol):
    """The MPI implementations of one machine, possibly several versions side by side."""

    def __bool__(self) -> bool:
        """Whether there is any."""

    def find(self, version: str | None) -> Launcher:
        """Give the launcher of a version, such as ``5`` or ``4.1.6``; by default the newest.

        Raises `LaunchError`.
        """

    def inside(self) -> Launcher:
        """Give the launcher for the `mpirun` of a task's own image."""
