"""The way to a member by real ssh servers, on loopback."""

import errno
import json
import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

from engines.ports import free_port
from fakes.member_agents import FakeMember
from fakes.steps import alive, running, until
from simagent import shim
from simagent.cluster import broker, launch, relay
from simagent.cluster.calls import HostLostError, HostRefusedError, ask
from simagent.cluster.connection import Connection, Pace
from simagent.cluster.keyfiles import write
from simagent.cluster.messages import Check, Checked, Enter, Exited, Started
from simagent.cluster.ssh import HeadKey, SshError
from simagent.cluster.sshd import Sshd, SshdError
from simagent.cluster.sshd_config import config
from simagent.domain.cluster import Member, Spanning

SBIN = "/usr/local/sbin:/usr/sbin:/sbin"
PATH = f"{os.environ.get('PATH', os.defpath)}:{SBIN}"
CHECK = Check(folder="default.t.1", token="x", uid=0, version="1")
LIMIT = 60.0
SILENT = 4.0
"""Seconds after which a host is lost; on a busy machine one may be silent for a moment."""
HEAD = "head 100%h"  # nothing that ssh makes of words in paths is made of it


@pytest.fixture(scope="module")
def account() -> Iterator[pwd.struct_passwd]:
    """Whom the server lets in: who runs the tests, but for root a user made for them."""
    for program in ("sshd", "ssh", "ssh-keygen"):
        if shutil.which(program, path=PATH) is None:
            pytest.skip(f"{program} is missing: make test installs openssh")
    if os.geteuid() != 0:
        yield pwd.getpwuid(os.getuid())
        return
    name = f"simagent-ssh-{os.getpid()}"
    add = ["useradd", "--system", "--no-create-home", "--shell", "/bin/sh", name]
    subprocess.run(add, check=True, env={"PATH": PATH})
    yield pwd.getpwnam(name)
    remove = ["userdel", name]  # refuses while a last process of that user is about to end
    env = {"PATH": PATH}
    until(lambda: not subprocess.run(remove, check=False, env=env, capture_output=True).returncode)


@dataclass
class Gate:
    """A member with its server, and the head's key for it."""

    root: Path
    account: pwd.struct_passwd
    agent: FakeMember
    key: HeadKey
    port: int

    def sshd(self, **changes: object) -> Sshd:
        fields: dict[str, object] = {"port": self.port, "user": self.account.pw_name}
        return Sshd(self.root / "sshd", relay=self.relay(), **fields | changes)  # type: ignore[arg-type]

    def relay(self) -> tuple[str, ...]:
        # Of the root of a home, nobody else may run the Python that runs the tests.
        script = self.root / "relay.py"
        if not script.exists():
            shutil.copy(relay.__file__, script)
            script.chmod(0o644)
        python = "/usr/bin/python3" if os.geteuid() == 0 else sys.executable
        return (python, "-I", "-S", str(script), str(self.agent.path), "0.1", "20", "20")

    def member(self, **changes: object) -> Member:
        member = Member(
            agent="m",
            incarnation="1",
            host="b",
            address="127.0.0.1",
            port=self.port,
            ssh_user=self.account.pw_name,
            host_key=self.sshd().host_key,
            slots=1,
            uid=self.account.pw_uid,
        )
        return member.with_(**changes)

    def open(self) -> Sshd:
        sshd = self.sshd()
        sshd.authorize(self.key.public)
        sshd.ensure()
        return sshd

    def pid(self) -> int:
        """Tell which process listens."""
        record = json.loads((self.root / "sshd" / "sshd.json").read_bytes())
        pid: int = record["pid"]
        return pid

    def servers(self) -> list[int]:
        """List the processes of the server and its connections, and the relays."""
        return [pid for pid, words in running() if str(self.root) in " ".join(words)]

    def relays(self) -> list[int]:
        return [pid for pid, words in running() if f"{self.root}/relay.py" in " ".join(words)]


@pytest.fixture
def gate(account: pwd.struct_passwd) -> Iterator[Gate]:
    root = Path(tempfile.mkdtemp(prefix="simagent-ssh-"))  # pytest's own only root may pass to
    root.chmod(0o755)
    agent = FakeMember(root / "member")
    agent.path.chmod(0o666)
    gate = Gate(root, account, agent, HeadKey(root / HEAD), free_port())
    yield gate
    for pid in gate.servers():  # the broker, the relays, and what sshd calls itself
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    agent.end()
    until(lambda: not any(alive(pid) for pid in gate.servers()), "the end of all servers")
    shutil.rmtree(root)


def enter(command: str) -> Enter:
    return Enter(
        entry="e1",
        attempt=Spanning(project="default", task="01J", epoch=1),
        agent="head",
        step=0,
        runtime="process",
        image=None,
        folder="default.01J.1",
        uid=os.getuid(),
        gid=os.getgid(),
        env={},
        command=command,
        grace=1.0,
    )


def as_user(account: pwd.struct_passwd, do: Callable[[], object]) -> None:
    """Do something as that user, in a process of its own."""
    pid = os.fork()
    if pid == 0:
        try:
            if os.geteuid() == 0:
                os.setgroups([])
                os.setgid(account.pw_gid)
                os.setuid(account.pw_uid)
            do()
        except Exception:  # noqa: BLE001 - told to the test by the exit code
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    assert os.waitpid(pid, 0)[1] == 0


def test_the_head_reaches_the_agent_of_a_member(gate: Gate) -> None:
    gate.open()
    checked = ask(gate.key.command(gate.member()), CHECK, timeout=LIMIT)
    assert isinstance(checked, Checked)
    assert gate.agent.requests[0]["version"] == "1"


def test_neither_server_nor_relay_runs_as_root(gate: Gate) -> None:
    gate.open()
    with Connection(gate.key.command(gate.member()), enter("sleep 600")) as connection:
        assert isinstance(connection.next(LIMIT), Started)
        pids = [gate.pid(), *beneath(gate.pid())]
        assert {os.stat(f"/proc/{pid}").st_uid for pid in pids} == {gate.account.pw_uid}


def test_an_agent_that_is_not_root_has_its_server_too(gate: Gate) -> None:
    home = gate.root / "home"
    home.mkdir()
    os.chown(home, gate.account.pw_uid, gate.account.pw_gid)
    relay_command, public = gate.relay(), gate.key.public
    folder, user = home / "sshd", gate.account.pw_name

    def run() -> None:
        sshd = Sshd(folder, port=gate.port, user=user, relay=relay_command)
        sshd.authorize(public)
        sshd.ensure()

    as_user(gate.account, run)  # which has ended when the head comes
    host_key = " ".join((folder / "host_key.pub").read_text().split()[:2])
    try:
        command = gate.key.command(gate.member(host_key=host_key))
        assert isinstance(ask(command, CHECK, timeout=LIMIT), Checked)
        assert folder.stat().st_mode & 0o777 == 0o700
    finally:
        as_user(
            gate.account,
            lambda: Sshd(folder, port=gate.port, user=user, relay=relay_command).stop(),
        )
    with pytest.raises(HostLostError, match="refused"):
        ask(command, CHECK, timeout=LIMIT)


def test_a_key_that_is_not_the_heads_is_refused(gate: Gate) -> None:
    gate.open()
    other = HeadKey(gate.root / "other")
    with pytest.raises(HostRefusedError, match="Permission denied") as refused:
        ask(other.command(gate.member()), CHECK, timeout=LIMIT)
    assert refused.value.reason == "mpi_host_lost"
    gate.sshd().authorize(other.public)  # another head leads
    assert ask(other.command(gate.member()), CHECK, timeout=LIMIT)
    with pytest.raises(HostRefusedError, match="Permission denied"):
        ask(gate.key.command(gate.member()), CHECK, timeout=LIMIT)


def test_without_a_head_nobody_is_let_in(gate: Gate) -> None:
    sshd = gate.sshd()
    sshd.ensure()
    with pytest.raises(HostRefusedError, match="Permission denied"):
        ask(gate.key.command(gate.member()), CHECK, timeout=LIMIT)
    sshd.authorize(gate.key.public)
    assert ask(gate.key.command(gate.member()), CHECK, timeout=LIMIT)
    sshd.authorize(None)
    with pytest.raises(HostRefusedError, match="Permission denied"):
        ask(gate.key.command(gate.member()), CHECK, timeout=LIMIT)


def test_a_host_with_another_key_is_not_talked_to(gate: Gate) -> None:
    gate.open()
    pretended = Sshd(gate.root / "another", port=1, user=gate.account.pw_name, relay=()).host_key
    with pytest.raises(HostRefusedError, match="Host key verification failed"):
        ask(gate.key.command(gate.member(host_key=pretended)), CHECK, timeout=LIMIT)
    assert gate.agent.requests == []


def test_a_port_where_nobody_listens_is_a_lost_host(gate: Gate) -> None:
    with pytest.raises(HostLostError, match="Connection refused"):
        ask(gate.key.command(gate.member()), CHECK, timeout=LIMIT)


def test_whoever_has_the_key_gets_to_the_relay_and_nowhere_else(gate: Gate) -> None:
    gate.open()
    *options, dashes, address = gate.key.command(gate.member())
    elsewhere = [word.replace("ClearAllForwardings=yes", "BatchMode=yes") for word in options]
    elsewhere += ["-o", "ExitOnForwardFailure=yes"]
    for command in (
        [*options, dashes, address, "cat", "/etc/passwd"],
        [*options, "-s", dashes, address, "sftp"],
        [*options, "-tt", dashes, address],
        [*elsewhere, "-W", f"127.0.0.1:{gate.port}", dashes, address],
        [*elsewhere, "-N", "-R", "0:127.0.0.1:1", dashes, address],
    ):
        done = subprocess.run(command, check=False, input=b"", capture_output=True, timeout=LIMIT)
        assert done.returncode != 0, command
        assert b"root:" not in done.stdout
        assert b"SSH-" not in done.stdout
    login = [*options, "-l", "root", dashes, address]
    login.remove(gate.account.pw_name)
    login.pop(login.index("-l"))
    done = subprocess.run(login, check=False, input=b"", capture_output=True, timeout=LIMIT)
    assert b"Permission denied" in done.stderr


def test_a_server_is_adopted_and_connections_outlive_it(gate: Gate) -> None:
    gate.open()
    pid = gate.pid()
    with Connection(gate.key.command(gate.member()), enter("sleep 2; exit 3")) as connection:
        assert isinstance(connection.next(LIMIT), Started)
        gate.sshd().ensure()  # the next incarnation's
        assert gate.pid() == pid
        gate.sshd().stop()
        assert not alive(pid)
        while not isinstance(event := connection.next(LIMIT), Exited):
            assert event is not None
        assert event.code == 3


def test_a_server_that_was_stopped_is_not_started_again_by_who_looks_after_it(gate: Gate) -> None:
    sshd = gate.open()
    sshd.stop()
    sshd.ensure()  # by a thread that goes on while the agent ends
    assert gate.servers() == []


@pytest.mark.parametrize("what", ["ensure", "stop"])
def test_a_server_that_its_agent_had_no_time_to_write_down_is_ended(gate: Gate, what: str) -> None:
    gate.open()
    pid = gate.pid()
    (gate.root / "sshd" / "sshd.json").unlink()
    getattr(gate.sshd(), what)()
    assert not alive(pid)
    if what == "ensure":
        assert ask(gate.key.command(gate.member()), CHECK, timeout=LIMIT)


def test_a_server_that_cannot_be_written_down_does_not_run_on(
    gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, text: str, mode: int) -> None:
        if path.name == "sshd.json":
            raise OSError(errno.ENOSPC, "no space left")
        write(path, text, mode)

    monkeypatch.setattr("simagent.cluster.sshd.write", full)
    with pytest.raises(SshdError, match="no space left"):
        gate.open()
    until(lambda: gate.servers() == [], "the end of the server")


def test_a_server_that_died_is_started_again_with_its_key(gate: Gate) -> None:
    sshd = gate.open()
    pid, key = gate.pid(), sshd.host_key
    os.kill(pid, signal.SIGKILL)
    until(lambda: not alive(pid))
    sshd.ensure()
    assert gate.pid() != pid
    assert sshd.host_key == gate.sshd().host_key == key
    assert ask(gate.key.command(gate.member()), CHECK, timeout=LIMIT)


def test_a_server_whose_settings_changed_is_replaced(gate: Gate) -> None:
    gate.open()
    pid, port = gate.pid(), free_port()
    gate.sshd(port=port).ensure()
    assert not alive(pid)
    assert ask(gate.key.command(gate.member(port=port)), CHECK, timeout=LIMIT)


def test_a_port_that_is_taken_is_told(gate: Gate) -> None:
    with socket.socket() as sock:
        sock.bind(("0.0.0.0", gate.port))
        sock.listen()
        with pytest.raises(SshdError, match=f"on port {gate.port}: .*Address already in use"):
            gate.sshd().ensure()
    gate.sshd().ensure()


def test_a_folder_that_others_can_write_to_is_not_used(gate: Gate) -> None:
    gate.sshd().authorize(gate.key.public)
    (gate.root / "sshd").chmod(0o777)
    # As root it is made passable first, which takes that right away.
    if os.geteuid() == 0:
        os.chown(gate.root / "sshd", gate.account.pw_uid, -1)
    with pytest.raises(SshdError, match="can be written to by others"):
        gate.sshd().ensure()


def test_newer_servers_do_not_lock_the_head_out() -> None:
    lines = [
        config(Path("/x"), port=1, user="u", relay=("r",), version=version).splitlines()
        for version in ((9, 7), (9, 8), (10, 0), (0, 0))
    ]
    assert ["PerSourcePenalties no" in each for each in lines] == [False, True, True, False]


def test_a_relay_that_its_user_cannot_run_is_told(gate: Gate) -> None:
    if os.geteuid() != 0:
        pytest.skip("machine: files of another user: only root can make them")
    gate.relay()
    (gate.root / "relay.py").chmod(0o600)
    with pytest.raises(SshdError, match=r"may not read .*/relay\.py: install simagent where"):
        gate.sshd().ensure()


@pytest.mark.parametrize(
    ("user", "why"),
    [("root", "root is not let in"), ("daemon", "no shell"), ("nobody-is-so-called", "no user")],
)
def test_a_user_who_cannot_be_let_in_is_told_beforehand(gate: Gate, user: str, why: str) -> None:
    if os.geteuid() != 0 and user == "daemon":
        why = "its own user alone"
    sshd = gate.sshd(user=user)
    assert why in (sshd.trouble() or "")
    with pytest.raises(SshdError, match=why):
        sshd.ensure()
    assert gate.sshd().trouble() is None


def test_files_are_readable_to_who_needs_them_alone(gate: Gate) -> None:
    gate.open()
    folder = gate.root / "sshd"
    for name in ("host_key", "sshd.json", "sshd.log"):
        assert (folder / name).stat().st_mode & 0o077 == 0, name
    assert (gate.root / HEAD).stat().st_mode & 0o077 == 0
    assert (gate.root / HEAD / "key").stat().st_mode & 0o077 == 0
    if os.geteuid() == 0:
        assert (folder / "host_key").stat().st_uid == gate.account.pw_uid
        assert (folder / "authorized_keys").stat().st_uid == 0
        assert folder.stat().st_uid == 0


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("address", "-oProxyCommand=reboot"),
        ("address", "a b"),
        ("ssh_user", "-l"),
        ("host_key", "ssh-ed25519 AAAA\n* ssh-ed25519 BBBB"),
        ("host_key", ""),
    ],
)
def test_what_members_tell_of_themselves_never_turns_into_options(
    gate: Gate, field: str, value: str
) -> None:
    with pytest.raises(SshError, match=r"host b: .* is no "):
        gate.key.command(gate.member(**{field: value}))


def test_a_key_of_a_head_is_kept(gate: Gate) -> None:
    public = gate.key.public
    assert public.startswith("ssh-ed25519 ")
    assert HeadKey(gate.root / HEAD).public == public
    (gate.root / HEAD / "key.pub").unlink()
    assert HeadKey(gate.root / HEAD).public == public


def test_nobodys_key_but_a_heads_is_let_in(gate: Gate) -> None:
    for key in ('command="reboot" ssh-ed25519 AAAA', f"{gate.key.public}\n{gate.key.public}"):
        with pytest.raises(SshdError, match="is no key of a head"):
            gate.sshd().authorize(key)


@pytest.fixture
def step(gate: Gate) -> Iterator[tuple[subprocess.Popen[bytes], Path]]:
    """A broker whose step has entered the member by ssh."""
    gate.open()
    laid, private = gate.root / "launch", gate.root / "private"
    launch.lay(laid, uid=os.getuid(), gid=os.getgid())
    peer = broker.Peer(name="b", ssh=gate.key.command(gate.member()), enter=enter(""))
    pace = Pace(beat=0.1, silent=SILENT, contact=LIMIT)
    broker.write_plan(private, laid, {"127.0.0.1": peer}, pace=pace, limit=LIMIT)
    process = subprocess.Popen(broker.command(private), stdin=subprocess.DEVNULL)
    call = subprocess.Popen([launch.program(laid), "127.0.0.1", "sleep 600"])
    happened(private, "entered")
    yield process, private
    for each in (process, call):
        each.kill()
        each.wait()


def happened(private: Path, event: str) -> broker.Happening:
    def found() -> list[broker.Happening]:
        return [each for each in broker.read_events(private)[0] if each.event == event]

    until(found, event)
    return found()[0]


def test_hosts_are_left_in_order_by_ssh(
    gate: Gate, step: tuple[subprocess.Popen[bytes], Path]
) -> None:
    process, private = step
    process.terminate()
    assert process.wait(LIMIT) == 0
    assert happened(private, "exited").signal == 9
    until(lambda: not gate.relays(), "the end of the relay")


def test_a_relay_that_stands_still_is_a_lost_host(
    gate: Gate, step: tuple[subprocess.Popen[bytes], Path]
) -> None:
    (pid,) = gate.relays()
    began = time.monotonic()
    os.kill(pid, signal.SIGSTOP)
    assert "nothing was heard of it for 4 s" in happened(step[1], "lost").why
    assert time.monotonic() - began < 4 * SILENT


def test_a_cut_connection_is_a_lost_host(
    gate: Gate, step: tuple[subprocess.Popen[bytes], Path]
) -> None:
    for pid in beneath(gate.pid()):
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    assert happened(step[1], "lost").why
    until(lambda: not gate.agent.running, "the end of what ran there")


def beneath(listener: int) -> list[int]:
    """List the processes of a server's connections, with what runs over them."""
    children = [process.pid for process in shim.descendants(listener)]
    assert children
    return children


def test_a_killed_broker_ends_what_runs_on_the_hosts(
    gate: Gate, step: tuple[subprocess.Popen[bytes], Path]
) -> None:
    step[0].kill()
    until(lambda: gate.agent.left, "the end of the entry, as its connection closed")
    assert gate.agent.running == []
