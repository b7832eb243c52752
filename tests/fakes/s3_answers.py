"""A server that answers calls to S3 as it was told to, rightly or not."""

import ssl
from collections.abc import Mapping, Sequence
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler

from fakes.serving import Serving


class S3Answers(Serving):
    """Answers every call with an error, ``but`` those operations on buckets, which succeed.

    ``fields`` stand in the error beside its code, ``date`` is the server's time as Unix time.
    """

    def __init__(
        self,
        *,
        code: str,
        status: int,
        said: str = "no",
        but: Sequence[str] = (),
        fields: Mapping[str, str] | None = None,
        headers: Mapping[str, str] | None = None,
        date: float | None = None,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self._code, self._status, self._said, self._but = code, status, said, but
        self._fields, self._headers, self._date = fields or {}, headers or {}, date
        super().__init__(self._handler(), tls=tls)

    def _answer(self, method: str, path: str) -> tuple[int, bytes]:
        if method == "HEAD":
            return (200 if "HeadBucket" in self._but else self._status), b""
        fields = {"Code": self._code, "Message": self._said, **self._fields}
        inner = "".join(f"<{name}>{value}</{name}>" for name, value in fields.items())
        return self._status, f"<Error>{inner}</Error>".encode()

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def _any(self) -> None:
                self.rfile.read(int(self.headers.get("Content-Length") or 0))
                status, body = server._answer(self.command, self.path)
                self.send_response_only(status)
                self.send_header("Date", formatdate(server._date, usegmt=True))
                for name, value in server._headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            do_GET = do_PUT = do_HEAD = do_DELETE = do_POST = _any

            def log_message(self, format: str, *args: object) -> None:
                pass

        return Handler
