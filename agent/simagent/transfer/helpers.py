"""Helper processes that pack small files, each looked after by the thread that uses it."""

import os
import queue
import select
import socket
import subprocess
import sys
from contextlib import suppress
from typing import Literal

from simagent.transfer.batch import Batch, Member, pack_batch, receive, send
from simagent.transfer.zipformat import Entry

_EXIT_SECONDS = 10.0


# Without `site` and with `_exit`, starting and ending take less time than a batch.
_START = (
    "import os, sys; sys.path[:0] = sys.argv[2:]; from simagent.transfer.batch import serve; "
    "serve(int(sys.argv[1])); os._exit(0)"
)


class _Helper:
    """A process that packs batches. It ends when its socket is closed, also by our death."""

    def __init__(self) -> None:
        ours, theirs = socket.socketpair()
        with ours, theirs:
            path = [folder for folder in sys.path if folder]
            self._process = subprocess.Popen(
                [sys.executable, "-I", "-S", "-c", _START, str(theirs.fileno()), *path],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
            )
            self._requests = ours.makefile("wb")
            self._answers = ours.makefile("rb")

    def pack(self, members: list[Member]) -> Batch:
        """Pack a batch. Raises OSError or EOFError where the process has died."""
        send(self._requests, list(map(tuple, members)))
        data, entries, headers, notes = receive(self._answers)
        return Batch(data, [Entry(*entry) for entry in entries], headers, notes)

    def close(self) -> None:
        """End the process."""
        with suppress(OSError):  # what was not sent to a dead process
            self._requests.close()
        self._answers.close()
        if not self._ended():
            self._process.kill()
        self._process.wait()

    def _ended(self) -> bool:
        """Wait for its end, for some seconds; not where no file descriptor is left for that."""
        try:
            process = os.pidfd_open(self._process.pid)
        except OSError:
            return False
        try:
            poller = select.poll()
            poller.register(process, select.POLLIN)
            return bool(poller.poll(_EXIT_SECONDS * 1000))
        finally:
            os.close(process)


_Slot = _Helper | Literal["start", "here"]


class Helpers:
    """Packs batches in this process and in up to ``count`` others, started when needed."""

    def __init__(self, count: int) -> None:
        self._free: queue.SimpleQueue[_Slot] = queue.SimpleQueue()
        self._slots = count + 1
        for _ in range(count):
            self._free.put("start")
        self._free.put("here")

    def pack(self, members: list[Member]) -> Batch:
        """Pack a batch; where a helper dies, its work is done here."""
        slot = self._free.get()
        try:
            if slot == "start":
                slot = _Helper()
            if isinstance(slot, _Helper):
                return slot.pack(members)
        except (OSError, EOFError):
            if isinstance(slot, _Helper):
                slot.close()
            slot = "here"
        finally:
            if slot != "here":
                self._free.put(slot)
        try:
            return pack_batch(members)
        finally:
            self._free.put(slot)

    def close(self) -> None:
        """End the processes; no batch may be in work."""
        for _ in range(self._slots):
            slot = self._free.get()
            if isinstance(slot, _Helper):
                slot.close()
