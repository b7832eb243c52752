"""What every launcher checks before a user's words become part of its command line."""

from collections.abc import Callable, Collection, Mapping, Sequence
from types import MappingProxyType

from simagent.ports.launcher import LaunchError, Ranks

_BINDINGS = ("core", "hwthread", "socket", "none")


def check_np(np: int) -> int:
    """Give the number of ranks back. Raises `LaunchError`."""
    if np < 1:
        raise LaunchError(f"mpi.np: {np} ranks cannot be started: ask for 1 or more")
    return np


def binding(ranks: Ranks) -> str | None:
    """Tell what to bind ranks to; None where nothing is said, or the user's own options say it.

    Said twice it is an error to MPICH and to Open MPI 5. Raises `LaunchError`.
    """
    if ranks.bind is not None and ranks.bind not in _BINDINGS:
        raise LaunchError(f"mpi.bind: {ranks.bind} is none of {', '.join(_BINDINGS)}")
    said = any(word.partition("=")[0] in ("-bind-to", "--bind-to") for word in ranks.args)
    return None if said else ranks.bind


def check_program(argv: Sequence[str]) -> None:
    """Refuse what a launcher would read as words of its own. Raises `LaunchError`."""
    if not argv or argv[0].startswith("-"):
        raise LaunchError(
            "run: name a program that does not begin with '-', mpirun takes it for its own"
        )
    if ":" in argv:
        raise LaunchError("run: mpirun takes a ':' of its own for the start of another program")


def check_args(
    args: Sequence[str],
    harmless: Mapping[str, int],
    check_values: Callable[[str, Sequence[str]], None] = lambda _option, _values: None,
    *,
    others: Mapping[str, int] = MappingProxyType({}),
    allow: Collection[str] = (),
) -> None:
    """Refuse options that are not among the harmless ones, given with their numbers of values.

    Known ones only: ``others`` name hosts or files, or make mpirun itself run a program, and mpirun
    may run outside of the task's container. The operator can ``allow`` them by name.
    ``check_values`` gets the values of each harmless option. Raises `LaunchError`.
    """
    words = iter(args)
    for word in words:
        option = word.removeprefix("-").removeprefix("-")
        allowed = option in others and option in allow
        if option == word or (option not in harmless and not allowed):
            known = ", ".join(f"-{name}" for name in sorted(harmless))
            raise LaunchError(f"mpi.args: {word} is refused; what can be used is {known}")
        count = others[option] if allowed else harmless[option]
        values = [value for _, value in zip(range(count), words, strict=False)]
        if len(values) < count:
            raise LaunchError(f"mpi.args: {word} needs {count} values")
        if not allowed:
            check_values(option, values)
