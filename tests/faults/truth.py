"""Keeps the ground truth of payloads that cannot see the folder for it, as in containers."""

import json
import socketserver
import threading
from pathlib import Path

from faults.payload import Truth


class TruthKeeper:
    """Does on loopback what `faults.payload.DistantTruth` asks for, while it is entered."""

    def __init__(self, folder: Path) -> None:
        self._server = _Server(("127.0.0.1", 0), _Handler)
        self._server.truth = Truth(folder)
        self.address = f"tcp:{self._server.server_address[1]}"

    def __enter__(self) -> "TruthKeeper":
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()


class _Server(socketserver.ThreadingTCPServer):
    truth: Truth
    daemon_threads = True
    block_on_close = False


class _Handler(socketserver.StreamRequestHandler):
    def handle(self) -> None:
        assert isinstance(self.server, _Server)
        for line in self.rfile:
            call, *arguments = json.loads(line)
            answer = getattr(self.server.truth, call)(*arguments)
            self.wfile.write(json.dumps(answer or False).encode() + b"\n")
