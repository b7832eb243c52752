"""A registry with one small image, that stalls or lies when told to."""

import gzip
import hashlib
import io
import json
import platform
import random
import tarfile
import threading
from http.server import BaseHTTPRequestHandler

from fakes.serving import Serving

MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}


def digest_of(content: bytes) -> str:
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


def packed(size: int) -> bytes:
    """A layer with one file that does not compress."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        member = tarfile.TarInfo("data")
        member.size = size
        archive.addfile(member, io.BytesIO(random.Random(1).randbytes(size)))
    return file.getvalue()


class FakeRegistry(Serving):
    """Serves any NAME:TAG; ``stall_at`` and ``lie`` name manifest, config or layer."""

    def __init__(self, *, stall_at: str = "", lie: str = "", size: int = 320_000) -> None:
        self.stalled = threading.Event()
        plain = packed(size)
        layer = gzip.compress(plain, 1, mtime=0)
        config = json.dumps({
            "architecture": ARCHITECTURES.get(platform.machine(), platform.machine()),
            "os": "linux", "config": {},
            "rootfs": {"type": "layers", "diff_ids": [digest_of(plain)]},
        }).encode()  # fmt: skip
        manifest = json.dumps({
            "schemaVersion": 2, "mediaType": MANIFEST,
            "config": {"mediaType": "application/vnd.docker.container.image.v1+json",
                       "size": len(config), "digest": digest_of(config)},
            "layers": [{"mediaType": "application/vnd.docker.image.rootfs.diff.tar.gzip",
                        "size": len(layer), "digest": digest_of(layer)}],
        }).encode()  # fmt: skip
        self.digest = digest_of(manifest)
        served = {"manifest": manifest, "config": config, "layer": layer}
        self._paths = {digest_of(content): what for what, content in served.items()}
        if lie:
            served[lie] = lied(served[lie])
        super().__init__(self._handler(served, stall_at))

    def _handler(self, served: dict[str, bytes], stall_at: str) -> type[BaseHTTPRequestHandler]:
        registry = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_HEAD(self) -> None:
                self._answer(with_body=False)

            def do_GET(self) -> None:
                self._answer(with_body=True)

            def _answer(self, *, with_body: bool) -> None:
                name = self.path.rpartition("/")[2]
                what = "manifest" if "/manifests/" in self.path else registry._paths.get(name, "")
                content = served.get(what, b"{}")
                stalls = bool(what) and what == stall_at
                if stalls and what == "manifest":
                    self._stall()
                self.send_response(200)
                self.send_header("Content-Type", MANIFEST if what == "manifest" else "text/plain")
                self.send_header("Content-Length", str(len(content)))
                if what == "manifest":
                    self.send_header("Docker-Content-Digest", registry.digest)
                self.end_headers()
                if not with_body:
                    return
                if stalls:
                    self.wfile.write(content[: len(content) // 2])
                    self.wfile.flush()
                    self._stall()
                    return
                self.wfile.write(content)

            def _stall(self) -> None:
                registry.stalled.set()
                registry.go_on.wait(120)

            def log_message(self, format: str, *args: object) -> None:
                pass

        return Handler


def lied(content: bytes) -> bytes:
    """Change a byte in the middle of text or data, of the same length."""
    middle = len(content) // 2
    while not chr(content[middle]).isalnum():
        middle += 1
    other = b"0" if content[middle] != ord("0") else b"1"
    return content[:middle] + other + content[middle + 1 :]
