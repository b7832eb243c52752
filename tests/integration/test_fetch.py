"""Inputs, from everywhere they may come from, with real servers that fail."""

import io
import ipaddress
import os
import socket
import threading
import zipfile
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import unquote

import pytest

from fakes.clock import FakeClock
from fakes.faults import CUT, UNAVAILABLE, Fault, Faults, FaultyStore
from fakes.store import MemoryStore
from simagent.domain.keys import TaskKeys
from simagent.domain.spec import Input, Outputs
from simagent.domain.state import Output, Timing
from simagent.ports.clock import Wake
from simagent.ports.retry import InterruptedRetryError
from simagent.transfer.download import once
from simagent.transfer.errors import InputMissingError, InputRejectedError
from simagent.transfer.fetch import Sources, fetch_inputs
from simagent.transfer.http import HttpLimits, download_url
from simagent.transfer.outputs import EMPTY, select
from simagent.transfer.publishing import upload_outputs
from simagent.transfer.unpack import Limits

KEYS = TaskKeys("default", "T2")
OTHER = TaskKeys("default", "T1")
DATA = os.urandom(3 << 20)
GIVEN = os.urandom(3000).hex()


def zipped(**members: str) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, text in members.items():
            archive.writestr(name, text)
    return file.getvalue()


@dataclass
class Place:
    """Where a task's inputs are laid, and from where."""

    folder: Path
    store: MemoryStore = field(default_factory=MemoryStore)
    clock: FakeClock = field(default_factory=FakeClock)
    wake: Wake = field(default_factory=Wake)
    published: dict[str, Output] = field(default_factory=dict)
    limits: Limits = field(default_factory=Limits)
    allow_file: bool = False
    plan: Callable[[str, str], Fault | None] = lambda _call, _key: None
    on_progress: Callable[[int], None] = lambda _count: None

    @property
    def root(self) -> Path:
        return self.folder / "root"

    def lay(self, *inputs: Input | str) -> dict[str, Timing]:
        self.root.mkdir(exist_ok=True)
        sources = Sources(
            store=FaultyStore(self.store, Faults(self.clock, plan=self.plan)),
            keys=KEYS,
            resolve_task=self.published.get,
            clock=self.clock,
            wake=self.wake,
            limits=self.limits,
            allow_file=self.allow_file,
            patience=60,
            on_progress=self.on_progress,
        )
        items = [Input.model_validate(item) for item in inputs]
        return fetch_inputs(items, sources, root=self.root, scratch=self.folder / "scratch")

    def found(self) -> dict[str, bytes]:
        return {
            str(path.relative_to(self.root)): path.read_bytes()
            for path in self.root.rglob("*")
            if path.is_file()
        }

    def publish(self, task: str, **files: str) -> None:
        source = self.folder / f"outputs-{task}"
        source.mkdir()
        for name, text in files.items():
            (source / name).write_text(text)
        selection = select(source, EMPTY, Outputs())
        uploaded = upload_outputs(
            self.store, TaskKeys("default", task).attempt(1), selection, {},
            epoch=1, threads=1, retry=once, clock=self.clock,
        )  # fmt: skip
        self.published[task] = uploaded.output


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


# What was uploaded at submission.


def test_uploads(place: Place) -> None:
    place.store.put(KEYS.input(0), zipped(a="one", b="one"))
    place.store.put(KEYS.input(1), zipped(b="two"))
    timings = place.lay("upload://0", Input(source="upload://1", unpack=True))
    assert place.found() == {"a": b"one", "b": b"two"}
    assert sorted(timings) == ["input.0.download", "input.0.unpack", "input.1.download",
                               "input.1.unpack"]  # fmt: skip
    assert timings["input.0.unpack"].bytes == 6
    assert list((place.folder / "scratch").iterdir()) == [], "downloads are removed"


def test_an_upload_through_a_bad_line(place: Place) -> None:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("x", DATA)
    place.store.put(KEYS.input(0), file.getvalue())
    faults = iter([UNAVAILABLE, CUT, CUT, UNAVAILABLE, CUT])
    place.plan = lambda call, _key: next(faults, None)
    place.lay("upload://0")
    assert place.found() == {"x": DATA}


class BendingStore(MemoryStore):
    """A store a byte of whose answers is changed on its way, some of the first times."""

    def __init__(self, times: int) -> None:
        super().__init__()
        self.times = times

    @contextmanager
    def open(self, key: str, *, start: int = 0, length: int | None = None) -> Iterator[BinaryIO]:
        with super().open(key, start=start, length=length) as body:
            data = bytearray(body.read())
        if self.times > 0:
            self.times -= 1
            data[len(data) // 2] ^= 1 << self.times
        yield io.BytesIO(data)


def test_an_input_that_is_damaged_on_its_way_is_fetched_again(tmp_path: Path) -> None:
    """The task failed then, for an input that was as it should be."""
    place = Place(tmp_path, store=BendingStore(2))
    place.store.put(KEYS.input(0), zipped(**{"given.txt": GIVEN}))
    place.lay("upload://0")
    assert (place.root / "given.txt").read_text() == GIVEN


def test_an_input_that_is_damaged_where_it_lies_is_rejected(tmp_path: Path) -> None:
    place = Place(tmp_path)
    data = bytearray(zipped(**{"given.txt": GIVEN}))
    data[len(data) // 2] ^= 1
    place.store.put(KEYS.input(0), bytes(data))
    with pytest.raises(InputRejectedError):
        place.lay("upload://0")


def test_a_missing_upload(place: Place) -> None:
    with pytest.raises(InputMissingError, match=r"inputs\[0\]"):
        place.lay("upload://0")


def test_an_upload_that_is_too_large_is_not_even_fetched(place: Place) -> None:
    place.store.put(KEYS.input(0), zipped(a=os.urandom(1000).hex()))
    place.limits = Limits(max_bytes=500)
    with pytest.raises(InputRejectedError, match=r"inputs\[0\]\.source: it has [0-9]+ bytes"):
        place.lay("upload://0")
    assert list((place.folder / "scratch").iterdir()) == []


def test_an_unsafe_upload(place: Place) -> None:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("../x", "x")
    place.store.put(KEYS.input(0), file.getvalue())
    with pytest.raises(InputRejectedError, match=r"inputs\[0\].*leads out"):
        place.lay("upload://0")
    assert not (place.folder / "x").exists()


def test_a_wake_interrupts_a_store_that_is_silent(place: Place) -> None:
    place.plan = lambda _call, _key: UNAVAILABLE
    place.clock.after(3600, place.wake.set)
    with pytest.raises(InterruptedRetryError):
        place.lay("upload://0")


def test_a_wake_interrupts_unpacking(place: Place) -> None:
    place.store.put(KEYS.input(0), zipped(a="x" * 1000))
    place.on_progress = lambda _count: place.wake.set()
    with pytest.raises(InterruptedRetryError):
        place.lay("upload://0")


# Another task's outputs.


def test_outputs_of_another_task_come_first(place: Place) -> None:
    place.publish("T1", **{"mesh.dat": "old mesh", "case.in": "old case", "log": "old"})
    place.store.put(KEYS.input(0), zipped(**{"case.in": "new case"}))
    place.lay("upload://0", "task://T1/*.*")
    assert place.found() == {"mesh.dat": b"old mesh", "case.in": b"new case"}


def test_outputs_of_another_task_into_a_folder(place: Place) -> None:
    place.publish("T1", x="x")
    place.lay(Input(source="task://T1", destination="earlier/run"))
    assert place.found() == {"earlier/run/x": b"x"}


@pytest.mark.parametrize("source", ["task://T9/**", "task://T1/*.nothing"])
def test_outputs_that_are_not_there(place: Place, source: str) -> None:
    place.publish("T1", x="x")
    with pytest.raises(InputMissingError, match=r"inputs\[0\]"):
        place.lay(source)


def test_outputs_that_were_changed(place: Place) -> None:
    place.publish("T1", x="x" * 50)
    output = place.published["T1"]
    place.store.put(output.manifest, b"{}")
    with pytest.raises(InputRejectedError, match="not what the task published"):
        place.lay("task://T1/**")


# Files of the agent's machine.


def test_files_only_where_allowed(place: Place) -> None:
    (place.folder / "x y.dat").write_text("x")
    (place.folder / "tree").mkdir()
    (place.folder / "tree" / "leaf").write_text("leaf")
    sources = [f"file://{place.folder}/x%20y.dat", f"file://{place.folder}/tree"]
    for source in sources:
        with pytest.raises(InputRejectedError, match="upload the file instead"):
            place.lay(source)
    place.allow_file = True
    place.lay(*sources)
    assert place.found() == {"x y.dat": b"x", "leaf": b"leaf"}
    with pytest.raises(InputMissingError, match="does not exist"):
        place.lay(f"file://{place.folder}/missing")


def test_nothing_is_laid_through_a_link(place: Place) -> None:
    outside = place.folder / "outside"
    outside.mkdir()
    place.root.mkdir()
    (place.root / "d").symlink_to(outside)
    (place.root / "x").symlink_to(outside / "x")
    (place.folder / "x").write_text("x")
    place.allow_file = True
    source = f"file://{place.folder}/x"
    with pytest.raises(InputRejectedError, match=r"inputs\[0\]\.destination"):
        place.lay(Input(source=source, destination="d/"))
    place.lay(source)
    assert list(outside.iterdir()) == []
    assert (place.root / "x").read_text() == "x"


# HTTP.


@dataclass
class Server:
    """What a server serves, and how it fails: ``breaks`` are bytes after which it hangs up."""

    url: str = ""
    data: bytes = DATA
    etag: str | None = '"v1"'
    ranges: bool = True
    breaks: list[int] = field(default_factory=list)
    statuses: list[int] = field(default_factory=list)
    lie: int = 0
    headers: list[dict[str, str]] = field(default_factory=list)
    on_break: Callable[[], None] = lambda: None


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: "_Http"

    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_GET(self) -> None:
        site = self.server.site
        site.headers.append(dict(self.headers))
        if self.path.startswith("/redirect"):
            return self.answer(302, b"", location=unquote(self.path.partition("?")[2]))
        if site.statuses:
            return self.answer(site.statuses.pop(0), b"sorry")
        start = 0
        wanted = self.headers.get("range", "")
        current = site.etag is None or self.headers.get("if-range") == site.etag
        if wanted and site.ranges and current:
            start = int(wanted.removeprefix("bytes=").rstrip("-"))
        headers = {"etag": site.etag} if site.etag else {}
        if start:
            headers["content-range"] = f"bytes {start}-{len(site.data) - 1}/{len(site.data)}"
        return self.answer(206 if start else 200, site.data[start:], **headers)

    def answer(self, status: int, data: bytes, **headers: str) -> None:
        site = self.server.site
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("content-length", str(len(data) + site.lie))
        self.end_headers()
        cut = site.breaks.pop(0) if site.breaks and status in (200, 206) else None
        self.wfile.write(data if cut is None else data[:cut])
        if cut is not None or site.lie:
            site.on_break()
            site.lie = 0
            self.close_connection = True


class _Http(ThreadingHTTPServer):
    daemon_threads = True
    site: Server

    def handle_error(self, request: object, client_address: object) -> None:
        """Say nothing of clients that hang up."""


@pytest.fixture
def site() -> Iterator[Server]:
    server = _Http(("127.0.0.1", 0), _Handler)
    server.site = Server(url=f"http://127.0.0.1:{server.server_address[1]}")
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield server.site
    server.shutdown()
    server.server_close()
    thread.join()


def test_http(place: Place, site: Server) -> None:
    timings = place.lay(f"{site.url}/data/mesh%20fine.dat?token=x")
    assert place.found() == {"mesh fine.dat": DATA}
    assert timings["input.0.download"].bytes == len(DATA)


def test_http_unpacks_archives(place: Place, site: Server) -> None:
    site.data = zipped(a="a")
    url = f"{site.url}/case.zip"
    place.lay(url, Input(source=url, unpack=False, destination="as-is.zip"))
    assert place.found() == {"a": b"a", "as-is.zip": site.data}


def test_http_resumes(place: Place, site: Server) -> None:
    site.breaks = [1_000_000, 0, 1_000_000]
    place.lay(f"{site.url}/x")
    assert place.found() == {"x": DATA}
    asked = [headers.get("Range") for headers in site.headers]
    assert asked[0] is None
    assert all(range_ and range_ != "bytes=0-" for range_ in asked[1:])
    assert {headers.get("If-Range") for headers in site.headers[1:]} == {'"v1"'}


@pytest.mark.parametrize("how", ["no ranges", "no validator", "changed meanwhile"])
def test_http_begins_again_where_it_cannot_resume(place: Place, site: Server, how: str) -> None:
    site.breaks = [1_000_000]
    site.ranges = how != "no ranges"
    new = os.urandom(2 << 20)
    if how == "no validator":
        site.etag = None

    def change() -> None:
        if how == "changed meanwhile":
            site.data, site.etag = new, '"v2"'

    site.on_break = change
    place.lay(f"{site.url}/x")
    assert place.found() == {"x": new if how == "changed meanwhile" else DATA}


def test_http_notices_a_wrong_length(place: Place, site: Server) -> None:
    site.lie = 1000
    place.lay(f"{site.url}/x")
    assert place.found() == {"x": DATA}
    assert len(site.headers) > 1


def test_http_waits_for_a_server_that_is_busy(place: Place, site: Server) -> None:
    site.statuses = [503, 429, 500]
    place.lay(f"{site.url}/x")
    assert place.found() == {"x": DATA}


@pytest.mark.parametrize("status", [401, 403, 404, 410])
def test_http_refusals_are_told_at_once(place: Place, site: Server, status: int) -> None:
    site.statuses = [status]
    with pytest.raises(InputMissingError, match=f"HTTP status {status}"):
        place.lay(f"{site.url}/x?secret=1")
    assert len(site.headers) == 1


def test_http_gives_up_after_its_patience(place: Place, site: Server) -> None:
    site.statuses = [503] * 10_000
    started = place.clock.now()
    with pytest.raises(InputMissingError, match="503") as caught:
        place.lay(f"{site.url}/x?secret=1")
    assert place.clock.now() - started == pytest.approx(60)
    assert "secret" not in str(caught.value)


def test_http_nobody_there(place: Place, site: Server) -> None:
    with pytest.raises(InputMissingError):
        place.lay("http://127.0.0.1:1/x")


def test_http_too_large(place: Place, site: Server) -> None:
    place.limits = Limits(max_bytes=1000)
    with pytest.raises(InputRejectedError, match="larger than the 1000"):
        place.lay(f"{site.url}/x")
    assert place.found() == {}


def test_http_redirects(place: Place, site: Server) -> None:
    place.lay(f"{site.url}/redirect?/x")
    assert place.found() == {"redirect": DATA}


def test_http_redirects_without_end(place: Place, site: Server) -> None:
    with pytest.raises(InputMissingError, match="redirects more than"):
        place.lay(f"{site.url}/redirect?" + "/redirect?" * 10 + "/x")


@pytest.mark.parametrize(
    "target",
    [
        "file:///etc/passwd",
        "http://169.254.169.254/latest/meta-data/",
        "http://[fe80::1]/",
        "http://[::ffff:169.254.169.254]/",
        "http://[64:ff9b::169.254.169.254]/",
        "http://168.63.129.16/machine",
        "http://192.0.0.192/opc/v2/instance/",
    ],
)
def test_http_redirects_that_are_refused(place: Place, site: Server, target: str) -> None:
    with pytest.raises(InputRejectedError, match=r"redirects to|serves this machine only"):
        place.lay(f"{site.url}/redirect?{target}")


def test_the_metadata_service_is_out_of_reach(place: Place) -> None:
    for host in ("169.254.169.254", "[fd00:ec2::254]", "2852039166"):
        with pytest.raises(InputRejectedError, match="serves this machine only"):
            place.lay(f"http://{host}/latest/meta-data/iam")


def test_http_without_a_name(place: Place, site: Server) -> None:
    with pytest.raises(InputRejectedError, match="set a destination"):
        place.lay(f"{site.url}/")
    place.lay(Input(source=f"{site.url}/", destination="in/x"))
    assert place.found() == {"in/x": DATA}


def test_a_wake_interrupts_a_download(place: Place, site: Server) -> None:
    place.on_progress = lambda _count: place.wake.set()
    with pytest.raises(InterruptedRetryError):
        place.lay(f"{site.url}/x")
    assert place.found() == {}


class Raw:
    """Serves bytes to whoever connects, the first ones at once, then one at a time."""

    def __init__(self, head: bytes, drops: int = 0, host: str = "127.0.0.1") -> None:
        self._socket = socket.create_server((host, 0))
        self._head = head
        self._drops = drops
        self._more = threading.Semaphore(0)
        self.port: int = self._socket.getsockname()[1]
        self.requests: list[bytes] = []
        threading.Thread(target=self._serve, daemon=True).start()

    def drop(self) -> None:
        """Let one more byte go."""
        self._more.release()

    def close(self) -> None:
        self._socket.close()

    def _serve(self) -> None:
        with suppress(OSError):
            while True:
                connection = self._socket.accept()[0]
                with connection:
                    self.requests.append(connection.recv(4096))
                    connection.sendall(self._head)
                    for _ in range(self._drops):
                        self._more.acquire()
                        connection.sendall(b"x")


def test_a_wake_interrupts_a_server_that_drips(place: Place) -> None:
    server = Raw(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\nx", drops=100_000)
    place.on_progress = lambda _count: place.wake.set()
    with closing(server), pytest.raises(InterruptedRetryError):
        place.lay(f"http://127.0.0.1:{server.port}/x")


def test_a_server_that_drips_for_ever_is_given_up(place: Place) -> None:
    server = Raw(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\nx", drops=100_000)

    def progress(_count: int) -> None:
        place.clock.advance(1)
        server.drop()

    place.on_progress = progress
    with closing(server), pytest.raises(InputMissingError, match="too slow"):
        place.lay(f"http://127.0.0.1:{server.port}/x")
    assert place.clock.now() < 1_000 + 2 * 60, "no longer than its patience"


def test_a_server_that_breaks_off_again_and_again_is_given_up(place: Place, site: Server) -> None:
    site.breaks = [1] * 1000
    with pytest.raises(InputMissingError, match="IncompleteRead"):
        place.lay(f"{site.url}/x")
    assert len(site.breaks) > 900


@pytest.mark.parametrize(
    "head",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: abc\r\n\r\nhello",
        b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\nhello",
        b"HTTP/1.1 302 Found\r\nLocation: http://[bad/\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 302 Found\r\nLocation: http://a:99999/\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 302 Found\r\nLocation: http:///x\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 302 Found\r\nLocation: http://a..b/\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nX: " + b"a" * 70_000 + b"\r\n\r\n",
        b"nonsense\r\n\r\n",
    ],
)
def test_http_answers_that_make_no_sense(place: Place, head: bytes) -> None:
    server = Raw(head)
    with (
        closing(server),
        pytest.raises(InputMissingError, match=r"127\.0\.0\.1|http:///x|a\.\.b|a:9"),
    ):
        place.lay(f"http://127.0.0.1:{server.port}/x")


def test_a_url_that_is_none(place: Place) -> None:
    with pytest.raises(InputMissingError, match="the URL"):
        download_url("http://[bad/", place.folder / "x", clock=place.clock, wake=place.wake)


def test_a_name_that_leads_elsewhere_once_it_was_checked(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = iter(("127.0.0.1", "127.0.0.2"))
    real = socket.getaddrinfo

    def rebinding(_host: str, port: int, *args: Any, **options: Any) -> Any:
        return real(next(answers), port, *args, **options)

    server = Raw(b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nSECRET", host="127.0.0.2")
    monkeypatch.setattr(socket, "getaddrinfo", rebinding)
    limits = HttpLimits(refused=(ipaddress.ip_network("127.0.0.2/32"),))
    with closing(server), pytest.raises(InputRejectedError, match=r"leads to 127\.0\.0\.2"):
        download_url(
            f"http://example.com:{server.port}/", place.folder / "x",
            clock=place.clock, wake=place.wake, limits=limits,
        )  # fmt: skip
    assert [request for request in server.requests if request] == []
    assert (place.folder / "x").read_bytes() == b""
