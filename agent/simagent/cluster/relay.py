"""The relay: what the head's ssh runs on a member; leads to the member agent's socket and back.

Run as ``python -I -S relay.py SOCKET BEAT SILENT AGAIN``, with the standard library only. It passes
lines on, both ways, and each BEAT seconds sends the head a `Beat` of its own. When the member agent
goes away it connects anew for AGAIN seconds, and says the first line again, and `Leave` if the head
had said so; for a third of that, where there was none to begin with. When the head says nothing for
SILENT seconds, or closes, it ends, which the agent sees: the connection closes without a `Leave`.
"""

import contextlib
import json
import os
import select
import socket
import sys
import time

MOST_LINE_BYTES = 4 << 20
_MOST_WAITING = 8 << 20
"""Bytes for a head that does not read; what the agent says further has to wait in the socket."""
_PAUSE = 0.1
_FINAL = frozenset({"checked", "fetched", "exited", "refused"})
_BEAT = b'{"event": "beat"}\n'
_IN, _OUT = 0, 1


class HeadGoneError(Exception):
    """The head closed, or is silent."""


class Lines:
    """Bytes as they come, cut into lines."""

    def __init__(self) -> None:
        self._rest = b""

    def add(self, data: bytes) -> list[bytes]:
        """Give the lines that are complete now, each with its end. Raises ValueError."""
        *lines, self._rest = (self._rest + data).split(b"\n")
        if max(map(len, (*lines, self._rest))) > MOST_LINE_BYTES:
            raise ValueError(f"a line of more than {MOST_LINE_BYTES} bytes")
        return [line + b"\n" for line in lines]


def kind(line: bytes, field: str) -> object:
    """Tell which request (``ask``) or event a line is; None where it is none."""
    try:
        record = json.loads(line)
    except ValueError:
        return None
    return record.get(field) if isinstance(record, dict) else None


class Relay:
    """One conversation of the head with the member agent."""

    def __init__(self, path: str, beat: float, silent: float, again: float) -> None:
        self._path = path
        self._beat = beat
        self._silent = silent
        self._again = again
        now = time.monotonic()
        self._heard = now
        self._beat_due = now
        self._try_at = now
        self._alone_since: float | None = now
        self._first = b""
        self._leave = b""
        self._met = False
        self._ended = False
        self._agent: socket.socket | None = None
        self._from_head, self._from_agent = Lines(), Lines()
        self._to_head, self._to_agent = bytearray(), bytearray()

    def run(self) -> None:
        """Return when the last event has gone to the head. Raises `HeadGoneError`, OSError."""
        os.set_blocking(_IN, False)
        os.set_blocking(_OUT, False)
        while not self._ended or self._to_head:
            now = time.monotonic()
            if now >= self._beat_due:
                self._to_head += _BEAT
                self._beat_due = now + self._beat
            if self._first and self._agent is None and not self._ended and now >= self._try_at:
                self._connect(now)
            self._wait(now)
            # Looked at only after what has come was read: all of this may have stood still.
            if time.monotonic() - self._heard > self._silent:
                raise HeadGoneError(f"the head is silent for {self._silent:g} s")

    def _wait(self, now: float) -> None:
        poller = select.poll()
        poller.register(_IN, select.POLLIN)
        poller.register(_OUT, select.POLLOUT if self._to_head else 0)
        agent = -1
        if self._agent is not None:
            agent = self._agent.fileno()
            reads = len(self._to_head) < _MOST_WAITING and not self._ended
            writes = bool(self._to_agent)
            poller.register(agent, reads * select.POLLIN | writes * select.POLLOUT)
        due = min(self._beat_due, self._heard + self._silent)
        if self._agent is None and self._first and not self._ended:
            due = min(due, self._try_at)
        ready = dict(poller.poll(max(0.0, due - now) * 1000 + 1))
        if _IN in ready:
            self._read_head()
        if _OUT in ready:
            self._write_head(ready[_OUT])
        if agent in ready:
            self._talk(ready[agent])

    def _read_head(self) -> None:
        try:
            data = os.read(_IN, 1 << 16)
        except BlockingIOError:
            return
        if not data:
            raise HeadGoneError("the head has closed the connection")
        self._heard = time.monotonic()
        for line in self._from_head.add(data):
            if not self._first:
                self._first = line
                continue
            if kind(line, "ask") == "leave":
                self._leave = line
            if self._agent is not None:
                self._to_agent += line

    def _write_head(self, events: int) -> None:
        if events & ~select.POLLOUT:
            raise HeadGoneError("the head has closed the connection")
        with contextlib.suppress(BlockingIOError):
            del self._to_head[: os.write(_OUT, self._to_head)]

    def _connect(self, now: float) -> None:
        agent = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        agent.settimeout(self._beat)
        try:
            agent.connect(self._path)
        except OSError as error:
            agent.close()
            self._alone(now, f"its agent does not answer: {error.strerror or error}")
            return
        agent.setblocking(False)
        self._agent = agent
        self._from_agent = Lines()
        self._to_agent = bytearray(self._first + self._leave)

    def _alone(self, now: float, why: str) -> None:
        """Take note that there is no agent; say so to the head after a while."""
        self._try_at = now + _PAUSE
        if self._alone_since is None:
            self._alone_since = now
        elif now - self._alone_since > (self._again if self._met else self._again / 3):
            refusal = {"event": "refused", "reason": "mpi_host_lost", "why": why}
            self._to_head += json.dumps(refusal).encode() + b"\n"
            self._ended = True

    def _talk(self, events: int) -> None:
        assert self._agent is not None
        try:
            if events & select.POLLOUT:
                del self._to_agent[: self._agent.send(self._to_agent)]
            if events & ~select.POLLOUT:
                self._listen(self._agent.recv(1 << 16))
        except BlockingIOError:
            return
        except OSError:
            self._part()

    def _listen(self, data: bytes) -> None:
        if not data:
            self._part()
        for line in self._from_agent.add(data):
            self._alone_since = None
            self._met = True
            self._to_head += line
            if kind(line, "event") in _FINAL:
                self._ended = True
                self._part()
                return

    def _part(self) -> None:
        assert self._agent is not None
        self._agent.close()
        self._agent = None
        if not self._ended:
            self._alone(time.monotonic(), "its agent went away, and did not come back")


def main() -> int:
    """Run; the exit code is 1 where there was no end to tell the head."""
    path, *seconds = sys.argv[1:]
    try:
        Relay(path, *map(float, seconds)).run()
    except (HeadGoneError, OSError, ValueError) as error:
        with contextlib.suppress(OSError):
            os.set_blocking(2, False)
            os.write(2, f"{error}\n".encode())
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
