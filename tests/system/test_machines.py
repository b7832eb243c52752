"""The lab itself: machines boot, do as systemd says, and bear the faults that they are to bear."""

from functools import partial
from pathlib import Path

import pytest

from system.machines import SUITES, Lab, Machine

_UNIT = """\
[Service]
ExecStart=/bin/sh -c 'echo up; exec sleep 1000'
[Install]
WantedBy=multi-user.target
"""


@pytest.mark.parametrize("suite", SUITES)
def test_a_machine_boots_and_reboots(suite: str, machines: Lab) -> None:
    machine = machines.boot(suite)
    assert machine.is_up() == "running", machine.told()
    assert f"VERSION_CODENAME={suite}" in machine.read("/etc/os-release")
    machine.write("/etc/systemd/system/sleeper.service", _UNIT)
    machine.systemctl("daemon-reload")
    machine.systemctl("enable", "--now", "sleeper")
    machine.until(lambda: machine.journal("sleeper").count("up\n") == 1)
    identity = machine.read("/etc/machine-id")
    machine.reboot()
    machine.until(lambda: machine.journal("sleeper").count("up\n") == 2)
    machine.crash()
    machine.until(lambda: machine.journal("sleeper").count("up\n") == 3)
    assert machine.is_active("sleeper")
    assert machine.read("/etc/machine-id") == identity


def test_two_machines_share_a_network_until_one_is_cut_off(machines: Lab) -> None:
    one = machines.boot(name="one")
    machines.boot("bookworm", name="two")
    server = machines.aws.endpoint
    get = ("python3", "-c", f"import urllib.request as r; r.urlopen({server!r}, timeout=3)")
    reaches = partial(_succeeds, one, *get)
    one.until(reaches)
    assert one.run("getent", "hosts", "two").returncode == 0
    one.cut_off()
    assert not reaches()
    one.join()
    one.until(reaches)


def _succeeds(machine: Machine, *argv: str) -> bool:
    return machine.run(*argv, check=False).returncode == 0


def test_what_a_machine_has_been_given(machines: Lab, tmp_path: Path) -> None:
    (tmp_path / "note").write_text("read me")
    machine = machines.boot(disk_mb=8, folders={tmp_path: "/given"})
    assert machine.read("/given/note") == "read me"
    fill = ("dd", "if=/dev/zero", "of=/var/lib/simagent/all", "bs=1M", "count=16")
    assert "No space left" in machine.run(*fill, check=False).stderr
    machine.copy_in(tmp_path / "note", "/root/copied")
    assert machine.read("/root/copied") == "read me"
    table = "table inet lab { chain out { type filter hook output priority 0; }; }"
    machine.run("nft", "-f", "-", stdin=table.encode())
    assert "apptainer version" in machine.run("apptainer", "--version").stdout
    machine.shut_down()
    assert not machine.is_on
