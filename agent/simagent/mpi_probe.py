"""What `simagent mpi check` starts as each rank: it tells where it is, and meets the others.

A file by itself, copied into the task's folder and run there by any Python from 3.7 on: that of an
image, too. The only place that imports mpi4py, which loads an MPI library.

Called with ``meet`` it ends with `UNSUITED`, before MPI is begun, where this Python has no mpi4py
for the MPI that started it: another Python may have one. Called with ``alone`` it tells what can be
told without. Each rank tells a record, as JSON, at its start and at its end: as a line that begins
with `MARK` on standard output, and in a file of its own in `FOLDER`.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import socket
import statistics
import sys
import time
from array import array
from collections.abc import Callable, Iterator
from glob import glob
from typing import TYPE_CHECKING, Any

FOLDER = "mpi-check"
MARK = "simagent-mpi-check "
UNSUITED = 77

_SECONDS = 120
"""Within which the ranks have to have met; else they are killed by SIGALRM."""
_LOOK_EVERY = 0.0005
_NUMBER, _BLOCK, _TURN = 1, 2, 3
"""Tags of messages."""
_BLOCK_BYTES = 1 << 20
_SMALL = 8
_SHARED_WITHIN = 5.0
"""Seconds that a network's file system may take to show what another host wrote."""

_LAUNCHERS = ("mpirun", "mpiexec", "orterun", "orted", "prte", "hydra")
_LIBRARIES = {"openmpi": ("libmpi.so.40",), "hydra": ("libmpi.so.12", "libmpich.so.12")}
_NAMES = {"openmpi": ("Open MPI",), "hydra": ("MPICH", "MVAPICH", "Intel")}
"""How the library of each family calls itself."""

if TYPE_CHECKING:
    Record = dict[str, Any]


def main(how: str) -> int:
    """Be one rank; tell the exit code."""
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.alarm(_SECONDS)
    family = _family()
    library = _library_of(family)
    if how == "meet":
        if library is not None:
            os.environ.setdefault("MPI4PY_LIBMPI", library)
        return _meet(family)
    record = _whereabouts(family)
    record["library"] = _asked(library)
    _tell(record)
    return 0


def _meet(family: str | None) -> int:
    try:
        import mpi4py  # noqa: PLC0415 - where it is not there, that is the result

        mpi4py.rc.initialize = False
        from mpi4py import MPI  # noqa: PLC0415
    except Exception:  # noqa: BLE001 - also what it says where no MPI library can be loaded
        return UNSUITED
    library = MPI.Get_library_version().strip("\0\n ").splitlines()[0]
    if family is not None and not any(name in library for name in _NAMES[family]):
        return UNSUITED
    record = _whereabouts(family)
    record["library"] = library
    record["mpi4py"] = mpi4py.__version__
    _tell(record)
    MPI.Init()
    world = MPI.COMM_WORLD
    signal.alarm(_SECONDS + world.size)  # they measure one after the other
    record["rank"], record["size"] = world.rank, world.size
    record["standard"] = ".".join(str(number) for number in MPI.Get_version())
    record["unseen"] = _unseen(world.gather(record["id"]) or [])
    record["link"] = _round_the_ring(world) if world.size > 1 else None
    record["together"] = _together(world, MPI)
    record["met"] = True
    _tell(record)
    MPI.Finalize()
    return 0


def _whereabouts(family: str | None) -> Record:
    """Tell what a rank knows by itself; ``told`` is what its launcher said of rank and size."""
    host = socket.gethostname()
    return {
        "id": f"{host}-{os.getpid()}-{os.urandom(3).hex()}",
        "rank": None,
        "size": None,
        "told": [_number(*_variables(kind)) for kind in ("RANK", "SIZE")],
        "family": family,
        "host": host,
        "cpus": _ranges(sorted(os.sched_getaffinity(0))),
        "cpu": _running_on(),
        "uid": os.getuid(),
        "shm": _shared_memory(),
        "python": sys.executable,
        "library": None,
        "met": False,
    }


def _tell(record: Record) -> None:
    """Write the record to a file of its own, and as a line: in one piece, beside other ranks."""
    text = json.dumps(record)
    os.makedirs(FOLDER, exist_ok=True)
    with open(_file(record["id"]), "w") as file:
        file.write(text)
    os.write(1, (MARK + text + "\n").encode())


def _file(name: str) -> str:
    return os.path.join(FOLDER, name + ".json")


def _unseen(names: list[str]) -> list[str]:
    """Give the ranks whose files cannot be seen here: their folder is another one."""
    deadline = time.monotonic() + _SHARED_WITHIN
    left = names
    while True:
        left = [name for name in left if not os.path.exists(_file(name))]
        if not left or time.monotonic() > deadline:
            return left
        time.sleep(0.2)


def _round_the_ring(world: Any) -> Record:
    """Measure the way to the next rank, when the one before has done so.

    Who waits for its turn leaves the cores to those who measure.
    """
    before, after = (world.rank - 1) % world.size, (world.rank + 1) % world.size
    if world.rank > 0:
        _answer(world, before)
    found = _measure(world, after)
    if world.rank == 0:
        _answer(world, before)
    ended = world.Ibarrier()
    _await(ended.Test)
    return found


def _measure(world: Any, other: int) -> Record:
    """Tell the seconds that a small message takes, and the bytes a second of large ones."""
    world.Send(array("q", [0]), dest=other, tag=_TURN)
    small = _there_and_back(world, other, bytearray(_SMALL), _NUMBER, within=0.05, most=500)
    large = _there_and_back(world, other, bytearray(_BLOCK_BYTES), _BLOCK, within=0.1, most=32)
    return {"to": other, "seconds": small / 2, "bytes_per_second": 2 * _BLOCK_BYTES / large}


def _there_and_back(
    world: Any, other: int, block: bytearray, tag: int, *, within: float, most: int
) -> float:
    """Give the median time of a message and its answer, of as many as time allows."""
    times: list[float] = []
    first = 5
    rounds = first
    world.Send(array("q", [first]), dest=other, tag=_TURN)
    for turn in range(2):
        for _ in range(rounds):
            started = time.perf_counter()
            world.Send(block, dest=other, tag=tag)
            world.Recv(block, source=other, tag=tag)
            times.append(time.perf_counter() - started)
        if turn == 0:  # what was needed to get to know each other does not count
            rounds = max(first, min(most, int(within / (min(times) + 1e-9))))
            times = []
            world.Send(array("q", [rounds]), dest=other, tag=_TURN)
    return max(statistics.median(times), 1e-9)


def _answer(world: Any, other: int) -> None:
    """Send back what a rank measures by."""
    number = array("q", [0])
    _await(lambda: world.Iprobe(source=other, tag=_TURN))
    world.Recv(number, source=other, tag=_TURN)
    for size, tag in ((_SMALL, _NUMBER), (_BLOCK_BYTES, _BLOCK)):
        block = bytearray(size)
        for _ in range(2):
            world.Recv(number, source=other, tag=_TURN)
            for _ in range(number[0]):
                world.Recv(block, source=other, tag=tag)
                world.Send(block, dest=other, tag=tag)


def _together(world: Any, mpi: Any) -> Record:
    """Do what all ranks do at once: a sum, and a number from each to each."""
    total, mine = array("q", [0]), array("q", [world.rank + 1])
    world.Allreduce(mine, total)
    sent = array("q", (world.rank * world.size + other for other in range(world.size)))
    got = array("q", [0] * world.size)
    world.Alltoall([sent, mpi.INT64_T], [got, mpi.INT64_T])
    right = [other * world.size + world.rank for other in range(world.size)]
    many, summed = array("d", [1.0]) * (_BLOCK_BYTES // 8), array("d", [0.0]) * (_BLOCK_BYTES // 8)
    return {
        "sum_is_right": total[0] == world.size * (world.size + 1) // 2,
        "each_reached_each": list(got) == right,
        "sum_seconds": _timed(lambda: world.Allreduce(mine, total), 20),
        "large_sum_seconds": _timed(lambda: world.Allreduce(many, summed), 4),
        "large_sum_bytes": _BLOCK_BYTES,
    }


def _timed(call: Callable[[], object], times: int) -> float:
    call()
    started = time.perf_counter()
    for _ in range(times):
        call()
    return (time.perf_counter() - started) / times


def _await(done: Callable[[], Any]) -> None:
    while not done():
        time.sleep(_LOOK_EVERY)


def _family() -> str | None:
    """Tell whose launcher started this rank, by the variables that it sets."""
    if "OMPI_COMM_WORLD_SIZE" in os.environ or "PMIX_RANK" in os.environ:
        return "openmpi"
    return "hydra" if "PMI_RANK" in os.environ else None


def _variables(kind: str) -> tuple[str, ...]:
    return "OMPI_COMM_WORLD_" + kind, "PMIX_" + kind, "PMI_" + kind


def _number(*names: str) -> int | None:
    for name in names:
        if os.environ.get(name, "").isdigit():
            return int(os.environ[name])
    return None


def _library_of(family: str | None) -> str | None:
    """Find the library that belongs to the launcher: another one would know nothing of it."""
    if family is None:
        return None
    for folder in _folders():
        for name in _LIBRARIES[family]:
            path = os.path.join(folder, name)
            if os.path.exists(path):
                return path
    return None


def _folders() -> Iterator[str]:
    """Yield where the library may be: beside what the launcher itself has loaded, first of all."""
    for pid in _ancestors():
        try:
            program = os.readlink(f"/proc/{pid}/exe")
            with open(f"/proc/{pid}/maps") as file:
                mapped = {line.split(None, 5)[-1].strip() for line in file if "/" in line}
        except OSError:
            continue  # of another user, or gone
        if not os.path.basename(program).startswith(_LAUNCHERS):
            continue
        loaded = {os.path.dirname(path) for path in mapped if "/lib" in path and ".so" in path}
        prefix = os.path.dirname(os.path.dirname(program))
        there = [os.path.join(prefix, "lib"), os.path.join(prefix, "lib64")]
        yield from there
        yield from sorted(loaded, key=lambda folder: (not folder.startswith(prefix), folder))
        yield from sorted(glob(os.path.join(prefix, "lib", "*-linux-gnu*")))


def _ancestors() -> Iterator[int]:
    pid = os.getppid()
    while pid > 1:
        yield pid
        try:
            with open(f"/proc/{pid}/stat") as file:
                pid = int(file.read().rpartition(")")[2].split()[1])
        except (OSError, ValueError, IndexError):
            return


def _asked(library: str | None) -> str | None:
    """Ask an MPI library for its version, which it tells before MPI is begun."""
    if library is None:
        return None
    text, length = ctypes.create_string_buffer(1 << 16), ctypes.c_int()
    try:
        ctypes.CDLL(library).MPI_Get_library_version(text, ctypes.byref(length))
    except (OSError, AttributeError):
        return None
    return text.value.decode(errors="replace").strip().splitlines()[0]


def _shared_memory() -> str | None:
    """Name the /dev/shm of this rank: ranks share memory where it is the same."""
    try:
        found = os.stat("/dev/shm")  # noqa: S108 - nothing is written there
    except OSError:
        return None
    return f"{found.st_dev}:{found.st_ino}"


def _running_on() -> int | None:
    """Tell the CPU that this process ran on last (proc(5): stat, field 39)."""
    try:
        with open("/proc/self/stat") as file:
            return int(file.read().rpartition(")")[2].split()[36])
    except (OSError, ValueError, IndexError):
        return None


def _ranges(numbers: list[int]) -> str:
    """Write numbers as 0-3,8."""
    parts: list[list[int]] = []
    for number in numbers:
        if parts and number == parts[-1][-1] + 1:
            parts[-1] = [parts[-1][0], number]
        else:
            parts.append([number])
    return ",".join("-".join(str(end) for end in part) for part in parts)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
