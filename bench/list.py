"""How soon `simagent list` answers with 100,000 tasks: on a folder, and on S3 behind latency.

Nearly all have ended; a few wait or run, some of them old. `python -m bench.list [TASKS]`
"""

import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any

from bench.report import Result, show
from simagent.domain import keys
from simagent.domain.ids import new_id
from simagent.domain.keys import TaskKeys
from simagent.domain.spec import Spec
from simagent.domain.state import Attempt, State, Status
from simagent.ledger import sha256, spec_bytes

_TASKS = 100_000
_OPEN_EVERY = 2500
_LATENCY = 0.02
"""Seconds that S3 takes for an answer; of a listing, twice as long."""
_BUDGET = 2.0
_QUERIES = (
    (),
    ("--status", "running"),
    ("--status", "queued", "--name", "melt-7*"),
    ("--name", "melt-*", "--tag", "campaign=7"),
)


def run(tasks: int = _TASKS) -> list[Result]:
    """List in fresh processes, as a user does."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name, "store")
        (folder / ".simagent").mkdir(parents=True)
        for key, data in _objects(tasks):
            path = folder / key
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
        results = _measure("a folder", tasks, {"SIMAGENT_STORE": f"file://{folder}"})
    with _s3(dict(_objects(tasks))) as settings:
        results += _measure("S3, 20 ms away", tasks, settings)
    return results


def _measure(where: str, tasks: int, settings: Mapping[str, str]) -> list[Result]:
    results = []
    with tempfile.TemporaryDirectory() as state:
        environment = os.environ | {"SIMAGENT_STATE_DIR": state, **settings}
        bare = _timed([sys.executable, "-m", "simagent", "--help"], environment)[0]
        for query in _QUERIES:
            argv = [sys.executable, "-m", "simagent", "list", *query]
            took, lines = min(_timed(argv, environment) for _ in range(3))
            name = " ".join(("list", *query))
            said = f"{took:.2f} s, {lines - 1} rows"
            result = Result(
                f"{name}: {tasks:,} tasks in {where}", "≤ 2 s", said, took / bare, took <= _BUDGET
            )
            results.append(result)
    return results


def _timed(argv: list[str], environment: Mapping[str, str]) -> tuple[float, int]:
    began = time.perf_counter()
    done = subprocess.run(argv, env=environment, check=True, capture_output=True)
    return time.perf_counter() - began, done.stdout.count(b"\n")


def _objects(tasks: int) -> Iterator[tuple[str, bytes]]:
    """Make what so many tasks leave in a store, the oldest first."""
    now = time.time()
    specs = [
        spec_bytes(
            Spec.model_validate(
                {"name": f"melt-{n}", "commands": ["true"], "tags": {"campaign": str(n % 10)}}
            )
        )
        for n in range(100)
    ]
    for number in range(tasks):
        at = now - (tasks - number)
        task, spec = TaskKeys("default", new_id(at)), specs[number % len(specs)]
        queued, running = number % _OPEN_EVERY == 7, number % _OPEN_EVERY == 77
        status = Status.QUEUED if queued else Status.RUNNING if running else Status.SUCCEEDED
        state = State(
            status=status,
            epoch=0 if queued else 1,
            submitted_at=at,
            ended_at=None if queued or running else at + 60,
            spec_sha256=sha256(spec),
            attempts=()
            if queued
            else (Attempt(epoch=1, agent="a", version="1", started=at, ran_seconds=50.0),),
        )
        yield task.spec, spec
        yield task.state, state.model_dump_json(indent=1).encode()
        yield keys.index_entry("default", task.id, at), b""
        if queued or running:
            yield keys.open_marker("default", task), b""


@contextmanager
def _s3(objects: dict[str, bytes]) -> Iterator[Mapping[str, str]]:
    """Serve objects as S3 does to who reads them: moto takes minutes to be filled, and to list."""
    from bisect import bisect_right
    from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
    from urllib.parse import parse_qs, unquote, urlsplit
    from xml.sax.saxutils import escape

    names = sorted(objects)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            parts = urlsplit(self.path)
            asked = {key: values[0] for key, values in parse_qs(parts.query).items()}
            key = unquote(parts.path).removeprefix("/bench").lstrip("/")
            if "list-type" in asked:
                time.sleep(2 * _LATENCY)
                self._answer(200, self._listing(asked))
            elif key in objects:
                time.sleep(_LATENCY)
                self._answer(200, objects[key])
            else:
                time.sleep(_LATENCY)
                self._answer(404, b"<Error><Code>NoSuchKey</Code></Error>")

        def _listing(self, asked: Mapping[str, str]) -> bytes:
            prefix, most = asked.get("prefix", ""), int(asked.get("max-keys", 1000))
            after = asked.get("continuation-token") or asked.get("start-after", "")
            at = bisect_right(names, max(after, prefix[:-1] + chr(ord(prefix[-1]) - 1) + "\uffff"))
            found = BytesIO()
            last, count = "", 0
            while at < len(names) and names[at].startswith(prefix) and count < most:
                last = names[at]
                found.write(
                    f"<Contents><Key>{escape(last)}</Key><ETag>&quot;e&quot;</ETag>"
                    f"<Size>{len(objects[last])}</Size></Contents>".encode()
                )
                at, count = at + 1, count + 1
            more = at < len(names) and names[at].startswith(prefix)
            token = f"<NextContinuationToken>{last}</NextContinuationToken>" if more else ""
            head = f"<IsTruncated>{str(more).lower()}</IsTruncated>{token}"
            return b"<ListBucketResult>" + head.encode() + found.getvalue() + b"</ListBucketResult>"

        def _answer(self, status: int, body: bytes) -> None:
            self.send_response(status)
            self.send_header("ETag", '"e"')
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield {
            "SIMAGENT_STORE": "s3://bench",
            "SIMAGENT_S3_ENDPOINT": f"http://127.0.0.1:{server.server_port}",
            "SIMAGENT_S3_REGION": "us-east-1",
            "AWS_ACCESS_KEY_ID": "testing",
            "AWS_SECRET_ACCESS_KEY": "testing",
        }
    finally:
        server.shutdown()


if __name__ == "__main__":
    show(run(*map(int, sys.argv[1:])))
