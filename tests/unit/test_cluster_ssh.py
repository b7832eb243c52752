"""The command line by which the head enters a member, as ssh itself understands it."""

import os
import shutil
import subprocess
import threading
from pathlib import Path

import pytest

from simagent.cluster.keyfiles import make_key
from simagent.cluster.ssh import HeadKey, SshError
from simagent.cluster.sshd import Sshd
from simagent.domain.cluster import Member

HOST_KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIGJ1dCBub3QgYSBrZXkgb2YgYW55Ym9keSBhdCBhbGw="


def member(**changes: object) -> Member:
    return Member(
        agent="m",
        incarnation="1",
        host="b",
        address="10.0.0.2",
        port=2222,
        ssh_user="sim",
        host_key=HOST_KEY,
        slots=1,
        uid=1000,
    ).with_(**changes)


@pytest.fixture
def needs_ssh() -> None:
    if shutil.which("ssh") is None:
        pytest.skip("ssh is missing: make test installs openssh")


def understood(command: tuple[str, ...]) -> dict[str, str]:
    """Ask ssh what it would do."""
    program, *words = command
    told = subprocess.run([program, "-G", *words], check=True, capture_output=True, text=True)
    return dict(line.split(" ", 1) for line in told.stdout.splitlines() if " " in line)


@pytest.mark.usefixtures("needs_ssh")
@pytest.mark.parametrize("folder", ["head", "with blanks", "100%h"])
def test_nothing_but_the_heads_own_key_and_the_members_is_used(
    tmp_path: Path, folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSH_AUTH_SOCK", "/somewhere")
    key = HeadKey(tmp_path / folder)
    command = key.command(member())
    told = understood(command)
    assert (told["hostname"], told["port"], told["user"]) == ("10.0.0.2", "2222", "sim")
    for name, value in {
        "batchmode": "yes",
        "stricthostkeychecking": "true",
        "hostkeyalgorithms": "ssh-ed25519",
        "identityagent": "none",
        "identitiesonly": "yes",
        "passwordauthentication": "yes",  # of no use: only keys are tried
        "preferredauthentications": "publickey",
        "clearallforwardings": "yes",
        "forwardagent": "no",
        "forwardx11": "no",
        "permitlocalcommand": "no",
        "controlmaster": "false",
        "updatehostkeys": "false",
        "globalknownhostsfile": "/dev/null",
        "connecttimeout": "10",
    }.items():
        assert told[name] == value, name
    known = Path(told["userknownhostsfile"].replace("%%", "%"))
    assert known.read_text() == f"{told['hostkeyalias']} {HOST_KEY}\n"
    assert told["identityfile"].replace("%%", "%") == str(tmp_path / folder / "key")


@pytest.mark.usefixtures("needs_ssh")
def test_what_was_known_of_a_member_stays_for_connections_that_were_begun(tmp_path: Path) -> None:
    key = HeadKey(tmp_path)
    key.command(member())
    key.command(member(host_key=HOST_KEY.replace("R1dCB", "R1eCB").replace("AIGJ", "AIGK")))
    assert len(list(tmp_path.glob("known_hosts.*"))) == 2


@pytest.mark.usefixtures("needs_ssh")
def test_a_folder_that_ssh_cannot_name_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "a${HOME}b"
    with pytest.raises(SshError, match="choose another state_dir"):
        HeadKey(folder).command(member())


def test_what_is_not_installed_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    key = HeadKey(tmp_path / "head")
    assert key.trouble() == "ssh and ssh-keygen not found: install openssh-client"
    with pytest.raises(SshError, match="install openssh-client"):
        key.command(member())
    with pytest.raises(SshError, match="ssh-keygen not found: install openssh-client"):
        _ = key.public
    monkeypatch.setattr("simagent.cluster.sshd._SBIN", ())
    sshd = Sshd(tmp_path / "sshd", port=1, user="somebody", relay=())
    assert sshd.trouble() == "sshd not found: install openssh-server"


@pytest.mark.usefixtures("needs_ssh")
def test_a_key_that_cannot_be_kept_is_told_with_its_place(tmp_path: Path) -> None:
    (tmp_path / "head").write_text("a file")
    with pytest.raises(SshError, match="head/key"):
        _ = HeadKey(tmp_path / "head").public


def test_two_who_ask_for_a_key_first_have_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Each key that it makes is another one, the second is there sooner, and its name takes a while.
    keygen = tmp_path / "ssh-keygen"
    keygen.write_text(
        """#!/bin/sh
        for file; do :; done
        if mkdir "$COUNT"; then first=1 pause=0.6; else first=2 pause=0.2; fi
        sleep $pause
        echo "private $first" >"$file"
        echo "ssh-ed25519 $first comment" >"$file.pub"
        """
    )
    keygen.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setenv("COUNT", str(tmp_path / "count"))
    told: list[str] = []
    asking = [
        threading.Thread(target=lambda: told.append(make_key(tmp_path / "keys" / "key")))
        for _ in range(2)
    ]
    for thread in asking:
        thread.start()
    for thread in asking:
        thread.join(60)
    assert len(told) == 2
    assert len(set(told)) == 1
    private = (tmp_path / "keys" / "key").read_text().split()[1]
    assert told[0].split()[1] == private
