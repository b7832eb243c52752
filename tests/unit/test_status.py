"""What an agent tells of itself, at its socket and to Prometheus."""

import json
import os
import socket
import stat
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from fakes.clock import FakeClock
from fakes.descriptors import no_files_left
from simagent.config_urls import check_listen
from simagent.ports.clock import SystemClock, Wake
from simagent.telemetry.tally import Count
from simagent.worker.exposition import PREFIX, Exposition, Gauge, measure
from simagent.worker.metricserver import MetricServer
from simagent.worker.observing import Life
from simagent.worker.orders import Detached, Preempted
from simagent.worker.snapshot import (
    CountView,
    DiskView,
    EngineView,
    ImagesView,
    Snapshot,
    Stage,
    TaskView,
    stage_of,
)
from simagent.worker.statussocket import NoAnswerError, StatusSocket, ask
from simagent.worker.versions import OWN, Versions
from simagent.worker.window import Window

FULL = Snapshot(
    role="agent",
    stage=Stage.DRAINING,
    agent="a-1",
    incarnation="i1",
    group="g",
    pid=7,
    at=1e9,
    started=9e8,
    uptime=1e8,
    turned=3.0,
    slots=2,
    busy=1,
    tasks=(
        TaskView(
            project="p",
            id="T1",
            epoch=2,
            status="running",
            since=1.0,
            step=0,
            steps=1,
            beat=4.0,
            cpu_cores=1.5,
            memory_bytes=1000,
        ),
    ),
    engines=(
        EngineView(name="store", url="file:///s", answered=1.0),
        EngineView(
            name="queue", url="sqlite:///q", answered=50.0, failing=40.0, error="it is gone"
        ),
    ),
    disk=DiskView(
        path="/s",
        free=5,
        total=10,
        floor=6,
        images=(ImagesView(runtime="docker", count=2, size_bytes=9),),
    ),
    versions=OWN,
    notices=("something",),
    counts=(
        CountView(name="store_calls", value=12),
        CountView(name="tasks_ended", labels=("failed", "oom"), value=3),
    ),
)


@contextmanager
def running(run: Callable[[Wake], None]) -> Iterator[None]:
    stop = Wake()
    thread = threading.Thread(target=run, args=(stop,))
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(10)
    assert not thread.is_alive()


def until(look: Callable[[], object], seconds: float = 10.0) -> None:
    clock = SystemClock()
    deadline = clock.now() + seconds
    while not look():
        assert clock.now() < deadline, "waited in vain"
        clock.wait(0.01)


@contextmanager
def told(folder: Path, snapshot: Snapshot = FULL) -> Iterator[None]:
    window = Window(folder, SystemClock(), lambda: snapshot)
    with window:
        until((folder / "status").exists)
        until(lambda: answers(folder))
        yield


def answers(folder: Path) -> bool:
    try:
        ask(folder, 5.0)
    except NoAnswerError:
        return False
    return True


# --- The stage ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("order", "draining", "store", "queue", "stage"),
    [
        (None, False, False, False, Stage.TAKING_TASKS),
        (None, True, False, False, Stage.DRAINING),
        (None, True, True, True, Stage.WAITING_FOR_STORE),
        (None, False, False, True, Stage.WAITING_FOR_QUEUE),
        (Preempted("spot"), True, True, False, Stage.GIVING_BACK),
        (Detached("stop"), True, False, False, Stage.LETTING_GO),
    ],
)
def test_what_an_agent_is_at(
    order: Detached | Preempted | None, draining: bool, store: bool, queue: bool, stage: Stage
) -> None:
    assert stage_of(order, draining=draining, store_fails=store, queue_fails=queue) is stage


def test_a_main_loop_that_does_not_turn_hangs() -> None:
    clock = FakeClock()
    life = Life(clock)
    before = life.turned
    life.turn()
    assert before is None
    clock.advance(10)
    assert [life.turned, life.uptime] == [10, 10]
    assert not replace(FULL, turned=life.turned).hangs
    clock.advance(20)
    assert replace(FULL, turned=life.turned).hangs
    assert replace(FULL, turned=life.turned).as_dict()["hangs"]
    assert not replace(FULL, turned=None).hangs


def test_too_little_room_is_told() -> None:
    disk = FULL.disk
    assert disk is not None
    assert "less than min_free" in disk.shortage
    assert replace(disk, free=6).shortage == ""
    assert replace(disk, free=None).shortage == ""


# --- The socket -----------------------------------------------------------------------------------


def test_a_snapshot_is_told_at_the_socket(tmp_path: Path) -> None:
    with told(tmp_path):
        fields = ask(tmp_path, 5.0)
        mode = (tmp_path / "status").stat().st_mode
    assert fields == json.loads(json.dumps(FULL.as_dict()))
    assert (fields["stage"], fields["tasks"][0]["id"], fields["format"]) == ("draining", "T1", 1)
    assert stat.S_ISSOCK(mode)
    assert stat.S_IMODE(mode) == 0o600
    assert not (tmp_path / "status").exists()


def test_a_state_folder_may_have_a_long_path(tmp_path: Path) -> None:
    folder = tmp_path / ("x" * 120)
    folder.mkdir()
    with told(folder):
        assert ask(folder, 5.0)["agent"] == "a-1"


def test_a_socket_that_a_crash_left_makes_way(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(tmp_path / "status"))
    with pytest.raises(NoAnswerError, match="refused"):
        ask(tmp_path, 5.0)
    with told(tmp_path):
        assert ask(tmp_path, 5.0)["agent"] == "a-1"


def test_nobody_there(tmp_path: Path) -> None:
    with pytest.raises(NoAnswerError, match="No such file"):
        ask(tmp_path, 5.0)


@pytest.mark.parametrize("answer", [b"", b"hello\n", b"[1]\n"])
def test_who_answers_otherwise_is_no_agent(tmp_path: Path, answer: bytes) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "status"))
        listener.listen()

        def serve() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.sendall(answer)

        thread = threading.Thread(target=serve)
        thread.start()
        with pytest.raises(NoAnswerError):
            ask(tmp_path, 5.0)
        thread.join(10)


def test_one_that_hangs_is_not_waited_for(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "status"))
        listener.listen()
        with pytest.raises(NoAnswerError, match=r"within 0\.1 s"):
            ask(tmp_path, 0.1)


def test_who_connects_and_leaves_holds_nobody_up(tmp_path: Path) -> None:
    with told(tmp_path), socket.socket(socket.AF_UNIX) as silent:
        silent.connect(str(tmp_path / "status"))
        assert ask(tmp_path, 5.0)["agent"] == "a-1"


def test_a_mistake_in_telling_does_not_end_the_thread(tmp_path: Path) -> None:
    broken = True

    def tell() -> dict[str, object]:
        if broken:
            raise RuntimeError("changed while it was looked at")
        return {"agent": "a-1"}

    served = StatusSocket(tmp_path, SystemClock(), tell)
    with running(served.run):
        until((tmp_path / "status").exists)
        with pytest.raises(NoAnswerError):
            ask(tmp_path, 5.0)
        broken = False
        until(lambda: answers(tmp_path))


def test_a_socket_that_cannot_be_made_is_tried_again(tmp_path: Path) -> None:
    clock = FakeClock()
    (tmp_path / "status").mkdir()
    stop = Wake()
    clock.after(45.0, stop.set)
    StatusSocket(tmp_path, clock, dict).run(stop)
    assert clock.now() == pytest.approx(1045.0)


@pytest.mark.skipif(os.geteuid() != 0, reason="machine: acts as another user, which root alone can")
def test_other_users_are_told_nothing(tmp_path: Path) -> None:
    with told(tmp_path):
        (tmp_path / "status").chmod(0o666)
        for folder in (tmp_path, *tmp_path.parents[:2]):
            folder.chmod(0o755)
        child = os.fork()
        if child == 0:
            try:
                os.chdir(tmp_path)
                os.setuid(65534)
                ask(Path(), 5.0)
            except NoAnswerError as error:
                os._exit(17 if "user alone" in str(error) else 18)
            except BaseException:  # noqa: BLE001 - the parent judges by the code
                os._exit(19)
            os._exit(20)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 17


# --- Versions -------------------------------------------------------------------------------------


def test_versions_are_asked_for_once_in_a_while() -> None:
    clock, asked = FakeClock(), []

    def ask_them() -> dict[str, str]:
        asked.append(clock.now())
        return {"docker": "Docker Engine 29"}

    versions = Versions(ask_them, clock)
    assert asked == []
    until(lambda: versions.tell() == {**OWN, "docker": "Docker Engine 29"})
    assert len(asked) == 1
    clock.advance(700)
    versions.tell()
    until(lambda: len(asked) == 2)


# --- Metrics --------------------------------------------------------------------------------------


def samples(text: str) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def written(snapshot: Snapshot = FULL) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    kind, text = Exposition(lambda: snapshot).write("")
    assert kind.startswith("text/plain")
    return samples(text.decode())


def test_metrics_are_those_of_the_snapshot() -> None:
    found = written()
    task = frozenset({("project", "p"), ("task", "T1")})
    nothing: frozenset[tuple[str, str]] = frozenset()
    assert found["simagent_state", frozenset({("state", "draining")})] == 1
    assert found["simagent_state", frozenset({("state", "starting")})] == 0
    assert found["simagent_loop_age_seconds", nothing] == 3
    assert found["simagent_store_up", nothing] == 1
    assert found["simagent_queue_up", nothing] == 0
    assert found["simagent_queue_answer_age_seconds", nothing] == 50
    assert found["simagent_disk_free_bytes", nothing] == 5
    assert found["simagent_images_bytes", frozenset({("runtime", "docker")})] == 9
    assert found["simagent_task_cpu_cores", task] == 1.5
    assert found["simagent_task_lease_age_seconds", task] == 4
    assert found["simagent_store_calls_total", nothing] == 12
    ended = frozenset({("outcome", "failed"), ("reason", "oom")})
    assert found["simagent_tasks_ended_total", ended] == 3


def test_each_metric_is_measured_with_its_labels() -> None:
    measured = {gauge: labels for gauge, labels, _ in measure(FULL)}
    assert set(measured) == set(Gauge)
    assert all(len(labels) == len(gauge.labels) for gauge, labels in measured.items())


def test_what_is_not_known_is_left_out() -> None:
    bare = Snapshot(role="agent", stage=Stage.STARTING, pid=1, at=1, started=1, uptime=0)
    names = {name for name, _ in written(bare)}
    assert "simagent_loop_age_seconds" not in names
    assert "simagent_disk_free_bytes" not in names
    assert "simagent_slots" in names


def test_names_keep_to_the_conventions_of_prometheus() -> None:
    for gauge in Gauge:
        assert not gauge.endswith(("_total", "_count", "_sum", "_bucket")), gauge
    for count in Count:
        assert not count.endswith("_total"), count
    assert len({*Gauge, *Count}) == len(Gauge) + len(Count)
    assert PREFIX == "simagent_"


def fetch(url: str) -> tuple[str, str]:
    with urllib.request.urlopen(url, timeout=10) as answer:
        return answer.headers["Content-Type"], answer.read().decode()


def listening(server: MetricServer) -> str:
    until(lambda: server.address)
    assert server.address is not None
    host, port = server.address
    return f"http://{host}:{port}"


def test_metrics_are_served() -> None:
    server = MetricServer("127.0.0.1", 0, SystemClock(), lambda: FULL)
    with running(server.run):
        url = listening(server)
        kind, text = fetch(f"{url}/metrics")
        assert kind.startswith("text/plain")
        assert samples(text) == written()
        with pytest.raises(urllib.error.HTTPError, match="404"):
            fetch(f"{url}/")
        asked = urllib.request.Request(
            f"{url}/metrics", headers={"Accept": "application/openmetrics-text; version=1.0.0"}
        )
        with urllib.request.urlopen(asked, timeout=10) as answer:
            assert answer.headers["Content-Type"].startswith("application/openmetrics-text")
            assert answer.read().decode().endswith("# EOF\n")


def test_who_connects_and_says_nothing_keeps_nobody_waiting() -> None:
    server = MetricServer("127.0.0.1", 0, SystemClock(), lambda: FULL)
    with running(server.run):
        url = listening(server)
        assert server.address is not None
        with socket.create_connection(server.address):
            assert "simagent_slots" in fetch(f"{url}/metrics")[1]


def test_metrics_wait_for_a_file_descriptor_without_keeping_a_core_busy() -> None:
    server = MetricServer("127.0.0.1", 0, SystemClock(), lambda: FULL)
    with running(server.run):
        url = listening(server)
        assert server.address is not None
        with socket.socket() as asking:
            asking.settimeout(10)
            with no_files_left():
                asking.connect(server.address)
                used = time.process_time()
                SystemClock().wait(1.0)
                used = time.process_time() - used
            asking.sendall(b"GET /metrics HTTP/1.0\r\n\r\n")
            assert asking.recv(100).startswith(b"HTTP/1.0 200")
        assert "simagent_slots" in fetch(f"{url}/metrics")[1]
    assert used < 0.1


def test_a_port_that_is_taken_is_told_and_tried_again() -> None:
    clock = FakeClock()
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        server = MetricServer("127.0.0.1", port, clock, lambda: FULL)
        window = Window(Path("/nowhere"), clock, lambda: FULL, lambda _source: server)
        stop = Wake()
        clock.after(45.0, stop.set)
        server.run(stop)
    assert server.trouble.startswith(f"metrics_listen: http://127.0.0.1:{port}/metrics: ")
    assert server.trouble.endswith("Address already in use")
    assert window.look().notices == ("something", server.trouble)
    assert clock.now() == pytest.approx(1045.0)


@pytest.mark.parametrize(
    ("given", "taken"),
    [
        ("9108", "127.0.0.1:9108"),
        ("0.0.0.0:9108", "0.0.0.0:9108"),
        ("[::1]:9108", "[::1]:9108"),
        ("node7.cluster:80", "node7.cluster:80"),
        (":9108", "127.0.0.1:9108"),
    ],
)
def test_where_to_listen(given: str, taken: str) -> None:
    assert check_listen(given) == taken


@pytest.mark.parametrize("given", ["", "x", "0", "65536", "::1:9", "http://h:9", "h:", "h/x:9"])
def test_where_nobody_can_listen(given: str) -> None:
    with pytest.raises(ValueError, match="is no address"):
        check_listen(given)
