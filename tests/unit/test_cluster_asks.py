"""What a task may write for the broker to read, and what the broker makes of it."""

import os
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from simagent.cluster import happenings
from simagent.cluster.asks import MOST_COMMAND_BYTES, Ask, Asks
from simagent.cluster.happenings import EVENTS, Telling, now, read_events
from simagent.cluster.launch import lay
from simagent.cluster.messages import BEAT_EVERY, SILENT_AFTER
from simagent.cluster.sshd import relay_command


@pytest.fixture
def laid(tmp_path: Path) -> Path:
    lay(tmp_path / "launch", uid=os.getuid(), gid=os.getgid())
    return tmp_path / "launch"


@pytest.fixture
def asks(laid: Path) -> Asks:
    return Asks(laid)


@pytest.fixture
def folder(laid: Path) -> Path:
    return laid / "asks"


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    path = tmp_path / "secret"
    path.write_text("10.0.0.2\nrm -rf /")
    return path


def names(folder: Path) -> Iterator[str]:
    return (path.name for path in folder.iterdir())


def test_an_ask_is_taken_once(asks: Asks, folder: Path) -> None:
    (folder / "12.ask").write_text('10.0.0.2\nPATH=/x; export PATH; orted -mca "a"\n  b')
    command = 'PATH=/x; export PATH; orted -mca "a"\n  b'
    assert list(asks.take()) == [Ask("12", "10.0.0.2", command)]
    assert list(asks.take()) == []
    assert list(names(folder)) == []


@pytest.mark.parametrize(
    "content",
    [b"", b"10.0.0.2", b"10.0.0.2\n", b"10.0.0.2\n  \n", b"10.0.0.2\ntrue\0", b"h\xff\ntrue",
     b"10.0.0.2\n\xff", b"10.0.0.2\n" + b"x" * 10_000_000, b"x" * 10_000_000],
)  # fmt: skip
def test_what_is_no_ask_has_a_trouble(asks: Asks, folder: Path, content: bytes) -> None:
    (folder / "1.ask").write_bytes(content)
    (ask,) = asks.take()
    assert ask.trouble
    assert (ask.address, ask.command) == ("", "")
    assert list(names(folder)) == []


def test_the_longest_command_is_taken(asks: Asks, folder: Path) -> None:
    (folder / "1.ask").write_text("h\n" + "x" * MOST_COMMAND_BYTES)
    (ask,) = asks.take()
    assert not ask.trouble
    (folder / "1.ask").write_text("h\n" + "x" * (MOST_COMMAND_BYTES + 1))
    (ask,) = asks.take()
    assert ask.trouble == f"more than {MOST_COMMAND_BYTES} bytes to run"


def test_no_link_is_followed(asks: Asks, folder: Path, secret: Path) -> None:
    (folder / "1.ask").symlink_to(secret)
    os.link(secret, folder / "2.ask")
    (folder / "3.ask").symlink_to("/dev/zero")
    assert list(asks.take()) == []
    assert list(names(folder)) == []
    assert secret.exists()


def test_what_is_no_file_is_not_waited_for(asks: Asks, folder: Path) -> None:
    os.mkfifo(folder / "1.ask")
    (folder / "2.ask").mkdir()
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(folder / "3.ask"))
    (folder / "4.ask").write_text("10.0.0.2\ntrue")
    assert [ask.name for ask in asks.take()] == ["4"]
    assert [ask.name for ask in asks.take()] == []


@pytest.mark.parametrize(
    "name", ["..ask", "a.ask", "1.ask.part", "-1.ask", "1/2", "1" * 60 + ".ask"]
)
def test_other_names_are_none_of_the_brokers(asks: Asks, folder: Path, name: str) -> None:
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_text("10.0.0.2\ntrue")
    assert list(asks.take()) == []
    assert (folder / name).exists()


def test_very_many_files_are_looked_at_by_and_by(asks: Asks, folder: Path) -> None:
    for number in range(1500):
        (folder / f"{number}.ask").write_text("10.0.0.2\ntrue")
    assert len(list(asks.take())) == 1000
    assert len(list(asks.take())) == 500


def test_an_answer_goes_into_a_fifo_alone(asks: Asks, folder: Path, secret: Path) -> None:
    (folder / "1.end").symlink_to(secret)
    (folder / "2.end").write_text("")
    os.link(secret, folder / "3.end")
    (folder / "4.end").mkdir()
    for name in ("1", "2", "3", "4", "5"):
        reply = asks.reply(Ask(name))
        with pytest.raises(OSError, match=r".+"):
            reply.open()
        reply.say("taken")
        reply.close()
    assert secret.read_text() == "10.0.0.2\nrm -rf /"


def test_an_answer_is_one_line(asks: Asks, folder: Path) -> None:
    os.mkfifo(folder / "1.end")
    reply = asks.reply(Ask("1"))
    assert not reply.open()
    reader = os.open(folder / "1.end", os.O_RDONLY | os.O_NONBLOCK)
    assert reply.open()
    reply.say("255 it said\n0 and \x1b[31mmore")
    assert os.read(reader, 4096) == b"255 it said 0 and  [31mmore\n"
    reply.close()
    assert os.read(reader, 1) == b""
    os.close(reader)
    assert list(names(folder)) == []


def test_nobody_waits_who_rings(laid: Path, asks: Asks) -> None:
    for _ in range(3):
        subprocess.run(["sh", "-c", f"echo > {laid}/bell"], check=True, timeout=10)
    list(asks.take())


def test_what_was_laid_is_kept_when_an_agent_starts_anew(laid: Path) -> None:
    (laid / "asks" / "1.ask").write_text("10.0.0.2\ntrue")
    lay(laid, uid=os.getuid(), gid=os.getgid())
    assert [ask.name for ask in Asks(laid).take()] == ["1"]
    assert (laid / "enter").stat().st_mode & 0o777 == 0o755


def test_files_of_the_launcher_lie_beside_the_script(tmp_path: Path) -> None:
    for text in ("10.0.0.1 slots=2\n", "10.0.0.1 slots=3\n"):
        files = {"hosts.openmpi": text}
        lay(tmp_path / "launch", uid=os.getuid(), gid=os.getgid(), files=files)
        path = tmp_path / "launch" / "hosts.openmpi"
        assert path.read_text() == text
        assert path.stat().st_mode & 0o777 == 0o644


def test_a_folder_that_was_replaced_by_a_link_is_not_used(laid: Path, tmp_path: Path) -> None:
    (laid / "asks").rmdir()
    (laid / "asks").symlink_to(tmp_path)
    with pytest.raises(OSError, match=r".+"):
        Asks(laid)
    with pytest.raises(OSError, match=r".+"):
        lay(laid, uid=os.getuid(), gid=os.getgid())


def test_what_was_told_is_read_by_and_by(tmp_path: Path) -> None:
    assert read_events(tmp_path) == ([], 0)
    telling = Telling(tmp_path)
    telling.tell(now("ready"))
    (ready,), offset = read_events(tmp_path)
    assert ready.event == "ready"
    telling.tell(now("lost", host="b", why="gone"))
    with open(tmp_path / EVENTS, "ab") as file:
        file.write(b'{"event": "exi')
    (lost,), after = read_events(tmp_path, offset)
    assert (lost.event, lost.host, lost.why) == ("lost", "b", "gone")
    with open(tmp_path / EVENTS, "ab") as file:
        file.write(b'ted", "at": 1.0, "code": 0, "newer": true}\n{"event": "of a newer one"}\n')
    (exited,), last = read_events(tmp_path, after)
    assert (exited.event, exited.code) == ("exited", 0)
    assert read_events(tmp_path, last) == ([], last)


def test_samples_of_a_long_run_become_fewer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(happenings, "_FEWER_SAMPLES_EACH", 4096)
    telling = Telling(tmp_path)
    for _ in range(20_000):
        telling.tell(now("sampled", host="b", sample={"cpu": 1.0}))
    telling.tell(now("exited", host="b", code=0))
    size = (tmp_path / EVENTS).stat().st_size
    assert size < 8 * 4096
    assert read_events(tmp_path)[0][-1].event == "exited"


def test_the_relay_has_the_times_of_the_messages() -> None:
    *_, socket_, beat, silent, again = relay_command(Path("/run/member"))
    assert (socket_, float(beat), float(silent)) == ("/run/member", BEAT_EVERY, SILENT_AFTER)
    assert float(again) == 60
