"""The broker of a step and its way to members, with the relay itself in place of ssh."""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from fakes.member_agents import FakeMember
from fakes.steps import running, until
from simagent.cluster import broker, launch, relay
from simagent.cluster.calls import HostLostError, HostRefusedError, ask
from simagent.cluster.connection import Pace
from simagent.cluster.messages import Check, Enter, Fetch
from simagent.domain.cluster import Spanning
from simagent.ports.clock import Wake
from simagent.ports.runtime import StepPlan
from simagent.runtimes.process import ProcessRuntime

QUICK = Pace(beat=0.1, silent=20.0, contact=30.0)
SHORT = Pace(beat=0.1, silent=2.0, contact=30.0)
"""For hosts that stand still: others may fall silent for a moment on a busy machine."""
SPAN = Spanning(project="default", task="01J", epoch=1)
CHECK = Check(folder="default.t.1", token="x", uid=0, version="1")


def relay_to(member: Path, *, silent: float = 20.0, again: float = 20.0) -> tuple[str, ...]:
    numbers = (str(number) for number in (0.1, silent, again))
    return (sys.executable, "-I", "-S", relay.__file__, str(member), *numbers)


def template(grace: float = 1.0) -> Enter:
    return Enter(
        entry="01J.1.0",
        attempt=SPAN,
        agent="head",
        step=0,
        runtime="process",
        image=None,
        folder="default.01J.1",
        uid=os.getuid(),
        gid=os.getgid(),
        env={"GREETING": "hello"},
        grace=grace,
    )


def relays(socket: Path) -> list[int]:
    """List the relays that run for a socket."""
    wanted = {str(socket), str(relay.__file__)}
    return [pid for pid, words in running() if wanted <= set(words)]


@dataclass
class Lab:
    """A broker with one fake member at the address 10.0.0.2, whose name is `b`."""

    root: Path
    member: FakeMember
    running: list[subprocess.Popen[bytes]] = field(default_factory=list)

    @property
    def private(self) -> Path:
        return self.root / "private"

    @property
    def laid(self) -> Path:
        return self.root / "launch"

    def plan(self, *ssh: str, limit: float = 30.0, pace: Pace = QUICK) -> None:
        launch.lay(self.laid, uid=os.getuid(), gid=os.getgid())
        peer = broker.Peer(name="b", ssh=ssh or relay_to(self.member.path), enter=template())
        broker.write_plan(self.private, self.laid, {"10.0.0.2": peer}, pace=pace, limit=limit)

    def start(self) -> subprocess.Popen[bytes]:
        process = subprocess.Popen(broker.command(self.private), stdin=subprocess.DEVNULL)
        self.running.append(process)
        self.until("ready")
        return process

    def mpirun(self, *words: str, options: tuple[str, ...] = ()) -> subprocess.Popen[bytes]:
        """Call the script as `mpirun` does."""
        process = subprocess.Popen(
            [launch.program(self.laid), *options, *words],
            stdin=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            env={"PATH": "/usr/bin:/bin"},
        )
        self.running.append(process)
        return process

    def events(self) -> list[broker.Happening]:
        return broker.read_events(self.private)[0]

    def named(self, event: str) -> list[broker.Happening]:
        return [happening for happening in self.events() if happening.event == event]

    def until(self, event: str) -> broker.Happening:
        until(lambda: self.named(event), f"{event} in {self.events()}")
        return self.named(event)[0]


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    lab = Lab(tmp_path, FakeMember(tmp_path / "member"))
    yield lab
    for process in lab.running:
        if process.poll() is None:
            process.kill()
        process.communicate()
    lab.member.end()
    until(lambda: not relays(lab.member.path), "the end of all relays")


def ended(process: subprocess.Popen[bytes]) -> tuple[int, str]:
    _, errors = process.communicate(timeout=60)
    return process.returncode, errors.decode()


def test_a_task_that_rings_without_a_pause_does_not_keep_the_broker_busy(lab: Lab) -> None:
    lab.plan()
    process = lab.start()

    def reads() -> int:
        lines = Path(f"/proc/{process.pid}/io").read_text().splitlines()
        told = dict(line.split(": ") for line in lines)
        return int(told["syscr"])

    before, began = reads(), time.monotonic()
    bell = os.open(lab.laid / launch.BELL, os.O_WRONLY | os.O_NONBLOCK)
    while time.monotonic() < began + 1.5 or reads() - before <= 3:
        with suppress(BlockingIOError):
            os.write(bell, b"\n" * 4096)
    os.close(bell)
    assert reads() - before < 100 * (time.monotonic() - began)
    assert ended(lab.mpirun("10.0.0.2", "exit", "3"))[0] == 3


def test_what_mpirun_asks_for_runs_on_the_host_and_its_exit_code_comes_back(lab: Lab) -> None:
    lab.plan()
    lab.start()
    words = (f"echo $GREETING from ; printf '%s\\n' \"two  words\" >{lab.root}/said;", "exit 7")
    assert ended(lab.mpirun("10.0.0.2", *words)) == (7, "enter: 10.0.0.2: that was it\n")
    assert (lab.root / "said").read_text() == "two  words\n"
    assert [happening.event for happening in lab.events()] == [
        *("ready", "entered", "sampled", "exited")
    ]
    exited = lab.until("exited")
    assert (exited.host, exited.address, exited.code) == ("b", "10.0.0.2", 7)
    assert exited.entry.startswith("01J.1.0-1-")
    assert lab.until("sampled").sample == {"cpu": 1.5}
    until(lambda: not list((lab.laid / "asks").iterdir()), "the removal of the ask's files")


def test_the_script_takes_what_mpirun_gives_ssh(lab: Lab) -> None:
    lab.plan()
    lab.start()
    options = ("-x", "-q", "-l", "me", "-p22", "-oBatchMode=yes", "-Tp", "22", "--")
    call = lab.mpirun("me@10.0.0.2", " exit", "--daemonize", "5 ", options=options)
    assert ended(call)[0] == 5
    assert lab.member.requests[0]["command"] == " exit 5 "


def test_the_daemon_of_open_mpi_4_is_not_told_to_start_others(lab: Lab) -> None:
    lab.plan()
    lab.start()
    said = ("orted() { exit 6; }; orted", "-mca", "plm", '"rsh"', "-mca", "plm_rsh_agent")
    call = lab.mpirun("10.0.0.2", *said, '"/nowhere"', "-mca", "pmix", '"^s1"', "-mca", "plm")
    assert ended(call)[0] == 6
    assert lab.member.requests[0]["command"] == 'orted() { exit 6; }; orted -mca pmix "^s1"'


def test_a_signal_that_ended_the_daemon_is_told_as_shells_do(lab: Lab) -> None:
    lab.plan()
    lab.start()
    assert ended(lab.mpirun("10.0.0.2", "kill -9 $$"))[0] == 128 + 9
    assert lab.until("exited").signal == 9


@pytest.mark.parametrize("words", [(), ("10.0.0.2",), ("-p",), ("-x", "10.0.0.2")])
def test_the_script_says_what_it_was_not_given(lab: Lab, words: tuple[str, ...]) -> None:
    lab.plan()
    code, errors = ended(lab.mpirun(*words))
    assert code == 255
    assert "nothing to run" in errors or "lacks its value" in errors


def test_several_hosts_are_entered_at_a_time(lab: Lab) -> None:
    lab.plan()
    lab.start()
    calls = [lab.mpirun("10.0.0.2", f"exit {number}") for number in range(4)]
    assert sorted(ended(call)[0] for call in calls) == [0, 1, 2, 3]


def test_an_address_that_is_not_of_the_plan_is_refused(lab: Lab) -> None:
    lab.plan()
    lab.start()
    code, errors = ended(lab.mpirun("10.9.9.9", "true"))
    assert code == 255
    assert "'10.9.9.9' is no host of this step: those are 10.0.0.2" in errors
    assert lab.member.requests == []


def test_hostile_asks_neither_stop_the_broker_nor_lead_it_elsewhere(lab: Lab) -> None:
    lab.plan()
    lab.start()
    secret = lab.root / "secret"
    secret.write_text("10.0.0.2\ntouch stolen")
    asks = lab.laid / "asks"
    (asks / "1.ask").symlink_to(secret)
    os.link(secret, asks / "2.ask")
    os.mkfifo(asks / "3.ask")
    (asks / "4.ask").mkdir()
    (asks / "5.ask").write_bytes(b"x" * 10_000_000)
    (asks / "6.end").symlink_to(secret)
    (asks / "6.ask").write_text("10.0.0.2\nsleep 600")
    (asks / "7.ask").write_text("10.9.9.9\ntrue")
    (asks / "..ask").write_text("10.0.0.2\ntrue")
    assert ended(lab.mpirun("10.0.0.2", "exit 3"))[0] == 3
    until(lambda: len(lab.named("exited")) == 2, "the end of what nobody waits for")
    assert sorted(request["command"] for request in lab.member.requests) == ["exit 3", "sleep 600"]
    assert secret.read_text() == "10.0.0.2\ntouch stolen"
    assert lab.running[0].poll() is None


def test_one_host_is_not_entered_any_number_of_times(lab: Lab) -> None:
    lab.plan()
    lab.start()
    for _ in range(4):
        lab.mpirun("10.0.0.2", "sleep 600")
    until(lambda: len(lab.named("entered")) == 4)
    code, errors = ended(lab.mpirun("10.0.0.2", "true"))
    assert code == 255
    assert "it is asked for too often" in errors


@pytest.mark.parametrize("shell", [("dash",), ("bash", "--posix"), ("busybox", "sh")])
def test_the_script_runs_in_the_shells_of_images(lab: Lab, shell: tuple[str, ...]) -> None:
    if shutil.which(shell[0]) is None:
        pytest.skip(f"{shell[0]} is missing (make engines installs it)")
    lab.plan()
    lab.start()
    call = subprocess.run(
        [*shell, launch.program(lab.laid), "-x", "10.0.0.2", "echo", '"a b"', ";", "exit", "4"],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        env={"PATH": "/usr/bin:/bin"},
        timeout=60,
        check=False,
    )
    assert (call.returncode, call.stdout) == (4, b"")
    assert call.stderr == b"enter: 10.0.0.2: that was it\n"


def test_told_to_end_the_broker_leaves_all_hosts_and_says_how_that_went(lab: Lab) -> None:
    lab.plan()
    process = lab.start()
    call = lab.mpirun("10.0.0.2", "sleep 600")
    lab.until("entered")
    process.terminate()
    assert process.wait(timeout=60) == 0
    assert lab.until("exited").signal == 9
    assert ended(call)[0] == 128 + 9
    assert lab.member.told_to_leave == [1.0]
    assert lab.member.left == []


def test_a_runtime_that_ends_the_whole_tree_does_not_cut_the_way_to_the_hosts(lab: Lab) -> None:
    lab.plan()
    runtime = ProcessRuntime()
    plan = StepPlan(
        folder=lab.root / "steps",
        number=0,
        argv=broker.command(lab.private),
        cwd=lab.root,
        stdout=lab.root / "out",
        stderr=lab.root / "out",
    )
    step = runtime.start(plan)
    lab.until("ready")
    lab.mpirun("10.0.0.2", "sleep 600")
    lab.until("entered")
    step.stop(60.0)
    exit_ = step.wait(50)
    assert exit_ is not None
    assert (exit_.exit_code, exit_.signal) == (0, None)
    assert lab.until("exited").signal == 9
    assert lab.member.told_to_leave == [1.0]


def test_a_host_that_does_not_end_its_ranks_is_lost(lab: Lab) -> None:
    lab.plan(limit=0.5)
    lab.member.deaf = True
    process = lab.start()
    lab.mpirun("10.0.0.2", "sleep 600")
    lab.until("entered")
    process.terminate()
    assert process.wait(timeout=60) == 0
    assert lab.until("lost").why == "it did not end its ranks within 0.5 s"


def test_a_daemon_that_sees_itself_that_mpirun_is_gone_is_let_be(lab: Lab) -> None:
    lab.plan()
    lab.start()
    call = lab.mpirun("10.0.0.2", f"while [ ! -e {lab.root}/gone ]; do sleep 0.05; done; exit 6")
    lab.until("entered")
    call.kill()
    (lab.root / "gone").touch()
    assert lab.until("exited").code == 6
    assert lab.member.told_to_leave == []


def test_a_signal_for_the_ranks_does_not_cut_the_way_to_a_host(lab: Lab) -> None:
    lab.plan()
    lab.start()
    call = lab.mpirun("10.0.0.2", f"while [ ! -e {lab.root}/go ]; do sleep 0.05; done; exit 6")
    lab.until("entered")
    for number in (signal.SIGUSR1, signal.SIGUSR2, signal.SIGHUP, signal.SIGINT):
        call.send_signal(number)
    (lab.root / "go").touch()
    assert ended(call)[0] == 6


def test_when_mpirun_goes_away_the_hosts_are_left(lab: Lab) -> None:
    lab.plan()
    lab.start()
    call = lab.mpirun("10.0.0.2", "sleep 600")
    lab.until("entered")
    call.kill()
    assert lab.until("exited").signal == 9
    assert lab.member.running == []
    until(lambda: not list((lab.laid / "asks").iterdir()), "the removal of the ask's files")


def test_a_host_that_stands_still_is_lost_by_its_silence(lab: Lab) -> None:
    lab.plan(pace=SHORT)
    lab.start()
    call = lab.mpirun("10.0.0.2", "sleep 600")
    lab.until("entered")
    (pid,) = relays(lab.member.path)
    began = time.monotonic()
    os.kill(pid, signal.SIGSTOP)
    lost = lab.until("lost")
    assert time.monotonic() - began < QUICK.silent
    assert (lost.host, lost.address) == ("b", "10.0.0.2")
    assert lost.why == "nothing was heard of it for 2 s: it stands still or is cut off"
    code, errors = ended(call)
    assert (code, errors) == (255, f"enter: 10.0.0.2: lost: {lost.why}\n")
    until(lambda: lab.member.left, "the end of the entry, as its connection closed")


def test_a_connection_that_is_cut_is_a_lost_host(lab: Lab) -> None:
    lab.plan("sh", "-c", 'trap "" TERM; "$@"; echo "Connection reset by peer" >&2; exit 255',
             "ssh", *relay_to(lab.member.path))  # fmt: skip
    lab.start()
    call = lab.mpirun("10.0.0.2", "sleep 600")
    lab.until("entered")
    (pid,) = relays(lab.member.path)[-1:]
    os.kill(pid, signal.SIGKILL)
    assert lab.until("lost").why == "Connection reset by peer"
    assert ended(call)[0] == 255
    until(lambda: lab.member.left)


def test_a_host_that_cannot_be_reached_is_named_with_the_words_of_ssh(lab: Lab) -> None:
    lab.plan("sh", "-c", "echo 'ssh: connect to host b port 22: No route to host' >&2; exit 255")
    lab.start()
    code, errors = ended(lab.mpirun("10.0.0.2", "true"))
    assert code == 255
    assert "No route to host" in errors
    assert lab.until("lost").why == "ssh: connect to host b port 22: No route to host"


def test_a_host_that_never_answers_is_lost(lab: Lab) -> None:
    lab.plan("sleep", "600", pace=Pace(beat=0.1, silent=20.0, contact=0.5))
    lab.start()
    assert ended(lab.mpirun("10.0.0.2", "true"))[0] == 255
    assert lab.until("lost").why == "there was no answer within 0.5 s"


def test_a_host_that_refuses_is_told_with_its_reason(lab: Lab) -> None:
    line = json.dumps({"event": "refused", "reason": "image_not_found", "why": "no such image"})
    lab.plan("sh", "-c", f"read -r line; echo '{line}'; cat")
    lab.start()
    code, errors = ended(lab.mpirun("10.0.0.2", "true"))
    assert (code, errors) == (255, "enter: 10.0.0.2: refused: no such image\n")
    refused = lab.until("refused")
    assert (refused.reason, refused.why, refused.host) == ("image_not_found", "no such image", "b")


def test_a_killed_broker_leaves_nothing_running(lab: Lab) -> None:
    lab.plan()
    process = lab.start()
    call = lab.mpirun("10.0.0.2", "sleep 600")
    lab.until("entered")
    process.kill()
    until(lambda: lab.member.left, "the end of the entry, as its connection closed")
    assert lab.member.running == []
    assert ended(call) == (255, "enter: 10.0.0.2: the broker of this step is gone\n")


def test_without_a_broker_the_script_does_not_wait_for_ever(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(launch, "PATIENCE", 1)
    lab.plan()
    code, errors = ended(lab.mpirun("10.0.0.2", "true"))
    assert code not in (0, None)
    assert "nobody answers: the broker of this step is gone" in errors


def test_an_agent_that_is_started_anew_ends_no_rank(lab: Lab) -> None:
    lab.plan()
    process = lab.start()
    lab.mpirun("10.0.0.2", "sleep 600")
    lab.until("entered")
    lab.member.restart()
    until(lambda: len(lab.member.requests) == 2, "the same request again")
    assert lab.member.requests[0] == lab.member.requests[1]
    assert len(lab.member.running) == 1
    process.terminate()
    assert process.wait(timeout=60) == 0
    assert lab.until("exited").signal == 9
    assert len(lab.named("entered")) == 1


def test_an_agent_that_does_not_come_back_is_a_lost_host(lab: Lab) -> None:
    lab.plan(*relay_to(lab.member.path, again=0.5))
    lab.start()
    lab.mpirun("10.0.0.2", "sleep 600")
    lab.until("entered")
    lab.member.close()
    assert lab.until("lost").why.startswith("its agent does not answer: ")


def test_a_relay_whose_head_is_silent_ends(lab: Lab) -> None:
    process = subprocess.Popen(
        relay_to(lab.member.path, silent=0.5),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdin is not None
    process.stdin.write(template().with_(command="sleep 600").model_dump_json().encode() + b"\n")
    process.stdin.flush()
    assert process.wait(timeout=60) == 1
    assert b"the head is silent for 0.5 s" in process.communicate()[1]
    until(lambda: lab.member.left)


def test_members_are_asked_and_answer(lab: Lab) -> None:
    checked = ask(relay_to(lab.member.path), CHECK, timeout=30.0)
    assert checked is not None
    assert checked.event == "checked"
    fetched = ask(relay_to(lab.member.path), Fetch(runtime="docker", image="some"), timeout=30.0)
    assert fetched is not None
    assert fetched.event == "fetched"


def test_a_refusal_is_raised_with_its_reason(lab: Lab) -> None:
    with pytest.raises(HostRefusedError, match="no such image") as refused:
        ask(relay_to(lab.member.path), Fetch(runtime="docker", image="missing"), timeout=30.0)
    assert refused.value.reason == "image_not_found"


def test_who_asks_waits_no_longer_than_wanted(lab: Lab) -> None:
    slow = Fetch(runtime="docker", image="slow")
    with pytest.raises(HostLostError, match=r"it did not answer within 0\.5 s"):
        ask(relay_to(lab.member.path), slow, timeout=0.5, pace=QUICK)
    wake = Wake()
    threading.Timer(0.2, wake.set).start()
    assert ask(relay_to(lab.member.path), slow, timeout=600.0, wake=wake, pace=QUICK) is None


def test_a_host_whose_agent_does_not_run_is_lost(lab: Lab) -> None:
    lab.member.close()
    with pytest.raises(HostLostError, match="its agent does not answer: Connection refused"):
        ask(relay_to(lab.member.path, again=0.6), CHECK, timeout=30.0)


def test_a_program_that_is_not_there_is_a_lost_host(tmp_path: Path) -> None:
    with pytest.raises(HostLostError, match="/ssh cannot be run: No such file"):
        ask([str(tmp_path / "ssh")], CHECK, timeout=30.0)


def test_what_a_login_shell_prints_is_not_taken_for_an_answer(lab: Lab) -> None:
    command = ("sh", "-c", 'echo Welcome; "$@"', "sh", *relay_to(lab.member.path))
    checked = ask(command, CHECK, timeout=30.0)
    assert checked is not None
