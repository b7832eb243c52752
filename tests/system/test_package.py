"""The Debian package: installed without a network, upgraded beneath a running task, purged."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from engines.dockerd import EngineError
from system.machines import SUITES, Lab, Machine
from system.packages import NEWER, newer

_COUNTS = """\
name = "counts"
grace = "1s"
[[commands]]
run = "i=0; while [ ! -e go ]; do i=$((i + 1)); echo line $i; sleep 0.05; done; echo end $i"
shell = true
"""
_PASSING = ("/proc", "/sys", "/run", "/dev", "/root", "/tmp", "/var/tmp", "/var/log")
_INSTALL = ("dpkg", "--force-unsafe-io", "--install")
_THEIRS = "/sys/fs/cgroup/user.slice/simagent.service"
_RUNS = f"setsid sh -c 'echo $$ >{_THEIRS}/cgroup.procs; exec sleep 1000'"
_OURS = "/opt/simagent /etc/simagent /var/lib/simagent /usr/share/simagent /usr/bin/simagent"


def settle(machine: Machine) -> str:
    """Start the agent with embedded queue and store, and a task that counts; give the task's id."""
    machine.configure(allow_process=True)
    machine.systemctl("start", "simagent")
    machine.write("/root/task.toml", _COUNTS)
    task = machine.simagent("submit", "/root/task.toml").split()[-1]
    machine.until(lambda: "line 3\n" in machine.simagent("logs", task))
    return task


def step(machine: Machine) -> int:
    """Give the process id, on the machine, of the task's command."""
    found = machine.run(
        "pgrep", "--oldest", "--exact", "--full", "(/bin/)?sh -c i=0;.*", check=False
    )
    return int(found.stdout)


def files(machine: Machine) -> set[str]:
    """List what the machine has but for what changes with each command."""
    passing = [f"-path {path}" for path in _PASSING]
    found = machine.run("sh", "-c", f"find / \\( {' -o '.join(passing)} \\) -prune -o -print")
    return {line for line in found.stdout.splitlines() if not line.startswith("/var/lib/dpkg/")}


def install(machine: Machine, package: Path) -> str:
    """Install a package; give what is printed."""
    machine.copy_in(package, "/root/simagent.deb")
    done = machine.run(*_INSTALL, "/root/simagent.deb", seconds=600)
    return done.stdout + done.stderr


@pytest.mark.parametrize("suite", SUITES)
def test_a_package_is_installed_and_goes(
    suite: str, machines: Lab, package: Callable[[str], Path]
) -> None:
    machine = machines.boot(suite)
    before, users = files(machine), machine.read("/etc/passwd")
    machine.write("/opt/simagent/pyvenv.cfg", "made by hand")
    with pytest.raises(EngineError, match="installed by hand"):
        install(machine, package(suite))
    machine.run("rm", "-r", "/opt/simagent")
    printed = install(machine, package(suite))
    assert "it starts once there is /etc/simagent/agent.toml" in printed
    assert machine.is_up() == "running", machine.told()
    assert machine.systemctl("is-enabled", "simagent") == "enabled"
    assert machine.shows("simagent", "ConditionResult") == "no"
    assert not machine.is_active()
    assert machine.systemctl("is-enabled", "simagent-member", check=False) == "disabled"
    machine.reboot()
    assert not machine.is_active()
    assert "simtask-31" in machine.read("/etc/passwd")
    # What starts it need not be root, nor may it write bytecode.
    assert re.match(r"simagent \d", machine.run("simagent", "--version", user="nobody").stdout)
    verified = machine.run("dpkg", "--verify", "simagent").stdout
    assert [line for line in verified.splitlines() if "/usr/share/doc/" not in line] == []

    # As an agent that a user's own systemd has.
    machine.run("sh", "-c", f"mkdir -p {_THEIRS} && {_RUNS} </dev/null >/dev/null 2>&1 &")
    task = settle(machine)
    pid = step(machine)
    removed = machine.run("dpkg", "--remove", "simagent")
    assert "tasks still run" in removed.stderr
    assert step(machine) == pid
    assert not machine.is_active()
    assert machine.run("dpkg", "--purge", "simagent").stderr == ""
    assert task not in machine.run("ps", "-e", "-o", "args").stdout
    assert machine.run("pgrep", "--full", "i=0; while", check=False).stdout == ""
    assert machine.run("sh", "-c", f"ls -d {_OURS}", check=False).stdout == ""
    theirs = machine.run("cat", f"{_THEIRS}/cgroup.procs").stdout.strip()
    machine.run("sh", "-c", f"kill {theirs} && until rmdir {_THEIRS}; do sleep 0.1; done")
    assert machine.run("find", "/sys/fs/cgroup", "-name", "simagent*").stdout == ""
    assert set(machine.read("/etc/passwd").split()) == set(users.split())
    assert machine.systemctl("list-unit-files", "--no-legend", "simagent*", check=False) == ""
    assert files(machine) - before == set()
    assert machine.is_up() == "running", machine.told()


@pytest.mark.parametrize("suite", SUITES)
def test_an_upgrade_keeps_the_running_task(
    suite: str, machines: Lab, package: Callable[[str], Path], tmp_path: Path
) -> None:
    machine = machines.boot(suite, package=package(suite))
    task = settle(machine)
    pid, agent = step(machine), machine.shows("simagent", "MainPID")
    printed = install(machine, newer(package(suite), tmp_path))
    assert "does not start" not in printed
    assert machine.is_active()
    assert machine.shows("simagent", "MainPID") != agent
    assert NEWER in machine.simagent("--version")
    assert step(machine) == pid
    seen = machine.simagent("logs", task).count("\n")
    machine.until(lambda: machine.simagent("logs", task).count("\n") > seen + 3)
    machine.run("touch", f"/proc/{pid}/cwd/go")
    machine.simagent("wait", task)
    *lines, end = machine.simagent("logs", task).splitlines()
    assert lines == [f"line {number}" for number in range(1, len(lines) + 1)]
    assert end == f"end {len(lines)}"
    assert json.loads(machine.simagent("show", task, "--json"))["epoch"] == 1
    assert machine.run("sh", "-c", "ls -A /var/lib/simagent/attempts").stdout == ""


def test_an_upgrade_starts_no_agent_that_was_stopped(
    machines: Lab, package: Callable[[str], Path], tmp_path: Path
) -> None:
    machine = machines.boot(package=package("trixie"))
    machine.configure(allow_process=True)
    machine.systemctl("start", "simagent")
    machine.systemctl("stop", "simagent")
    install(machine, newer(package("trixie"), tmp_path))
    assert not machine.is_active()
    machine.systemctl("disable", "simagent")
    install(machine, package("trixie"))
    assert machine.systemctl("is-enabled", "simagent", check=False) == "disabled"
