"""What an engine, and this machine, go through while a container runs."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import docker.errors
import pytest
import requests

from fakes.descriptors import no_files_left
from fakes.steps import until
from simagent import shim
from simagent.domain.reasons import Reason
from simagent.ports.clock import SystemClock
from simagent.ports.images import ImageError
from simagent.ports.runtime import StepPlan
from simagent.runtimes.docker_engine import DockerEngine, EngineAwayError
from simagent.runtimes.docker_pull import Job, attend
from simagent.runtimes.docker_step import DockerStep

BEGAN, ENDED = "2026-01-01T00:00:00Z", "2026-01-01T00:00:09Z"


class Client:
    """The SDK's client of an engine with one container, which runs until it is stopped."""

    def __init__(self) -> None:
        self.paused = False
        self.refusals: list[tuple[str, int]] = []
        self.looks: list[Callable[[], object]] = []
        self.over = threading.Event()

    def inspect_container(self, _name: str) -> dict[str, Any]:
        for look in self.looks:
            look()
        state = {"Pid": 0, "StartedAt": BEGAN, "FinishedAt": ENDED, "OOMKilled": False}
        ended = self.over.is_set()
        status = {"Status": "exited" if ended else "running", "ExitCode": 0, "Error": ""}
        return {"Id": "c", "State": state | status | {"Paused": self.paused and not ended}}

    def wait(self, _name: str, *, condition: str) -> None:
        assert condition == "not-running"
        self.over.wait(30)

    def unpause(self, _name: str) -> None:
        self._refuse("unpause")
        self.paused = False

    def stop(self, _name: str, *, timeout: int) -> None:
        assert timeout >= 0
        self._refuse("stop")
        self.over.set()

    def remove_container(self, _name: str, **_how: bool) -> None:
        pass

    def _refuse(self, what: str) -> None:
        if self.refusals and self.refusals[0][0] == what:
            response = requests.Response()
            response.status_code = self.refusals.pop(0)[1]
            raise docker.errors.APIError(what, response, f"{what} is refused")


class Engine(DockerEngine):
    """An engine that answers at once, by a client of the test's."""

    def __init__(self, client: Client) -> None:
        super().__init__("unix:///nowhere")
        self._client = client

    def trouble(self) -> str | None:
        return None


def begun(client: Client, folder: Path) -> DockerStep:
    plan = StepPlan(
        folder=folder,
        number=0,
        argv=("true",),
        cwd=folder,
        stdout=folder / "stdout",
        stderr=folder / "stderr",
    )
    engine = Engine(client)
    found = engine.find("c")
    return DockerStep(engine, plan, "c", found=found, boot=shim.boot_id(), watched=True)


def test_a_step_that_ends_while_no_file_descriptor_is_left_is_seen_to_have_ended(
    tmp_path: Path,
) -> None:
    client, looked = Client(), threading.Semaphore(0)
    step = begun(client, tmp_path)
    assert step.wait(0.1) is None
    client.looks.append(looked.release)
    with no_files_left():
        client.over.set()
        assert looked.acquire(timeout=10)
        SystemClock().wait(0.3)
    exit_ = step.wait(10)
    assert exit_ is not None
    assert exit_.exit_code == 0


def test_the_end_of_a_step_is_told_once_its_records_can_be_read(tmp_path: Path) -> None:
    client = Client()
    step = begun(client, tmp_path)
    assert step.wait(0.1) is None
    client.over.set()
    until(step._over.is_set, "the end")
    with no_files_left():
        assert step.wait(10) is None
    exit_ = step.wait(10)
    assert exit_ is not None
    assert exit_.exit_code == 0


def test_a_record_that_can_never_be_read_ends_the_wait_for_a_step(tmp_path: Path) -> None:
    client = Client()
    step = begun(client, tmp_path)
    (tmp_path / "step-0.stop").mkdir()
    client.over.set()
    with pytest.raises(IsADirectoryError):
        step.wait(10)


def test_what_nobody_can_make_sense_of_ends_the_wait_for_a_step(tmp_path: Path) -> None:
    client = Client()
    step = begun(client, tmp_path)

    def nonsense() -> None:
        raise KeyError("State")

    client.looks.append(nonsense)
    client.over.set()
    with pytest.raises(KeyError):
        step.wait(10)


@pytest.mark.parametrize("refusal", [("unpause", 409), ("unpause", 500), ("stop", 500)])
def test_a_stop_that_an_engine_refuses_is_sent_again(
    tmp_path: Path, refusal: tuple[str, int]
) -> None:
    client = Client()
    client.paused = True
    client.refusals = [refusal]
    step = begun(client, tmp_path)
    step.stop(5.0)
    exit_ = step.wait(10)
    assert exit_ is not None
    assert exit_.stopped


class Hangs(BaseHTTPRequestHandler):
    """An engine that hangs in the midst of its events."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        if not self.path.split("?")[0].endswith("/events"):
            body = b'{"ApiVersion": "1.43"}'
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)
            return
        self.send_response(200)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        self.wfile.write(b'80\r\n{"Action": "st')
        self.wfile.flush()
        self.server.over.wait(30)  # type: ignore[attr-defined]
        self.close_connection = True

    def log_message(self, format: str, *args: Any) -> None:
        """Log nothing."""


@contextmanager
def serving() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Hangs) as server:
        server.over = over = threading.Event()  # type: ignore[attr-defined]
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield f"tcp://127.0.0.1:{server.server_port}"
        finally:
            over.set()
            server.shutdown()
            thread.join(10)


def test_an_engine_that_hangs_while_it_tells_of_events_is_away() -> None:
    with serving() as host:
        engine = DockerEngine(host, timeout=0.5)
        with pytest.raises(EngineAwayError):
            engine.events("c", ("start", "die"), since=1, until=2)


class Nonsense:
    def __iter__(self) -> Iterator[Any]:
        yield ["no event"]

    def close(self) -> None:
        """Nothing is open."""


def test_what_an_engine_says_that_is_no_event_is_no_image() -> None:
    job = Job(Nonsense)  # type: ignore[arg-type]
    with pytest.raises(ImageError) as caught:
        attend(job, progress=None, silence=10.0, what="image x")
    assert caught.value.reason is Reason.RUNTIME_FAILED
