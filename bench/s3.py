"""Outputs to S3 and back, against s5cmd and boto3's own transfers; memory while a stream goes up.

boto3 is as it comes: like simagent it has the server compare a checksum with what is sent. s5cmd
does not, and neither reads again or keeps checksums of whole files.
`python -m bench s3`: on the server that SIMAGENT_S3_ENDPOINT names, else on one that keeps
nothing (then only for the memory). MEGABYTES and FILES in the environment make it smaller.
"""

import os
import resource
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Literal

from boto3.session import Session
from botocore.config import Config

from bench.report import Result, show
from simagent.domain.keys import TaskKeys
from simagent.domain.spec import Outputs
from simagent.ports.clock import SystemClock
from simagent.stores.s3 import S3Store
from simagent.stores.s3_calls import Access
from simagent.transfer.download import Place, download, once
from simagent.transfer.outputs import EMPTY, select
from simagent.transfer.publishing import upload_outputs

_MEGABYTES = int(os.environ.get("MEGABYTES", "1000"))
_FILES = int(os.environ.get("FILES", "20000"))
_SMALL = 1300
_STREAM = 5000
_MOST_RSS = 250
_THREADS = 10  # what boto3's own transfers take
_BLOCK = 1 << 20

Layout = Literal["archive", "files"]


def run() -> list[Result]:
    """Compare, where there is a server to compare on, and measure memory."""
    found = _memory()
    endpoint = os.environ.get("SIMAGENT_S3_ENDPOINT")
    if endpoint and shutil.which("s5cmd"):
        with tempfile.TemporaryDirectory(prefix="bench-s3-") as name:
            large, small = Path(name, "large"), Path(name, "small")
            _make(large, small)
            found += _Bench(endpoint, Path(name)).compare(f"{_MEGABYTES} MB", large)
            found += _Bench(endpoint, Path(name)).compare(f"{_FILES} files", small)
    else:
        print("s3: set SIMAGENT_S3_ENDPOINT, and install s5cmd, to compare", file=sys.stderr)
    return found


def _make(large: Path, small: Path) -> None:
    large.mkdir()
    with (large / "big.dat").open("wb") as file:
        for _ in range(_MEGABYTES):
            file.write(os.urandom(1_000_000))
    for number in range(_FILES):
        folder = small / f"{number // 1000:03d}"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{number}.txt").write_bytes(b"%020d\n" % number * (_SMALL // 21))


def _as_it_comes(endpoint: str) -> Any:
    paths = Config(s3={"addressing_style": "path"})  # a server on loopback has no names for buckets
    return Session().client("s3", endpoint_url=endpoint, region_name="us-east-1", config=paths)


class _Bench:
    def __init__(self, endpoint: str, folder: Path) -> None:
        access = Access(endpoint=endpoint, region="us-east-1")
        self._endpoint = endpoint
        self._folder = folder
        self._client = _as_it_comes(endpoint)
        self._bucket = f"bench-{uuid.uuid4().hex[:12]}"
        self._client.create_bucket(Bucket=self._bucket)
        self._store = S3Store(f"s3://{self._bucket}/sim", access, prove=True)
        self._store.prove()

    def compare(self, name: str, source: Path) -> Iterator[Result]:
        ways: dict[str, Callable[[Path, Path], tuple[float, float]]] = {
            "s5cmd": self._s5cmd,
            "boto3": self._boto3,
            "archive": lambda s, t: self._ours("archive", s, t),
            "files": lambda s, t: self._ours("files", s, t),
        }
        seconds = {}
        for way, work in ways.items():
            target = self._folder / "back"
            seconds[way] = work(source, target)
            _check(source, target)
            shutil.rmtree(target)
            self._clear()
        self._client.delete_bucket(Bucket=self._bucket)
        print(f"s3, {name}: " + ", ".join(
            f"{way} {up:.1f} s up, {down:.1f} s down" for way, (up, down) in seconds.items()
        ) + f", load {os.getloadavg()[0]:.1f}", file=sys.stderr)  # fmt: skip
        for number, direction in enumerate(("up", "down")):
            plain = seconds["boto3"][number]
            for layout in ("archive", "files"):
                ours = seconds[layout][number]
                yield Result(
                    f"S3, {name} {direction}, {layout}: boto3's time / ours",
                    "≥ 0.8",
                    f"{ours:.1f} s (s5cmd {seconds['s5cmd'][number]:.1f} s)",
                    plain / ours,
                    plain / ours >= 0.8,
                )

    def _ours(self, layout: Layout, source: Path, target: Path) -> tuple[float, float]:
        began = time.perf_counter()
        output = upload_outputs(
            self._store, TaskKeys("default", "T1").attempt(1), select(source, EMPTY, Outputs()),
            {}, epoch=1, threads=len(os.sched_getaffinity(0)), retry=once, clock=SystemClock(),
            layout=layout, record=self._folder / f"{layout}-{source.name}.jsonl",
        ).output  # fmt: skip
        middle = time.perf_counter()
        download(self._store, output, ["**"], Place(target))
        return middle - began, time.perf_counter() - middle

    def _s5cmd(self, source: Path, target: Path) -> tuple[float, float]:
        argv = ["s5cmd", "--endpoint-url", self._endpoint, "--log", "error", "cp"]
        env = os.environ | {"AWS_REGION": "us-east-1"}
        began = time.perf_counter()
        subprocess.run([*argv, f"{source}/", f"s3://{self._bucket}/x/"], check=True, env=env)
        middle = time.perf_counter()
        subprocess.run([*argv, f"s3://{self._bucket}/x/*", f"{target}/"], check=True, env=env)
        return middle - began, time.perf_counter() - middle

    def _boto3(self, source: Path, target: Path) -> tuple[float, float]:
        paths = [path.relative_to(source) for path in source.rglob("*") if path.is_file()]
        for folder in {path.parent for path in paths}:
            (target / folder).mkdir(parents=True, exist_ok=True)

        def up(path: Path) -> None:
            self._client.upload_file(str(source / path), self._bucket, f"x/{path}")

        def down(path: Path) -> None:
            self._client.download_file(self._bucket, f"x/{path}", str(target / path))

        threads = _THREADS if len(paths) > 1 else 1
        began = time.perf_counter()
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(up, paths))
        middle = time.perf_counter()
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(down, paths))
        return middle - began, time.perf_counter() - middle

    def _clear(self) -> None:
        while found := self._client.list_objects_v2(Bucket=self._bucket).get("Contents"):
            keys = [{"Key": each["Key"]} for each in found]
            self._client.delete_objects(Bucket=self._bucket, Delete={"Objects": keys})


def _check(source: Path, target: Path) -> None:
    for path in source.rglob("*"):
        if path.is_file():
            back = target / path.relative_to(source)
            assert back.stat().st_size == path.stat().st_size, back


def _memory() -> list[Result]:
    """Send a stream of unknown length to a server that keeps nothing; look at this process."""
    argv = [sys.executable, "-m", "bench.s3", "--stream"]
    with _sink() as endpoint:
        env = os.environ | {
            "SIMAGENT_S3_ENDPOINT": endpoint, "AWS_ACCESS_KEY_ID": "k",
            "AWS_SECRET_ACCESS_KEY": "s", "AWS_EC2_METADATA_DISABLED": "true",
        }  # fmt: skip
        began = time.perf_counter()
        done = subprocess.run(argv, env=env, check=True, capture_output=True, text=True)
        seconds = time.perf_counter() - began
    rss = float(done.stdout)
    return [
        Result(
            f"S3, streaming {_STREAM} MB, memory (ratio to the budget)",
            f"≤ {_MOST_RSS} MB",
            f"{rss:.0f} MB, {seconds:.0f} s",
            rss / _MOST_RSS,
            rss <= _MOST_RSS,
        )
    ]


def _stream() -> None:
    endpoint = os.environ["SIMAGENT_S3_ENDPOINT"]
    store = S3Store("s3://box", Access(endpoint=endpoint, region="us-east-1"))
    block = os.urandom(_BLOCK)
    entry = store.upload("big", lambda: (block for _ in range(_STREAM)))
    assert entry.size == _STREAM * _BLOCK
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)


@contextmanager
def _sink() -> Iterator[str]:
    """Serve what takes parts and keeps nothing of them."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_PUT(self) -> None:
            left = int(self.headers["Content-Length"])
            while left:
                left -= len(self.rfile.read(min(left, _BLOCK)))
            self._answer(b"")

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length") or 0))
            self._answer(b"<R><UploadId>u</UploadId><ETag>e</ETag></R>")

        def _answer(self, body: bytes) -> None:
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.send_header("ETag", '"e"')
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


if __name__ == "__main__":
    if sys.argv[1:] == ["--stream"]:
        _stream()
    else:
        show(run())
