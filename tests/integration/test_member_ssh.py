"""A member that is entered as in earnest: by ssh, with the head's key, through its own server."""

import os
import pwd
import shutil
import site
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

import simagent
from engines.ports import free_port
from fakes.memberlab import MemberLab, pid_in, wait_for
from fakes.steps import alive
from simagent.cluster.calls import ask
from simagent.cluster.connection import Connection, HostRefusedError
from simagent.cluster.messages import Checked, Exited, Sampled, Started
from simagent.cluster.ssh import HeadKey
from simagent.domain.cluster import Member

AGENT = str(Path(simagent.__file__).parents[1])
PATH = f"{os.environ.get('PATH', os.defpath)}:/usr/local/sbin:/usr/sbin:/sbin"


@pytest.fixture(scope="module")
def user() -> Iterator[str]:
    """Whom the member lets in: who runs the tests, but for root a user made for them."""
    for program in ("sshd", "ssh", "ssh-keygen"):
        if shutil.which(program, path=PATH) is None:
            pytest.skip(f"{program} is missing: make test installs openssh")
    if os.geteuid() != 0:
        yield pwd.getpwuid(os.getuid()).pw_name
        return
    name = f"simagent-in-{os.getpid()}"
    add = ["useradd", "--system", "--no-create-home", "--shell", "/bin/sh", name]
    subprocess.run(add, check=True, env={"PATH": PATH})
    yield name
    remove = ["userdel", name]  # refuses while a last process of that user is about to end
    env = {"PATH": PATH}
    wait_for(
        lambda: not subprocess.run(remove, check=False, env=env, capture_output=True).returncode,
        "the end of all that runs as this user",
    )


def python_of_all() -> tuple[str, ...]:
    """Give a Python that the user who is let in can run, too, and that can run the agent."""
    wanted = [str(number) for number in sys.version_info[:2]]
    for path in (sys.executable, "/usr/bin/python3"):
        argv = [path, "-c", "import sys; print(*sys.version_info[:2])"]
        other = 65534 if os.geteuid() == 0 else None
        with suppress(OSError):
            told = subprocess.run(argv, capture_output=True, text=True, check=False, user=other)
            if told.stdout.split() == wanted:
                return (path, "-S")
    pytest.skip("machine: no user but root can run a Python of this version")


@pytest.fixture
def lab(user: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[MemberLab]:
    folder = Path(tempfile.mkdtemp(prefix="simagent-test-"))
    folder.chmod(0o755)  # for the user who is let in, as /var/lib is
    lab = MemberLab(folder, ssh_port=free_port(), ssh_user=user)
    lab.python = python_of_all()
    # It has the packages of this one, and none of its own, which may not go together with them.
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([AGENT, *site.getsitepackages()]))
    yield lab
    lab.end()
    for server in servers(lab):
        server.kill()
    shutil.rmtree(folder, ignore_errors=True)


def servers(lab: MemberLab) -> list[psutil.Process]:
    """List the ssh servers of the member, but for those of connections."""
    config = str(lab.state / "member" / "sshd" / "sshd_config")
    return [p for p in psutil.process_iter(["cmdline"]) if config in (p.info["cmdline"] or [])]


def able(lab: MemberLab) -> Member:
    """Wait until the member can take part."""
    record = wait_for(
        lambda: (now := lab.record()) and now.host_key and not now.trouble and now, "the member"
    )
    assert isinstance(record, Member)
    return record


def test_the_head_enters_by_its_key_and_stays_through_a_crash_of_the_agent(lab: MemberLab) -> None:
    key = HeadKey(lab.folder / "head")
    lab.name_attempts(lab.attempt, key=key.public)
    lab.start()
    command = key.command(able(lab))
    with lab.token():
        assert isinstance(ask(command, lab.check(), timeout=30.0), Checked)
    run = lab.enter("echo $$ >pid; until [ -e go ]; do sleep 0.05; done; exit 5")
    with Connection(command, run) as connection:
        assert isinstance(connection.next(30.0), Started)
        pid = pid_in(lab.work / "pid")
        (server,) = servers(lab)
        lab.kill()
        lab.start()
        assert isinstance(connection.next(30.0), Started | Sampled)
        assert alive(pid)
        assert servers(lab) == [server]
        (lab.work / "go").touch()
        while not isinstance(event := connection.next(30.0), Exited):
            assert event is not None
        assert event.code == 5
    assert lab.process is not None
    lab.process.terminate()
    assert lab.process.wait(60) == 0
    assert servers(lab) == [server], "the next agent takes it up"


def test_a_head_that_is_not_one_any_more_is_not_let_in(lab: MemberLab) -> None:
    old, new = HeadKey(lab.folder / "old"), HeadKey(lab.folder / "new")
    lab.name_attempts(lab.attempt, key=old.public)
    lab.start()
    record = able(lab)
    with lab.token():
        assert isinstance(ask(old.command(record), lab.check(), timeout=30.0), Checked)
        lab.name_attempts(lab.attempt, key=new.public)

        def refused() -> bool:
            try:
                ask(old.command(record), lab.check(), timeout=30.0)
            except HostRefusedError as error:
                return "Permission denied" in str(error)
            return False

        wait_for(refused, "the old head to be refused")
        assert isinstance(ask(new.command(record), lab.check(), timeout=30.0), Checked)


def test_a_member_that_is_drained_takes_its_server_with_it(lab: MemberLab) -> None:
    lab.start()
    able(lab)
    assert len(servers(lab)) == 1
    lab.drain()
    assert servers(lab) == []
    assert lab.record() is None
