"""What an operator sees of an agent that cannot work: a line, a status text, an exit code.

Each with a real agent that takes the test for systemd. With 2 and 1 systemd starts it again, ever
later; with 0 it does not.
"""

import os
import socket
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from fakes import clouds
from fakes.clouds import Metadata
from fakes.disks import small_disk
from fakes.service import Service
from simagent.ports.reach import unread_keys

NOWHERE = "http://127.0.0.1:1"
KEYS = {"AWS_ACCESS_KEY_ID": "x", "AWS_SECRET_ACCESS_KEY": "y", "AWS_EC2_METADATA_DISABLED": "true"}


def refused(service: Service, code: int, *words: str) -> None:
    """It has ended with one line in the journal, which systemd shows, too."""
    assert service.ended() == code, service.lines
    (line,) = service.lines
    for word in words:
        assert word in line
    assert service.status == line.removeprefix("simagent: ")
    assert not service.ready


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("grup = 'a'", "grup: unknown setting: did you mean group? ("),
        ("idle_timeout = '5 parsecs'", "idle_timeout: cannot read '5 parsecs': write a number"),
        ("min_free = '1 PiX'", "min_free: cannot read '1 PiX'"),
        ("[times\n", "agent.toml: "),
    ],
)
def test_wrong_settings(tmp_path: Path, text: str, words: str) -> None:
    file = tmp_path / "agent.toml"
    file.write_text(text)
    with Service(tmp_path, "agent", "--config", file) as service:
        refused(service, 2, words)


def test_several_mistakes_are_one_status(tmp_path: Path) -> None:
    with Service(tmp_path, SLOTS="many", ORPHAN_LIMIT=1) as service:
        assert service.ended() == 2
        assert len(service.lines) == 2
        assert service.status == " ".join(x.removeprefix("simagent: ") for x in service.lines)


def test_a_settings_file_that_is_a_folder(tmp_path: Path) -> None:
    folder = tmp_path / "agent.toml"
    folder.mkdir()
    with Service(tmp_path, "agent", "--config", folder) as service:
        refused(service, 2, "agent.toml is not a file")


def test_two_agents_on_one_state_folder(tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    state = tmp_path / "state"
    with Service(tmp_path / "one", STATE_DIR=state) as first:
        first.until(lambda: first.ready)
        with Service(tmp_path / "two", STATE_DIR=state) as second:
            pid = first.process.pid
            refused(second, 1, f"an agent (pid {pid}) is already running on {state}", "stop it")


def test_a_state_folder_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "state").touch()
    with Service(tmp_path) as service:
        refused(service, 1, f"state_dir: {tmp_path}/state: there is a file in its place")


def test_a_state_folder_that_is_read_only(tmp_path: Path) -> None:
    with small_disk(tmp_path / "state") as disk:
        subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
        with Service(tmp_path) as service:
            refused(service, 1, f"state_dir: {disk}: it is on a file system that is read-only")


def test_a_new_state_folder_on_a_full_disk(tmp_path: Path) -> None:
    with small_disk(tmp_path / "state", inodes=1) as disk, Service(tmp_path) as service:
        refused(service, 1, f"state_dir: {disk}: its disk is full")


def test_an_agent_whose_disk_is_full_runs_takes_nothing_and_says_so(tmp_path: Path) -> None:
    with small_disk(tmp_path / "state") as disk:
        engines = {"QUEUE": f"sqlite://{tmp_path}/queue.db", "STORE": f"file://{tmp_path}/store"}
        with Service(tmp_path, **engines) as first:
            first.until(lambda: first.ready)
            first.process.terminate()
            assert first.ended() == 0
        with (disk / "filler").open("wb", buffering=0) as filler, suppress(OSError):
            while True:
                filler.write(bytes(1 << 16))
        (tmp_path / "notify").unlink()
        with Service(tmp_path, **engines) as service:
            service.until(lambda: f"0 bytes are free in {disk}" in service.status)
            assert service.ready


@pytest.mark.parametrize(
    ("engine", "words"),
    [
        (
            {"QUEUE": "sqs://q", "SQS_ENDPOINT": NOWHERE, "SQS_REGION": "eu-west-1"},
            f"sqs://q ({NOWHERE}, eu-west-1) does not answer: nothing listens at ",
        ),
        (
            {"STORE": "s3://bucket", "S3_ENDPOINT": NOWHERE, "S3_REGION": "eu-west-1"},
            f"s3://bucket/ at {NOWHERE} does not answer: nothing listens at ",
        ),
    ],
    ids=["queue", "store"],
)
def test_an_engine_that_cannot_be_reached_is_waited_for(
    tmp_path: Path, engine: dict[str, str], words: str
) -> None:
    with Service(tmp_path, **engine, **KEYS) as service:
        service.until(lambda: service.status.startswith(f"0 of 1 slots busy; {words}"))
        assert service.ready
        assert len([line for line in service.lines if words in line]) == 1
        service.process.terminate()
        assert service.ended() == 0


def test_keys_that_are_not_there_are_waited_for(tmp_path: Path) -> None:
    engines = {
        "STORE": "s3://bucket",
        "S3_REGION": "eu-west-1",
        "AWS_SHARED_CREDENTIALS_FILE": str(tmp_path / "no keys"),
        "AWS_CONFIG_FILE": os.devnull,
        "AWS_EC2_METADATA_DISABLED": "true",
    }
    with Service(tmp_path, **engines) as service:
        service.until(lambda: "no credentials found, " in service.status)
        assert f"{tmp_path}/no keys: No such file" in service.status
        assert service.ready


def test_a_keys_file_that_cannot_be_read(tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text("this is no file of keys")
    engines = {
        "STORE": "s3://bucket",
        "S3_REGION": "eu-west-1",
        "S3_ENDPOINT": "http://127.0.0.1:1",
        "AWS_SHARED_CREDENTIALS_FILE": str(keys),
        "AWS_EC2_METADATA_DISABLED": "true",
    }
    with Service(tmp_path, **engines) as service:
        service.until(lambda: f"Unable to parse config file: {keys}" in service.status)
        assert service.ready
        keys.write_text("[default]\naws_access_key_id = x\naws_secret_access_key = y\n")
        service.until(lambda: "nothing listens at" in service.status)  # it gets as far as that


def test_a_keys_file_that_this_user_may_not_read_is_named(tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.mkdir()  # root may read any file, but no folder
    named = {"AWS_SHARED_CREDENTIALS_FILE": str(keys)}
    assert unread_keys(named) == f", {keys} cannot be read: Is a directory"
    assert unread_keys({"AWS_SHARED_CREDENTIALS_FILE": str(tmp_path / "no")}).endswith(
        "no: No such file or directory"
    )


@contextmanager
def dated(server_is_ahead: float) -> Iterator[str]:
    """A store that finds this machine's clock wrong, as one that is not set yet at boot."""
    from email.utils import formatdate
    from http.server import BaseHTTPRequestHandler
    from time import time

    from fakes.serving import Serving

    class Handler(BaseHTTPRequestHandler):
        def answer(self) -> None:
            body = b"<Error><Code>RequestTimeTooSkewed</Code><Message>Too late</Message></Error>"
            self.rfile.read(int(self.headers.get("Content-Length") or 0))
            self.send_response_only(403)
            self.send_header("Date", formatdate(time() + server_is_ahead, usegmt=True))
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_GET = do_PUT = do_DELETE = answer

        def log_message(self, format: str, *args: object) -> None:
            pass

    with Serving(Handler) as server:
        yield server.endpoint


def test_a_clock_that_is_not_set_yet_is_waited_for(tmp_path: Path) -> None:
    with dated(3600.0) as endpoint:
        engines = {
            "STORE": "s3://bucket",
            "S3_ENDPOINT": endpoint,
            "S3_REGION": "eu-west-1",
            **KEYS,
        }
        with Service(tmp_path, **engines) as service:
            service.until(lambda: "this machine's clock is 3600 s behind" in service.status)
            assert service.ready


def test_a_metadata_server_that_hangs_holds_nothing_up(tmp_path: Path) -> None:
    with (
        Metadata(clouds.aws(), hangs=True) as server,
        Service(tmp_path, CLOUD="gcp", CLOUD_ENDPOINT=server.endpoint) as service,
    ):
        service.until(lambda: service.ready)
        (line,) = [x for x in service.lines if "does not tell of the machine" in x]
        assert "timed out" in line


@contextmanager
def mute() -> Iterator[str]:
    """A server that takes connections and says nothing, as behind a firewall that drops."""
    with socket.create_server(("127.0.0.1", 0), backlog=200) as listener:
        taken: list[socket.socket] = []

        def take() -> None:
            with suppress(OSError):
                while True:
                    taken.append(listener.accept()[0])

        thread = threading.Thread(target=take, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join()
            for one in taken:
                one.close()


@pytest.mark.timeout(200)
def test_servers_that_say_nothing_do_not_keep_it_from_being_ready_in_time(tmp_path: Path) -> None:
    """systemd gives it 90 s to start, and more where it asks for that."""
    with mute() as endpoint:
        engines = {
            "QUEUE": "sqs://q",
            "SQS_ENDPOINT": endpoint,
            "SQS_REGION": "eu-west-1",
            "STORE": "s3://bucket",
            "S3_ENDPOINT": endpoint,
            "S3_REGION": "eu-west-1",
            "CLOUD": "aws",
            "CLOUD_ENDPOINT": endpoint,
            **KEYS,
        }
        with Service(tmp_path, **engines) as service:
            service.until(lambda: service.ready, 120)
            assert "EXTEND_TIMEOUT_USEC=180000000" in service.told
