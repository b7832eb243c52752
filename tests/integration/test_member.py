"""A member of a cluster as a real process, and a head that comes in by the real relay."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from fakes import clouds
from fakes.clouds import Metadata
from fakes.memberlab import CLUSTER, MemberLab, pid_in, wait_for
from fakes.steps import alive
from simagent.cluster.calls import ask
from simagent.cluster.connection import Connection, HostLostError, HostRefusedError
from simagent.cluster.messages import (
    TOKEN,
    Checked,
    Departs,
    Enter,
    Exited,
    Refused,
    Sampled,
    Started,
)
from simagent.domain.cluster import Spanning
from simagent.worker.statussocket import ask as ask_status

SLEEPER = "echo $$ >pid; exec sleep 600"


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[MemberLab]:
    lab = MemberLab(tmp_path)
    yield lab
    lab.end()


@pytest.fixture(scope="module")
def standing(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MemberLab]:
    """Give a member for tests that leave nothing behind; beside its folder lies another."""
    lab = MemberLab(tmp_path_factory.mktemp("standing"))
    (lab.shared / "out").symlink_to(lab.folder / "elsewhere")
    (lab.folder / "elsewhere").mkdir()
    (lab.folder / "elsewhere" / TOKEN).write_text("secret")
    lab.ready()
    yield lab
    lab.end()


def run(lab: MemberLab, request: Enter) -> tuple[list[str], Exited | Refused]:
    """Run something on the member; give the events before its end, and the end.

    Each event makes a file of its name in the shared folder.
    """
    with Connection(lab.relay(), request) as connection:
        events: list[str] = []
        while True:
            event = connection.next(60.0)
            assert event is not None, "the member fell silent"
            if isinstance(event, Exited | Refused):
                return events, event
            assert isinstance(event, Started | Sampled)
            events.append(event.event)
            (lab.work / event.event).touch()


def started(connection: Connection) -> None:
    while not isinstance(event := connection.next(60.0), Started):
        assert isinstance(event, Sampled), event  # of before its agent was ended


def exited(connection: Connection) -> Exited:
    while not isinstance(event := connection.next(60.0), Exited):
        assert isinstance(event, Sampled | Started), event
    return event


def test_a_member_tells_what_it_is_and_takes_its_leave_when_it_is_drained(lab: MemberLab) -> None:
    lab.ready()
    record = lab.record()
    assert record is not None
    assert (record.agent, record.slots, record.address, record.port) == (
        "vm2",
        3,
        "127.0.0.1",
        22999,
    )
    assert record.host == socket.gethostname()
    assert "process" in record.runtimes
    beat = record.beat
    wait_for(lambda: (now := lab.record()) and now.beat > beat, "another beat")
    lab.drain()
    assert lab.record() is None


def test_what_the_head_asks_for_runs_in_the_shared_folder(standing: MemberLab) -> None:
    wait = "until [ -e sampled ]; do sleep 0.05; done"
    command = f"pwd; echo $SIMAGENT_LAB >made; echo said >&2; {wait}; exit 3"
    events, end = run(standing, standing.enter(command, "made", workdir="."))
    assert isinstance(end, Exited)
    assert (end.code, end.signal, end.message) == (3, None, "said")
    assert events[0] == "started"
    assert "sampled" in events
    assert (standing.work / "made").read_text() == f"{standing.folder}\n"
    assert standing.left() == []


def test_samples_are_of_the_run_and_name_the_host(standing: MemberLab) -> None:
    with Connection(standing.relay(), standing.enter("exec sleep 600", "sampled")) as connection:
        started(connection)
        sampled = connection.next(30.0)
        assert isinstance(sampled, Sampled)
        assert sampled.sample["host"] == socket.gethostname()
        assert sampled.sample["task_processes"] == 1
    wait_for(lambda: not standing.left(), "the end of what a lost head ran")


def test_the_end_is_told_again_and_nothing_runs_twice(lab: MemberLab) -> None:
    lab.ready()
    request = lab.enter("echo once >>log; exit 4")
    for _ in range(2):
        _, end = run(lab, request)
        assert isinstance(end, Exited)
        assert end.code == 4
    assert (lab.work / "log").read_text() == "once\n"
    _, other = run(lab, lab.enter("true"))
    assert isinstance(other, Refused)
    assert "is another run's" in other.why


def test_told_to_leave_it_ends_all_of_it(lab: MemberLab) -> None:
    lab.ready()
    wait = "while :; do sleep 0.05; done"
    command = f"setsid sleep 601 & trap 'echo bye >bye; exit 7' TERM; echo $$ >pid; {wait}"
    with Connection(lab.relay(), lab.enter(command)) as connection:
        started(connection)
        pid_in(lab.work / "pid")
        connection.leave(30.0)
        end = exited(connection)
    assert end.code == 7
    assert end.message == "the head ended it"
    assert (lab.work / "bye").exists()
    assert lab.left() == []


def test_a_head_that_goes_away_leaves_nothing(lab: MemberLab) -> None:
    lab.ready()
    with Connection(lab.relay(), lab.enter(SLEEPER)) as connection:
        started(connection)
        pid = pid_in(lab.work / "pid")
    wait_for(lambda: not alive(pid), "the end of what a lost head ran")
    wait_for(lambda: not lab.left(), "the end of all of it")


def test_a_head_that_says_nothing_any_more_leaves_nothing(lab: MemberLab) -> None:
    lab.ready()
    with socket.socket(socket.AF_UNIX) as silent:
        silent.connect(str(lab.socket))
        silent.sendall(lab.enter(SLEEPER).model_dump_json().encode() + b"\n")
        pid = pid_in(lab.work / "pid")
        began = time.monotonic()
        wait_for(lambda: not alive(pid), "the end of what a silent head ran")
        assert time.monotonic() - began < 40.0, "a silent head is lost after 15 s"


def test_an_agent_that_was_killed_goes_on_with_what_runs(lab: MemberLab) -> None:
    lab.ready()
    command = "echo $$ >pid; until [ -e go ]; do sleep 0.05; done; exit 5"
    with Connection(lab.relay(), lab.enter(command)) as connection:
        started(connection)
        pid = pid_in(lab.work / "pid")
        lab.kill()
        assert alive(pid)
        lab.ready()
        started(connection)
        assert alive(pid)
        (lab.work / "go").touch()
        assert exited(connection).code == 5
    assert lab.left() == []


def test_it_tells_people_how_it_stands(standing: MemberLab) -> None:
    request = standing.enter("until [ -e shown ]; do sleep 0.05; done", "shown")
    with Connection(standing.relay(), request) as connection:
        started(connection)
        fields = ask_status(standing.state, 5.0)
        (standing.work / "shown").touch()
        assert exited(connection).code == 0
    assert (fields["role"], fields["stage"]) == ("member", "taking_tasks")
    assert (fields["agent"], fields["cluster"]) == (standing.agent, CLUSTER)
    assert [run["entry"] for run in fields["runs"]] == ["shown"]
    (store,) = fields["engines"]
    assert (store["name"], store["failing"]) == ("store", None)
    assert not fields["hangs"]


def test_an_agent_that_was_away_tells_of_what_ended_meanwhile(lab: MemberLab) -> None:
    lab.ready()
    command = "echo $$ >pid; until [ -e go ]; do sleep 0.05; done; exit 6"
    with Connection(lab.relay(), lab.enter(command)) as connection:
        started(connection)
        pid = pid_in(lab.work / "pid")
        lab.kill()
        (lab.work / "go").touch()
        wait_for(lambda: not alive(pid), "the end of the run")
        lab.ready()
        assert exited(connection).code == 6


def test_sigterm_lets_go_and_ctrl_c_twice_ends_what_runs(lab: MemberLab) -> None:
    lab.ready()
    with Connection(lab.relay(), lab.enter(SLEEPER)) as connection:
        started(connection)
        pid = pid_in(lab.work / "pid")
        assert lab.process is not None
        lab.process.terminate()
        assert lab.process.wait(60) == 0
        assert alive(pid)
        assert lab.record() is not None, "it comes back"
        lab.ready()
        started(connection)
        lab.process.send_signal(signal.SIGINT)
        wait_for(lambda: any("Ctrl-C again" in line for line in lab.lines), "the first answer")
        lab.process.send_signal(signal.SIGINT)
        assert lab.process.wait(60) == 0
        assert not alive(pid)
    assert lab.record() is None


def test_a_member_that_is_taken_away_tells_its_head_and_ends_in_time(lab: MemberLab) -> None:
    with Metadata(clouds.aws()) as server:
        lab.settings = {"CLOUD": "aws", "CLOUD_ENDPOINT": server.endpoint}
        lab.ready()
        stubborn = "trap '' TERM; echo $$ >pid; while :; do sleep 0.1; done"
        with Connection(lab.relay(), lab.enter(stubborn)) as connection:
            started(connection)
            pid = pid_in(lab.work / "pid")
            began = time.monotonic()
            server.answers.update(clouds.aws_interruption(time.time() + 27))
            departs = next(e for e in iter(lambda: connection.next(30.0), None) if told_of(e))
            assert isinstance(departs, Departs)
            assert "AWS is going to terminate" in departs.why
            assert 0 < departs.left <= 9.0
            assert lab.process is not None
            # For systemd to start it again, should the machine stay.
            assert lab.process.wait(60) == 75
            assert time.monotonic() - began < 25.0, "the machine is still there"
            assert not alive(pid)
    assert lab.record() is None, "its head is not to look for it any more"


def told_of(event: object) -> bool:
    return isinstance(event, Departs)


def test_a_drained_member_takes_nothing_more_and_ends_with_what_it_runs(lab: MemberLab) -> None:
    lab.ready()
    command = "echo $$ >pid; until [ -e go ]; do sleep 0.05; done"
    with Connection(lab.relay(), lab.enter(command)) as connection:
        started(connection)
        pid_in(lab.work / "pid")
        assert lab.process is not None
        lab.process.send_signal(signal.SIGINT)
        wait_for(lambda: (now := lab.record()) and "drained" in now.trouble, "the word of it")
        _, refused = run(lab, lab.enter("true", entry="another"))
        assert isinstance(refused, Refused)
        assert refused.reason == "mpi_host_lost"
        assert "is being drained" in refused.why
        (lab.work / "go").touch()
        assert exited(connection).code == 0
        assert lab.process.wait(60) == 0


def test_what_the_head_does_not_have_any_more_is_ended(lab: MemberLab) -> None:
    other = Spanning(project="default", task="other", epoch=1)
    lab.name_attempts(lab.attempt, other)
    lab.ready()
    with (
        Connection(lab.relay(), lab.enter(SLEEPER)) as connection,
        Connection(lab.relay(), lab.enter("exec sleep 600", "o", attempt=other)) as second,
    ):
        started(connection)
        started(second)
        pid_in(lab.work / "pid")
        lab.name_attempts(other)
        while not isinstance(end := connection.next(1.0), Exited):
            second.next(0.0)  # so that it goes on to beat
        assert end.message == "the head does not have its attempt any more"
        second.leave(1.0)
        assert exited(second).message == "the head ended it"


def test_an_outage_of_the_store_ends_nothing(lab: MemberLab) -> None:
    lab.ready()
    with Connection(lab.relay(), lab.enter(SLEEPER)) as connection:
        started(connection)
        pid = pid_in(lab.work / "pid")
        lab.store.rename(lab.folder / "away")
        wait_for(lambda: any("store_lost" in line for line in lab.lines), "the outage")
        deadline = time.monotonic() + 17.0
        while time.monotonic() < deadline:
            assert isinstance(connection.next(30.0), Sampled)
        assert alive(pid)


def test_the_folder_is_shared_when_token_and_lock_are_the_heads(standing: MemberLab) -> None:
    with standing.token():
        told = ask(standing.relay(), standing.check(), timeout=30.0)
    assert isinstance(told, Checked)
    assert told.host == socket.gethostname()


@pytest.mark.parametrize(
    ("changes", "locked", "why"),
    [
        (
            {"token": "other"},
            True,
            "is not the head's: mpi.shared_dir is not the folder that it shares",
        ),
        ({}, False, "does not show this host the locks of others"),
        (
            {"folder": "grid/gone"},
            True,
            "of the head is not there: mpi.shared_dir is not the folder",
        ),
        ({"folder": "out"}, True, "leads out of"),
        ({"uid": 4711}, True, "ranks run as user 4711 on the head, here as"),
    ],
)
def test_what_is_wrong_with_the_shared_folder_is_told_in_a_line(
    standing: MemberLab, changes: dict[str, object], locked: bool, why: str
) -> None:
    with standing.token(locked=locked), pytest.raises(HostLostError) as caught:
        ask(standing.relay(), standing.check(**changes), timeout=30.0)
    assert why in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("folder", ["../state", "/etc", "", "a/../../state"])
def test_a_folder_that_leads_elsewhere_is_not_even_looked_at(
    standing: MemberLab, folder: str
) -> None:
    with pytest.raises(HostRefusedError) as caught:
        ask(standing.relay(), standing.check(folder=folder), timeout=30.0)
    assert str(caught.value) == f"folder: {folder!r} does not lie beneath the shared folder"


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"entry": "../x"}, "entry: use up to 200 letters, digits, '.', '-' and '_'"),
        ({"entry": "a/b"}, "entry: use up to 200"),
        ({"folder": "grid/../../state"}, "does not lie beneath the shared folder"),
        ({"folder": "grid/gone"}, "grid/gone is not there"),
        ({"folder": "out"}, "out is not there: mpi.shared_dir is not the folder"),
        ({"workdir": "../.."}, "workdir: '../..' does not lie beneath the shared folder"),
        ({"uid": 4711}, "ranks run as user 4711 on the head"),
        ({"env": {"A B": "1"}}, "env: 'A B' is no variable that can be"),
        ({"command": "a\0b"}, "command: there is none that can be run"),
        ({"grace": -1.0}, "grace: use 0 to 3600 seconds, not -1"),
        ({"runtime": "docker"}, "runtime: docker needs an image"),
        ({"runtime": "slurm", "image": "a/b@sha256:" + "0" * 64}, "slurm is not set up here"),
    ],
)
def test_what_cannot_be_run_is_refused_in_a_line(
    standing: MemberLab, changes: dict[str, object], why: str
) -> None:
    request = standing.enter("true", "x").model_copy(update=changes)
    _, refused = run(standing, request)
    assert isinstance(refused, Refused)
    assert why in refused.why
    assert len(refused.why.splitlines()) == 1
    assert not (standing.state / "member" / "entries" / "x").exists()
    assert standing.left() == []


def test_programs_of_the_host_are_run_only_where_that_is_allowed(lab: MemberLab) -> None:
    lab.start(ALLOW_PROCESS="false")
    wait_for(lab.record, "the member")
    _, refused = run(lab, lab.enter("true"))
    assert isinstance(refused, Refused)
    assert (refused.reason, "set allow_process" in refused.why) == ("unsupported", True)


@pytest.mark.parametrize("line", [b"nonsense", b"[1]", b'{"ask": "dance"}', b'{"ask": "enter"}'])
def test_what_is_no_request_is_said_to_be_none(standing: MemberLab, line: bytes) -> None:
    with socket.socket(socket.AF_UNIX) as peer:
        peer.connect(str(standing.socket))
        peer.settimeout(30)
        peer.sendall(line + b"\n")
        told = json.loads(peer.makefile().readline())
    assert told["event"] == "refused"
    assert told["why"].startswith("not a request that is known: ")
    assert len(told["why"].splitlines()) == 1


def test_nobody_else_comes_in(lab: MemberLab) -> None:
    lab.ready()
    assert lab.socket.stat().st_mode & 0o777 == 0o600
    if os.geteuid() != 0:
        pytest.skip("machine: only root can be another user")
    for folder in (lab.socket, *lab.socket.parents):
        if folder.is_dir() and folder.stat().st_uid == 0 and folder != Path("/"):
            folder.chmod(folder.stat().st_mode | 0o011)
    lab.socket.chmod(0o666)
    code = (
        "import socket, sys; s = socket.socket(socket.AF_UNIX); "
        "s.connect(sys.argv[1]); print(s.recv(9))"
    )
    done = subprocess.run(
        ["/usr/bin/python3", "-I", "-S", "-c", code, str(lab.socket)],
        capture_output=True,
        user=65534,
        group=65534,
        extra_groups=(),
        timeout=30,
        check=True,
        text=True,
    )
    assert done.stdout == "b''\n"
    wait_for(lambda: any("of another user" in line for line in lab.lines), "the word of it")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--role", "member"], "cluster: a member needs the name of its cluster"),
        (["--role", "boss", "--cluster", "a"], "role: Input should be 'head' or 'member'"),
        (["--role", "member", "--cluster", "a/b"], "cluster: 'a/b' is no valid name"),
        (
            ["--role", "member", "--cluster", "a", "--until-empty"],
            "role: a member takes no tasks: leave --until-empty away",
        ),
    ],
)
def test_a_role_that_cannot_be_is_refused_in_a_line(
    tmp_path: Path, options: list[str], words: str
) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "simagent", "agent", "--state-dir", str(tmp_path), *options],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 2
    assert words in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_tasks_of_an_agent_are_not_left_behind_by_a_change_of_role(lab: MemberLab) -> None:
    (lab.state / "attempts" / "default.x.1").mkdir(parents=True)
    process = lab.start()
    assert process.wait(60) == 2
    wait_for(lambda: any("an agent left tasks in" in line for line in lab.lines), "the reason")


def test_an_agent_that_takes_tasks_again_ends_what_it_ran_as_a_member(lab: MemberLab) -> None:
    lab.ready()
    with Connection(lab.relay(again=1.0), lab.enter(SLEEPER)) as connection:
        started(connection)
        pid = pid_in(lab.work / "pid")
        lab.kill()
        lab.start("agent", "--cluster", CLUSTER, "--until-empty")
        assert lab.process is not None
        assert lab.process.wait(60) == 0
        assert not alive(pid)
    assert not (lab.state / "member").exists()
    assert lab.record() is None, "the head would wait for a member that it was itself"
