"""What the agent says of itself and costs as its service, when there is nothing to do."""

import json
import os
import stat
import threading
from collections.abc import Callable
from pathlib import Path

from system.machines import Lab, Machine

SECONDS = 30.0
SOCKET = "/var/lib/simagent/status"
MEMORY = 80e6  # bytes


def ticks(machine: Machine, pid: int) -> int:
    """Give what a process has used of processors."""
    fields = machine.read(f"/proc/{pid}/stat").rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12])


def memory(machine: Machine, pid: int) -> int:
    """Give the bytes of a process that are in memory."""
    lines = machine.read(f"/proc/{pid}/status").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmRSS:"))


def test_an_idle_service_is_small_and_says_how_it_stands(
    machines: Lab, package: Callable[[str], Path], measured: Callable[[str], None]
) -> None:
    machine = machines.boot(package=package("trixie"))
    machine.configure(allow_process=True, metrics_listen=9101)
    machine.systemctl("start", "simagent")
    machine.write("/root/task.toml", 'commands = ["true"]\n')
    machine.simagent("wait", machine.simagent("submit", "/root/task.toml").split()[-1])
    told = json.loads(machine.simagent("status", "--json"))
    pid = told["pid"]
    assert pid == int(machine.shows("simagent", "MainPID"))
    assert (told["stage"], told["hangs"], told["notices"]) == ("taking_tasks", False, [])
    assert stat.S_IMODE(int(machine.run("stat", "-c", "%#a", SOCKET).stdout, 8)) == 0o600
    assert machine.run(
        "runuser", "-u", "nobody", "--", "simagent", "status", check=False
    ).returncode

    threading.Event().wait(5)  # what a start leaves to do is not idleness
    before = ticks(machine, pid)
    threading.Event().wait(SECONDS)
    share = (ticks(machine, pid) - before) / os.sysconf("SC_CLK_TCK") / SECONDS
    held = memory(machine, pid)
    measured(f"idle under systemd: {share:.2%} of a core, {held / 1e6:.0f} MB")
    assert held <= MEMORY

    machine.systemctl("stop", "simagent")
    ended = machine.run("simagent", "status", check=False)
    assert ended.returncode == 1
    assert "no agent runs on /var/lib/simagent; it ended at " in ended.stderr
    assert "systemctl status simagent" in ended.stderr
