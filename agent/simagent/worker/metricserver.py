"""Serves an agent's metrics by HTTP, for Prometheus."""

import socket
import threading
from contextlib import suppress
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import structlog

from simagent.ports.clock import Clock, Waitable
from simagent.worker.exposition import Exposition
from simagent.worker.snapshot import Source

_AGAIN = 30.0
_PAUSE = 0.5
"""Seconds after a connection that could not be taken: it is still there, and ready."""
_ANSWER_WITHIN = 5.0
_MOST_AT_A_TIME = 8

log = structlog.get_logger()


class MetricServer:
    """A thread of the agent that answers `GET /metrics` at ``host`` and ``port``.

    Where it cannot listen, it says so, and tries again every half a minute: who cannot be watched
    works all the same.
    """

    def __init__(self, host: str, port: int, clock: Clock, source: Source) -> None:
        self._host = host
        self._port = port
        self._clock = clock
        self._exposition = Exposition(source)
        self.address: tuple[str, int] | None = None
        """Where it listens; None while it does not."""
        self.trouble = ""
        """Why it does not."""

    def run(self, stop: Waitable) -> None:
        """Serve until ``stop`` is ready."""
        while True:
            try:
                server = self._listen()
            except OSError as error:
                self._tell(error)
                if self._clock.wait(_AGAIN, stop):
                    return
                continue
            self.trouble = ""
            with server:
                self.address = (self._host, server.server_port)
                log.info("metrics are served", url=self._url(server.server_port))
                while True:
                    self._clock.wait(None, server, stop)
                    if self._clock.wait(0.0, stop):
                        self.address = None
                        return
                    server.handle_request()
                    if server.starved:
                        self._clock.wait(_PAUSE, stop)

    def _listen(self) -> "_Server":
        found = socket.getaddrinfo(self._host, self._port, type=socket.SOCK_STREAM)
        family, _, _, _, address = found[0]
        return _Server(family, address, self._exposition)

    def _tell(self, error: OSError) -> None:
        trouble = f"metrics_listen: {self._url(self._port)}: {error.strerror or error}"
        if trouble != self.trouble:
            self.trouble = trouble
            log.warning("metrics are not served; it is tried again", error=trouble)

    def _url(self, port: int) -> str:
        host = f"[{self._host}]" if ":" in self._host else self._host
        return f"http://{host}:{port}/metrics"


class _Server(ThreadingHTTPServer):
    """Takes a few requests at a time, each for a few seconds."""

    daemon_threads = True
    timeout = 0.0

    def __init__(self, family: socket.AddressFamily, address: Any, exposition: Exposition) -> None:
        self.address_family = family
        self.exposition = exposition
        self.starved = False
        """Whether the last connection could not be taken: there are no more files."""
        self._free = threading.BoundedSemaphore(_MOST_AT_A_TIME)
        super().__init__(address, _Handler)

    def server_bind(self) -> None:
        """Bind; without the name server that the library would ask."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.socket.bind(self.server_address)
        self.server_address = self.socket.getsockname()
        self.server_name, self.server_port = "", int(self.server_address[1])

    def get_request(self) -> tuple[socket.socket, Any]:
        """Take a connection. Raises OSError."""
        self.starved = True
        taken = super().get_request()
        self.starved = False
        return taken

    def process_request(self, request: Any, client_address: Any) -> None:
        """Answer in a thread; who comes when there are many is sent away."""
        if not self._free.acquire(blocking=False):
            self.shutdown_request(request)
            return
        try:
            super().process_request(request, client_address)
        except RuntimeError:  # there are no more threads
            self._free.release()
            raise

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Answer."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._free.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Log what went wrong with one request: most often, who asked has gone."""
        del request
        log.debug("metrics not told", client=str(client_address), exc_info=True)


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    timeout = _ANSWER_WITHIN
    server_version = "simagent"
    sys_version = ""

    def do_GET(self) -> None:
        """Answer."""
        if self.path.split("?")[0] != "/metrics":
            self.send_error(HTTPStatus.NOT_FOUND, "see /metrics")
            return
        kind, text = self.server.exposition.write(self.headers.get("Accept", ""))
        with suppress(ConnectionError):
            self.send_response(HTTPStatus.OK)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

    def log_message(self, format: str, *args: Any) -> None:
        """Log no requests."""
