"""One connection of a relay: what the head asks for, and what the member answers."""

import socket
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Generic, TypeVar

import structlog
from pydantic import ValidationError

from simagent.cluster.duties import Duties, Hold, RefusedError
from simagent.cluster.messages import (
    BEAT_EVERY,
    REQUEST,
    SILENT_AFTER,
    Beat,
    Check,
    Enter,
    Fetch,
    Leave,
    Refused,
    Request,
    Started,
    Told,
)
from simagent.domain.reasons import Reason
from simagent.ports.clock import Clock, Waitable, Wake

_MOST_BYTES = 4 << 20
"""Of a line: a command and an environment are far less (execve(2) takes 2 MiB by default)."""
_CHUNK = 1 << 16
_LEAST_PAUSE = 0.5

_T = TypeVar("_T")

log = structlog.get_logger()


class Lines:
    """The lines that come over a connection; `closed` once no more will."""

    def __init__(self, connection: socket.socket, clock: Clock) -> None:
        self.connection = connection
        self._clock = clock
        self._rest = b""
        self.closed = False
        self.heard = clock.now()
        """When something came last."""

    @property
    def sources(self) -> tuple[Waitable, ...]:
        """What to wait for: nothing once it is closed, as that is always ready."""
        return () if self.closed else (self.connection,)

    @property
    def lost(self) -> bool:
        """Whether the other side has closed, or has been silent for too long."""
        return self.closed or self._clock.now() - self.heard >= SILENT_AFTER

    def read(self) -> list[bytes]:
        """Give the lines that have come; blocks unless something has."""
        try:
            chunk = self.connection.recv(_CHUNK)
        except TimeoutError:
            return []
        except OSError:
            chunk = b""
        if not chunk or len(self._rest) > _MOST_BYTES:
            self.closed = True
            return []
        self.heard = self._clock.now()
        *lines, self._rest = (self._rest + chunk).split(b"\n")
        return lines

    def ready(self) -> bool:
        """Tell whether `read` would not block."""
        return not self.closed and self._clock.wait(0, self.connection)


class Conversation:
    """Answers the one request of a connection, and goes on until that is done with.

    Ends early, and leaves alone what runs, once ``stop`` is ready: the next agent goes on with it.
    """

    def __init__(
        self, connection: socket.socket, duties: Duties, clock: Clock, stop: Waitable
    ) -> None:
        connection.settimeout(SILENT_AFTER)
        self._lines = Lines(connection, clock)
        self._duties = duties
        self._clock = clock
        self._stop = stop
        self._told = clock.now()
        self._unread: list[bytes] = []
        self._parted = False

    def run(self) -> None:
        """Answer."""
        request = self._request()
        match request:
            case Check():
                checked = self._do(lambda _gone: self._duties.check(request))
                if checked is not None:
                    self._tell(checked)
            case Fetch():
                fetched = self._do(lambda gone: self._duties.fetch(request, gone))
                if fetched is not None:
                    self._tell(fetched)
            case Enter():
                hold = self._do(lambda gone: self._duties.enter(request, gone))
                if hold is not None:
                    try:
                        self._tell(Started())
                        self._attend(hold, request)
                    finally:
                        hold.release()

    def _request(self) -> Request | None:
        while not self._unread:
            if self._lines.lost or self._stopped:
                return None
            self._clock.wait(SILENT_AFTER, *self._lines.sources, self._stop)
            if self._lines.ready():
                self._unread += self._lines.read()
        line = self._unread.pop(0)
        try:
            return REQUEST.validate_json(line)
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            where = ".".join(map(str, first["loc"]))
            self._refuse(
                Reason.AGENT_ERROR, f"not a request that is known: {where}: {first['msg']}"
            )
            return None

    def _do(self, duty: Callable[[Waitable], _T]) -> _T | None:
        """Do what may take long in another thread, with beats meanwhile; None: it was refused."""
        work = _Work(duty)
        threading.Thread(target=work.run, name="duty", daemon=True).start()
        while not work.done.is_set():
            self._clock.wait(self._until_beat(), work.done, self._stop, *self._lines.sources)
            if self._stopped:
                return None
            if self._lines.ready():
                self._unread += self._lines.read()
            if self._lines.closed:
                work.gone.set()
            self._beat()
        if work.refused is not None:
            self._refuse(work.refused.reason, str(work.refused))
        return work.result

    def _attend(self, hold: Hold, request: Enter) -> None:
        """Go on until the run is over, or another connection has it."""
        every = max(_LEAST_PAUSE, request.sample_every)
        sample_at = self._clock.now() + every
        given_up = False
        while True:
            for line in self._unread:
                self._obey(line, hold, request)
            self._unread = []
            if self._lines.lost and not given_up:
                why = "closed the connection" if self._lines.closed else "fell silent"
                hold.leave(request.grace, f"the head {why}")
                given_up = self._lines.closed = True
            pause = self._until_beat()
            if not given_up:
                pause = min(pause, max(0.0, sample_at - self._clock.now()))
            wakes = () if self._parted else (self._duties.departs,)
            exited = hold.wait(pause, hold.taken, self._stop, *wakes, *self._lines.sources)
            if exited is not None:
                self._tell(exited)
                return
            if self._stopped or self._clock.wait(0, hold.taken):
                return
            if self._lines.ready():
                self._unread += self._lines.read()
            if self._clock.now() >= sample_at and not self._lines.closed:
                with suppress(OSError):  # a sample that cannot be taken ends no run
                    self._tell(hold.sample())
                sample_at = self._clock.now() + every
            self._part()
            self._beat()

    def _part(self) -> None:
        """Tell once that this host goes away."""
        if not self._parted and self._clock.wait(0, self._duties.departs):
            self._parted = True
            self._tell(self._duties.departure())

    def _obey(self, line: bytes, hold: Hold, request: Enter) -> None:
        with suppress(ValidationError):  # beats, and what newer heads may say
            leave = Leave.model_validate_json(line)
            hold.leave(max(0.0, min(leave.grace, request.grace)), "the head ended it")

    @property
    def _stopped(self) -> bool:
        return self._clock.wait(0, self._stop)

    def _until_beat(self) -> float:
        # Once nobody listens there is nothing to be in time for.
        due = self._told + BEAT_EVERY - self._clock.now()
        return SILENT_AFTER if self._lines.closed else max(0.0, due)

    def _beat(self) -> None:
        if self._clock.now() - self._told >= BEAT_EVERY:
            self._tell(Beat())

    def _refuse(self, reason: Reason, why: str) -> None:
        log.warning("refused to the head", reason=reason.value, why=why)
        self._tell(Refused(reason=reason.value, why=why))

    def _tell(self, event: Beat | Told) -> None:
        if self._lines.closed:
            return
        try:
            self._lines.connection.sendall(event.model_dump_json().encode() + b"\n")
        except OSError:  # also where it is not read for too long
            self._lines.closed = True
        self._told = self._clock.now()


class _Work(Generic[_T]):
    """A duty that is being done in a thread of its own."""

    def __init__(self, duty: Callable[[Waitable], _T]) -> None:
        self._duty = duty
        self.gone = Wake()
        self.done = Wake()
        self.result: _T | None = None
        self.refused: RefusedError | None = None

    def run(self) -> None:
        """Do it."""
        try:
            self.result = self._duty(self.gone)
        except RefusedError as error:
            self.refused = error
        except Exception as error:  # no request may end the member
            log.error("a request failed", error=repr(error), exc_info=error)
            self.refused = RefusedError(Reason.AGENT_ERROR, f"the member failed: {error!r}")
        finally:
            self.done.set()
