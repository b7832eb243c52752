"""What `mpirun` says, for people, about ranks and hosts that did not come to their own end.

Messages of Open MPI 4 and 5 and of MPICH's Hydra 4 and 5, which prints to standard output. A task
can print the same words: it then tells a lie about its own failure, and no more.
"""

import errno
import re
import signal
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

_TAIL_BYTES = 1 << 16
_EXITED_BY_SIGNAL = 128
"""Added to a signal's number it is what Open MPI exits with, as a shell does."""

_OPENMPI_SIGNAL = re.compile(
    r"noticed\s+that\s+process\s+rank\s+(?P<rank>\d+)\s+with\s+PID\s+\d+\s+on\s+node\s+"
    r"(?P<host>\S+)\s+exited\s+on\s+signal\s+(?P<signal>\d+)"
)
_OPENMPI_CODE = re.compile(r"Process name:\s+\[[^\n]*,(?P<rank>\d+)\]\s+Exit code:\s+(?P<code>\d+)")
_OPENMPI_ABORT = re.compile(r"MPI_ABORT\s+was\s+invoked\s+on\s+rank\s+(?P<rank>\d+)")
_OPENMPI_ABORTED = re.compile(r"^Primary job\s+terminated normally, but \d+ process", re.MULTILINE)
_OPENMPI_LOST = re.compile(
    r"has lost communication with a remote daemon.{0,400}?"
    r"Remote daemon:[^\n]* on node (?P<host>\S+)",
    re.DOTALL,
)
_OPENMPI_PEER = re.compile(
    r"peer process has unexpectedly disconnected.{0,1000}?Peer host:\s+(?P<host>\S+)", re.DOTALL
)
_OPENMPI_UNREACHED = re.compile(
    r"failed\s+to\s+TCP\s+connect\s+to\s+a\s+peer\s+MPI\s+process.{0,400}?"
    r"Message:\s+connect\(\) to (?P<address>\S+):\d+ failed\s+Error:[^\n]*\((?P<errno>\d+)\)",
    re.DOTALL,
)
_OPENMPI_CLOSED = re.compile(
    r"^\[(?P<host>[^\s:\]]+):\d+\] \*\*\* An error occurred in Socket closed", re.MULTILINE
)
_NOBODY_LISTENS = (errno.ECONNREFUSED, errno.ECONNRESET)
_HYDRA_SIGNAL = re.compile(
    r"^=\s+BAD TERMINATION OF ONE OF YOUR APPLICATION PROCESSES\s+"
    r"=\s+PID \d+ RUNNING AT (?P<host>\S+)\s+=\s+EXIT CODE: (?P<status>\d+)",
    re.MULTILINE,
)
_HYDRA_CAUSE = re.compile(r"THE EXIT STRING: .*?\(signal (?P<signal>\d+)\)")
_HYDRA_ABORT = re.compile(r"^Abort\(-?\d+\)[^\n]*\(rank (?P<rank>\d+) in comm 0\)", re.MULTILINE)

_NO_NAMES: Mapping[str, str] = MappingProxyType({})


@dataclass(frozen=True, slots=True, kw_only=True)
class Told:
    """What was told of the end of an MPI job.

    ``failed`` says which rank a signal ended, ``lost`` names a host whose daemon is gone, and
    ``note`` tells which rank exited, or called for the end of all. Each is empty where nothing is
    told of that.
    """

    failed: str = ""
    lost: str = ""
    note: str = ""


def told(text: str, code: int | None = None, names: Mapping[str, str] = _NO_NAMES) -> Told:
    """Read what a launcher printed that exited with ``code``.

    ``names`` are those of the hosts, by their addresses.
    """
    lost = _OPENMPI_LOST.search(text)
    note = _note(text)
    return Told(
        failed=_failed(text, code) or ("" if note else _gone(text, names)),
        lost=lost["host"] if lost is not None else "",
        note=note,
    )


def read_tail(*paths: Path) -> str:
    """Give the last of what was printed; of a file that cannot be read, nothing."""
    return "\n".join(_tail(path) for path in paths)


def ended_by(code: int | None) -> int | None:
    """Give the signal of a rank that an exit code of Open MPI's `mpirun` tells of, if it does."""
    number = (code or 0) - _EXITED_BY_SIGNAL
    return number if number in signal.valid_signals() else None


def signal_name(number: int) -> str:
    """Say a signal's name and number."""
    try:
        return f"{signal.Signals(number).name} (signal {number})"
    except ValueError:  # a real-time signal
        return f"signal {number}"


def _failed(text: str, code: int | None) -> str:
    found = _OPENMPI_SIGNAL.search(text)
    if found is not None:
        by = signal_name(int(found["signal"]))
        return f"rank {found['rank']} on {found['host']} was ended by {by}"
    found = _HYDRA_SIGNAL.search(text)
    if found is not None:
        cause = _HYDRA_CAUSE.search(text, found.end())
        # The status as wait(2) has it, and of the first rank of its list: others it has ended
        # itself by then, with a signal of its own choice.
        number = int(cause["signal"]) if cause is not None else int(found["status"]) & 0x7F
        if not number:
            return ""
        return f"a rank on {found['host']} was ended by {signal_name(number)}"
    # Of programs that never joined the job as a rank Open MPI 4 does not say more.
    last = ended_by(code)
    if last is not None and _OPENMPI_ABORTED.search(text):
        return f"a rank was ended by {signal_name(last)}"
    return ""


def _gone(text: str, names: Mapping[str, str]) -> str:
    """Tell which rank the others saw gone before mpirun did, whereupon they ended the job."""
    found = _OPENMPI_PEER.search(text)
    if found is not None:
        return f"a rank on {found['host']} ended before the others"
    found = _OPENMPI_UNREACHED.search(text)
    if found is not None:
        if int(found["errno"]) not in _NOBODY_LISTENS:
            return ""
        address = found["address"].strip("[]")
        return f"a rank on {names.get(address, address)} ended before the others had reached it"
    found = _OPENMPI_CLOSED.search(text)
    if found is not None:
        # Of the peer that it names else nothing came through; on the same host there is no socket.
        others = set(names.values()) - {found["host"]}
        where = f" on {others.pop()}" if len(others) == 1 else ""
        return f"a rank{where} ended before the others: one on {found['host']} was connected to it"
    return ""


def _note(text: str) -> str:
    abort = _OPENMPI_ABORT.search(text) or _HYDRA_ABORT.search(text)
    if abort is not None:
        return f"rank {abort['rank']} called MPI_Abort"
    exited = _OPENMPI_CODE.search(text)
    return f"rank {exited['rank']} exited with code {exited['code']}" if exited is not None else ""


def _tail(path: Path) -> str:
    try:
        with path.open("rb") as file:
            file.seek(max(0, file.seek(0, 2) - _TAIL_BYTES))
            return file.read(_TAIL_BYTES).decode(errors="replace")
    except OSError:
        return ""
