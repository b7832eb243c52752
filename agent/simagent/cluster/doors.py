"""One ask of a step's `mpirun`: a host that is entered, until what runs there ends."""

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from simagent.cluster.asks import Ask, Reply
from simagent.cluster.connection import PACE, Connection, HostLostError, HostRefusedError, Pace
from simagent.cluster.happenings import Happening, now
from simagent.cluster.messages import Departs, Enter, Exited, Refused, Sampled, Started
from simagent.domain.reasons import Reason
from simagent.ports.clock import SystemClock, Waitable, Wake

LEAVE_LIMIT: Final = 20.0
"""Seconds; who stops the broker gives it a few more before SIGKILL."""

_MOST_GRACE = 5.0
"""Seconds for what is left on a host; the step itself had its own before."""

_OWN_END = 2.0
"""Seconds for a daemon to end by itself when its `mpirun` has: it clears up after itself then."""

_READER_LIMIT, _READER_PAUSE = 10.0, 0.01
_NOT_DONE = 255
"""What ssh exits with where the command's own exit code is not known."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Peer:
    """A host that can be entered: its name for people, and the command line to its relay.

    ``enter`` is what it is asked for; the broker adds the command, and what makes ``entry`` unique.
    """

    name: str
    ssh: tuple[str, ...]
    enter: Enter


class Door:
    """Enters a host in a thread of its own, tells what happens there, and answers the ask."""

    def __init__(
        self,
        peer: Peer,
        ask: Ask,
        reply: Reply,
        *,
        entry: str,
        tell: Callable[[Happening], None],
        pace: Pace = PACE,
        limit: float = LEAVE_LIMIT,
    ) -> None:
        self._peer = peer
        self._reply = reply
        self._request = peer.enter.with_(entry=entry, command=ask.command)
        self._about = {"host": peer.name, "address": ask.address, "entry": entry}
        self._tell = tell
        self._pace = pace
        self._limit = limit
        self._wake = Wake()
        self._until: float | None = None
        self._alone_at: float | None = None
        self._started = False
        self._thread = threading.Thread(target=self._run, name=f"door {peer.name}", daemon=True)
        self._thread.start()

    @property
    def open(self) -> bool:
        """Whether there is no end yet."""
        return self._thread.is_alive()

    def leave(self) -> None:
        """End what runs there, soon; safe to call again."""
        self._wake.set()

    def join(self, timeout: float) -> bool:
        """Wait for the end; tell whether it has come."""
        self._thread.join(timeout)
        return not self._thread.is_alive()

    def _run(self) -> None:
        try:
            code, message = self._enter()
        except HostLostError as error:
            code, message = _NOT_DONE, f"lost: {error}"
            self._happened("lost", why=str(error))
        except HostRefusedError as error:
            code, message = _NOT_DONE, f"refused: {error}"
            self._happened("refused", why=str(error), reason=error.reason)
        except Exception as error:  # noqa: BLE001 - no host may be left without an end
            code, message = _NOT_DONE, f"lost: the broker failed: {error!r}"
            self._happened("lost", why=f"the broker failed: {error!r}")
        self._reply.say(f"{code} {message}")
        self._reply.close()

    def _enter(self) -> tuple[int, str]:
        """Give the exit code, and what to say with it. Raises as `Connection.next`."""
        with Connection(self._peer.ssh, self._request, self._pace) as connection:
            if self._await_reader():
                self._reply.say("taken")
            else:
                self._alone_at = time.monotonic()
            while True:
                event = connection.next(self._left(), *self._watched())
                match event:
                    case Exited():
                        return self._exited(event)
                    case Refused() if self._started or event.reason == Reason.MPI_HOST_LOST:
                        raise HostLostError(event.why)
                    case Refused():
                        raise HostRefusedError(event.reason, event.why)
                    case Started() if not self._started:
                        self._started = True
                        self._happened("entered")
                    case Sampled():
                        self._happened("sampled", sample=event.sample)
                    case Departs():
                        self._happened("departs", why=event.why, left=event.left)
                    case None if self._until is not None:
                        raise HostLostError(f"it did not end its ranks within {self._limit:g} s")
                    case None:
                        self._part(connection)

    def _watched(self) -> tuple[Waitable, ...]:
        if self._until is not None:
            return ()
        return (self._wake,) if self._alone_at is not None else (self._wake, self._reply)

    def _left(self) -> float | None:
        """Give the seconds until something is due that nobody says."""
        due = self._alone_at if self._until is None else self._until
        return None if due is None else max(0.0, due - time.monotonic())

    def _part(self, connection: Connection) -> None:
        """Leave the host: told to, or as mpirun went away, and its daemon did not see that."""
        now_ = time.monotonic()
        if SystemClock().wait(0, self._wake) or (self._alone_at or now_ + 1) <= now_:
            self._until = now_ + self._limit
            connection.leave(min(self._request.grace, _MOST_GRACE))
        elif self._alone_at is None:
            self._alone_at = now_ + _OWN_END

    def _await_reader(self) -> bool:
        """Open the way back to the script; False where nobody is there to read."""
        deadline = time.monotonic() + _READER_LIMIT
        while time.monotonic() < deadline and not SystemClock().wait(0, self._wake):
            try:
                if self._reply.open():
                    return True
            except OSError:
                return False
            time.sleep(_READER_PAUSE)
        return False

    def _exited(self, event: Exited) -> tuple[int, str]:
        self._happened("exited", code=event.code, signal=event.signal, why=event.message)
        if event.signal is not None:
            return 128 + event.signal, event.message
        return _NOT_DONE if event.code is None else event.code, event.message

    def _happened(self, event: str, **fields: object) -> None:
        self._tell(now(event, **self._about, **fields))  # type: ignore[arg-type]
