"""A registry that lies or stalls: a real one behind a server that alters its answers."""

import http.client
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

Alter = Callable[[str, bytes], bytes | None]
"""Given the path and the true answer, gives what is answered; None: nothing ever."""


@dataclass
class Front:
    """Stands before the registry at ``behind``; ``asked`` counts what clients wanted."""

    behind: str
    alter: Alter = field(default=lambda _path, body: body)
    status: int | None = None
    asked: list[str] = field(default_factory=list)
    address: str = ""
    closing: threading.Event = field(default_factory=threading.Event)


@contextmanager
def front(behind: str) -> Iterator[Front]:
    made = Front(behind)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            made.asked.append(f"{self.command} {self.path}")
            if made.status is not None:
                self.send_response(made.status)
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            connection = http.client.HTTPConnection(made.behind, timeout=30)
            passed = {k: v for k, v in self.headers.items() if k.lower() != "host"}
            connection.request(self.command, self.path, headers=passed)
            answer = connection.getresponse()
            body = answer.read()
            connection.close()
            altered = made.alter(self.path, body) if self.command == "GET" else body
            if altered is None:
                made.closing.wait(60)
                self.close_connection = True
                return
            self.send_response(answer.status if altered == body else 200)
            for name, value in answer.getheaders():
                if name.lower() not in ("content-length", "transfer-encoding", "connection"):
                    self.send_header(name, value)
            size = len(altered) if self.command == "GET" else answer.headers["Content-Length"]
            self.send_header("Content-Length", str(size or 0))
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(altered)

        do_HEAD = do_GET

        def log_message(self, *_args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    made.address = f"127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield made
    finally:
        made.closing.set()
        server.shutdown()
        server.server_close()
