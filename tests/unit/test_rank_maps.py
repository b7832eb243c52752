"""What the memory maps of a step's processes tell of their MPI."""

from pathlib import Path

import pytest

from fakes.clock import FakeClock
from simagent.worker.strangers import RankWatch, strangers

MPICH = "/opt/mpich/lib/libmpi.so.12.3"
OPEN_MPI = "/usr/lib/libmpi.so.40.30.4\n7f-8f r-xp 0 fe:00 2 /usr/lib/libopen-pal.so.40"
ORTE = "/usr/lib/libopen-rte.so.40\n7f-8f r-xp 0 fe:00 2 /usr/lib/libopen-pal.so.40"
PRTE = "/usr/lib/libprrte.so.3"
LIBC = "/lib/libc.so.6"

HYDRA = [("mpirun", LIBC), ("hydra_pmi_proxy", LIBC)]
OPEN_MPI_4 = [("mpirun", ORTE)]
OPEN_MPI_5 = [("prterun", PRTE)]


def seen(tmp_path: Path, *processes: tuple[str, str]) -> str:
    for pid, (name, path) in enumerate(processes):
        folder = tmp_path / str(pid)
        folder.mkdir()
        (folder / "comm").write_text(f"{name}\n")
        (folder / "maps").write_text(f"7f-8f r-xp 0 fe:00 1 {path}\n")
    return strangers([*range(len(processes)), 4711], proc=tmp_path)


@pytest.mark.parametrize(
    "processes",
    [
        [*HYDRA, ("lmp", MPICH), ("lmp", MPICH)],
        [*OPEN_MPI_4, ("lmp", OPEN_MPI), ("lmp", OPEN_MPI)],
        [*OPEN_MPI_5, ("lmp", OPEN_MPI), ("lmp", OPEN_MPI)],
        [*HYDRA, ("sh", LIBC), ("sh", LIBC)],
        [*HYDRA, ("lmp", OPEN_MPI), ("lmp", MPICH)],  # one of them only has it at hand
        [*HYDRA, ("lmp", f"{OPEN_MPI}\n7f-8f r-xp 0 0 1 {MPICH}"), ("lmp", MPICH)],
        [*HYDRA, ("lmp", OPEN_MPI)],
        [("lmp", OPEN_MPI), ("lmp", OPEN_MPI)],  # who started them is not to be seen
        [],
    ],
)
def test_ranks_of_the_same_mpi_or_of_none(tmp_path: Path, processes: list[tuple[str, str]]) -> None:
    assert seen(tmp_path, *processes) == ""


@pytest.mark.parametrize(
    ("processes", "says"),
    [
        ([*HYDRA, *[("python3", OPEN_MPI)] * 2], "2 ranks have loaded Open MPI"),
        # Each of these has started a daemon of its own.
        (
            [*HYDRA, *[("python3", OPEN_MPI), ("orted", ORTE)] * 3],
            "3 ranks have loaded Open MPI, and were started by MPICH",
        ),
        ([*OPEN_MPI_5, *[("python3", MPICH)] * 2], "loaded MPICH, and were started by Open MPI"),
    ],
)
def test_ranks_of_another_mpi(tmp_path: Path, processes: list[tuple[str, str]], says: str) -> None:
    assert says in seen(tmp_path, *processes)


def test_looks_come_to_an_end() -> None:
    clock = FakeClock()
    watch = RankWatch(clock)
    looks = 0
    while (left := watch.left()) is not None:
        clock.advance(left)
        assert watch.look(list) == ""
        looks += 1
    assert looks == 4
