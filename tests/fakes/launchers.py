"""MPI installations as a test wants them."""

from collections.abc import Mapping, Sequence

from simagent.ports.launcher import Launcher, LaunchError, Ranks


class PlainLauncher:
    """A launcher that only names itself and the number of ranks."""

    def __init__(self, name: str = "mpirun") -> None:
        self.name = name
        self.mpi = name

    def command(self, ranks: Ranks, argv: Sequence[str]) -> tuple[str, ...]:
        return (self.name, str(ranks.np), *argv)

    def environment(self, ranks: Ranks) -> Mapping[str, str]:
        del ranks
        return {}

    def files(self, ranks: Ranks) -> Mapping[str, str]:
        del ranks
        return {}


class Launchers:
    """A machine with these versions of MPI; with none by default."""

    def __init__(self, *versions: str) -> None:
        self._versions = versions

    def __bool__(self) -> bool:
        return bool(self._versions)

    def find(self, version: str | None) -> Launcher:
        for there in self._versions:
            if version in (None, there):
                return PlainLauncher(there)
        raise LaunchError("no mpirun was found on this machine")

    def inside(self) -> Launcher:
        return PlainLauncher("inside")
