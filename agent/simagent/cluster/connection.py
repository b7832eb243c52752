"""A conversation of the head with one member, through a program such as ssh."""

import os
import select
import signal
import subprocess
import time
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Final, Self

from pydantic import ValidationError

from simagent.cluster.messages import (
    BEAT_EVERY,
    EVENT,
    SILENT_AFTER,
    Beat,
    Leave,
    Request,
    Told,
)
from simagent.cluster.relay import Lines
from simagent.domain.reasons import Reason
from simagent.ports.clock import Waitable, poll_timeout

_BEAT: Final = Beat().model_dump_json().encode() + b"\n"
_MOST_WORDS = 2000
_LAST_WORDS_LIMIT = 1.0
_DENIED = ("permission denied", "host key verification failed", "no matching host key")
"""How ssh says, in its last words, that it is not let in, or that this is another host."""


class HostLostError(Exception):
    """A host cannot be reached, or fell silent; the message says how that was seen."""


class HostRefusedError(Exception):
    """A host does not do what it was asked to; ``reason`` is a Reason's value."""

    def __init__(self, reason: str, why: str) -> None:
        super().__init__(why)
        self.reason = reason


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """Seconds: between beats, until a silent host is lost, and until a first sign of it."""

    beat: float = BEAT_EVERY
    silent: float = SILENT_AFTER
    contact: float = 20.0


PACE: Final = Pace()


class Connection:
    """The program ``command``, whose stdin and stdout lead to a member; ends with a `with` block.

    The program gets neither the agent's environment nor, as its own signals may be blocked, a
    signal other than SIGKILL.
    """

    def __init__(self, command: Sequence[str], request: Request, pace: Pace = PACE) -> None:
        self._pace = pace
        self._events: deque[Told] = deque()
        self._lines = Lines()
        self._out = bytearray(request.model_dump_json().encode() + b"\n")
        self._words = b""
        self._open = True
        self._began = time.monotonic()
        self._heard: float | None = None
        self._beat_due = self._began + pace.beat
        try:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                bufsize=0,
                env={"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C"},
                start_new_session=True,
            )
        except OSError as error:
            raise HostLostError(f"{command[0]} cannot be run: {error.strerror}") from None
        process = self._process
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        self._pipes = (process.stdin, process.stdout, process.stderr)
        self._in, self._from, self._err = (pipe.fileno() for pipe in self._pipes)
        for fd in (self._in, self._from, self._err):
            os.set_blocking(fd, False)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        """End the program, and with it the conversation: the member sees that it is closed."""
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        for pipe in self._pipes:
            with suppress(OSError):
                pipe.close()

    def leave(self, grace: float) -> None:
        """Ask the member to end what was started; `next` gives its answer."""
        self._out += Leave(grace=grace).model_dump_json().encode() + b"\n"

    def next(self, timeout: float | None, *wakes: Waitable) -> Told | None:
        """Give the next event; None after ``timeout`` seconds, or when one of ``wakes`` is ready.

        Raises `HostLostError`, and `HostRefusedError` where the host does not let the head in.
        """
        until = None if timeout is None else time.monotonic() + timeout
        while not self._events:
            if not self._open:
                self._lost()
            now = time.monotonic()
            if now >= self._beat_due:
                self._beat_due = now + self._pace.beat
                if len(self._out) < 100 * len(_BEAT):  # it does not take them: no more are needed
                    self._out += _BEAT
            due = min(self._beat_due, self._silent_at())
            woken = self._wait(max(0.0, (due if until is None else min(due, until)) - now), wakes)
            now = time.monotonic()
            if self._open and not self._events and now > self._silent_at():
                raise HostLostError(self._silence())
            if not self._events and (woken or (until is not None and now >= until)):
                return None
        return self._events.popleft()

    def _silent_at(self) -> float:
        if self._heard is None:
            return self._began + self._pace.contact
        return self._heard + self._pace.silent

    def _silence(self) -> str:
        if self._heard is None:
            return self._said() or f"there was no answer within {self._pace.contact:g} s"
        return f"nothing was heard of it for {self._pace.silent:g} s: it stands still or is cut off"

    def _wait(self, seconds: float, wakes: Sequence[Waitable]) -> bool:
        """Exchange what there is to exchange; tell whether one of ``wakes`` is ready."""
        poller = select.poll()
        poller.register(self._from, select.POLLIN)
        if self._err >= 0:
            poller.register(self._err, select.POLLIN)
        if self._out:
            poller.register(self._in, select.POLLOUT)
        for wake in wakes:
            poller.register(wake.fileno(), select.POLLIN)
        ready = {fd for fd, _ in poller.poll(poll_timeout(seconds))}
        if self._in in ready:
            self._write()
        if self._err in ready:
            self._hear_words()
        if self._from in ready:
            self._read()
        return any(wake.fileno() in ready for wake in wakes)

    def _write(self) -> None:
        try:
            del self._out[: os.write(self._in, self._out)]
        except BlockingIOError:
            return
        except BrokenPipeError:  # that it has ended shows where it is read
            self._out.clear()

    def _read(self) -> None:
        try:
            data = os.read(self._from, 1 << 16)
        except BlockingIOError:
            return
        self._open = self._open and data != b""
        try:
            for line in self._lines.add(data):
                self._hear(line)
        except ValueError as error:
            raise HostLostError(f"it said what makes no sense: {error}") from None

    def _hear(self, line: bytes) -> None:
        try:
            event = EVENT.validate_json(line)
        except ValidationError:
            self._words = (self._words + line)[-_MOST_WORDS:]  # what a login shell prints, say
            return
        self._heard = time.monotonic()
        if not isinstance(event, Beat):
            self._events.append(event)

    def _hear_words(self) -> None:
        try:
            data = os.read(self._err, 1 << 16)
        except BlockingIOError:
            return
        self._words = (self._words + data)[-_MOST_WORDS:]
        if not data:
            self._err = -1

    def _lost(self) -> None:
        """Raise what the end of the program means."""
        until = time.monotonic() + _LAST_WORDS_LIMIT
        while self._err >= 0 and (left := until - time.monotonic()) > 0:
            poller = select.poll()
            poller.register(self._err, select.POLLIN)
            if poller.poll(poll_timeout(left)):
                self._hear_words()
        said = self._said()
        if self._heard is None and any(words in said.lower() for words in _DENIED):
            raise HostRefusedError(Reason.MPI_HOST_LOST, said)
        raise HostLostError(said or "the connection was closed")

    def _said(self) -> str:
        """Give the last line of what was said beside the events."""
        lines = [line.strip() for line in self._words.decode(errors="replace").splitlines()]
        said = next((line for line in reversed(lines) if line), "")
        return "".join(c for c in said if c.isprintable())[:300]
