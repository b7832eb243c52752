"""Processes that outlive the agent, told from others that got their number since."""

import os
import select
import signal
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Process:
    """A process by its number, when it started (in clock ticks since boot) and the boot's id."""

    pid: int
    start: int
    boot: str

    def alive(self) -> bool:
        """Tell whether this very process runs."""
        return found(self.pid) == self


def found(pid: int) -> Process | None:
    """Identify the process of a number; None where there is none, or only its remains."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_bytes()
        fields = stat[stat.rindex(b")") + 2 :].split()
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except (OSError, ValueError):
        return None
    return None if fields[0] in b"ZX" else Process(pid, int(fields[19]), boot)


def running_with(name: str, arguments: Sequence[str]) -> Iterator[Process]:
    """Find the processes of a program by some of its arguments, also where it titles itself.

    Not those of containers, which may have the same paths for other files.
    """
    words = f" {' '.join(arguments)} ".encode()
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            said = (folder / "cmdline").read_bytes().replace(b"\0", b" ") + b" "
            program, there, _ = said.partition(words)
            if there and name.encode() in program and not _contained(folder):
                process = found(int(folder.name))
                if process is not None:
                    yield process


def _contained(folder: Path) -> bool:
    """Tell whether a process has another number in a container. Raises OSError.

    Its namespaces themselves may only be looked at by who may trace it: not by root of few rights.
    """
    status = (folder / "status").read_bytes().splitlines()
    return any(len(line.split()) > 2 for line in status if line.startswith(b"NSpid:"))


def end(process: Process, limit: float) -> None:
    """End a process: SIGTERM, SIGKILL after ``limit`` seconds; not what it started."""
    with suppress(ProcessLookupError):
        fd = os.pidfd_open(process.pid)
        try:
            if not process.alive():
                return
            signal.pidfd_send_signal(fd, signal.SIGTERM)
            poller = select.poll()
            poller.register(fd, select.POLLIN)
            if not poller.poll(limit * 1000):
                signal.pidfd_send_signal(fd, signal.SIGKILL)
                poller.poll(limit * 1000)
        finally:
            os.close(fd)
