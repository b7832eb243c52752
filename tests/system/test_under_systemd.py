"""Faults of a machine whose agent systemd keeps: what docs/reliability.md promises, by the clock.

Tasks run without an image, as the user of their slot; those with one are in tests/faults.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fakes.aws import KEYS
from fakes.s3 import make_bucket
from simagent.client import Tasks
from simagent.config_load import load_config
from simagent.domain.spec import Spec
from simagent.queues.sqs_setup import create_queue
from simagent.wiring.tasks import open_tasks
from system.machines import PATIENCE, Lab, Machine

LOOP = "i=0; while [ ! -e go ]; do i=$((i + 1)); echo line $i; sleep 0.1; done; echo end $i"
"""A command that counts until it is let go, or knows that it was begun anew."""
COUNTS = f"""\
grace = "1s"
[[commands]]
run = "{LOOP}"
shell = true
"""
HIDES = """trap 'echo asked; exit' TERM; echo line 3; while :; do sleep 0.1; done"""
ASKED = f"""\
[[commands]]
run = ['sh', '-c', 'setsid sh -c "$0" & wait', "{HIDES}"]
"""
"""What it runs has left its session and waits for SIGTERM."""
FILLS = """\
[[commands]]
run = "dd if=/dev/zero of=big bs=1M; sleep 600"
shell = true
"""
STUBBORN = """\
grace = "5 min"
[[commands]]
run = "trap '' TERM; echo line 3; while :; do sleep 0.1; done"
shell = true
"""
"""It takes all the time that is given to it, and more."""
HASTY = "[Service]\nWatchdogSec=10\nTimeoutAbortSec=3\n"
"""The unit's own times, shorter: half a minute, and 20 seconds, would pass in waiting."""


class Vm:
    """A machine with the package installed, and the task that runs there."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self.task = ""

    def configured(self, **settings: object) -> "Vm":
        """Give the agent its settings, and have it start as at a boot."""
        self.machine.configure(allow_process=True, **settings)
        self.machine.systemctl("start", "simagent")
        return self

    # --- The task ------------------------------------------------------------------------------

    def submit(self, text: str = COUNTS) -> str:
        """Submit a task from the machine itself; give its id."""
        self.machine.write("/root/task.toml", text)
        self.task = self.machine.simagent("submit", "/root/task.toml").split()[-1]
        return self.task

    def runs(self, lines: int = 3) -> int:
        """Wait until the task has counted so far; give its process id."""
        self.machine.until(lambda: f"line {lines}\n" in self.log())
        return self.step() or 0

    def step(self) -> int | None:
        """Give the process id of the task's command, if it runs."""
        found = self.machine.run("pgrep", "--full", "(/bin/)?sh -c i=0; while.*", check=False)
        numbers = found.stdout.split()
        return int(numbers[0]) if numbers else None

    def log(self) -> str:
        return self.machine.run("simagent", "logs", self.task, check=False).stdout

    def state(self) -> dict[str, Any]:
        """Give the task's state."""
        found = json.loads(self.machine.simagent("show", "--json", self.task))
        assert isinstance(found, dict)
        return found

    def attempts(self) -> list[str]:
        """Give why each attempt ended, of the last one nothing where all was well."""
        return [attempt.get("reason") or "" for attempt in self.state()["attempts"]]

    def ends_well(self, attempt: int = 1) -> None:
        """Let the task end; its log is whole, and nothing is left of it."""
        pid = self.runs()
        self.machine.run("touch", f"/proc/{pid}/cwd/go")
        self.machine.simagent("wait", self.task)
        *lines, end = self.log().splitlines()
        assert lines == [f"line {number}" for number in range(1, len(lines) + 1)]
        assert end == f"end {len(lines)}"
        state = self.state()
        assert (state["status"], state["epoch"]) == ("succeeded", attempt)
        self.is_clean()

    def is_clean(self) -> None:
        """See that nothing is left of any task."""
        attempts = "/var/lib/simagent/attempts"
        self.machine.until(lambda: not self.machine.run("ls", attempts, check=False).stdout)
        users = [f"simtask-{number}" for number in range(4)]
        left = self.machine.run("ps", "-o", "args=", "-u", ",".join(users), check=False)
        assert left.stdout == ""
        assert "simagent-shim" not in self.machine.run("ps", "-e", "-o", "comm=").stdout
        found = self.machine.run("find", "/sys/fs/cgroup", "-name", "simagent-default.*")
        assert found.stdout == ""

    # --- The agent -----------------------------------------------------------------------------

    @property
    def agent(self) -> str:
        """The process id of the agent; 0 where none runs."""
        return self.machine.shows("simagent", "MainPID")

    def restarted(self, before: str) -> None:
        """Wait until systemd has started another agent, which is up."""
        self.machine.until(lambda: self.agent not in ("0", before) and self.machine.is_active())


@pytest.fixture
def vm(machines: Lab, package: Callable[[str], Path]) -> Vm:
    return Vm(machines.boot(package=package("trixie")))


def test_an_agent_that_is_killed_is_started_again_and_goes_on(vm: Vm) -> None:
    vm.configured(slots=2)
    vm.submit()
    pid, agent = vm.runs(), vm.agent
    machine = vm.machine
    owner = machine.run("stat", "--format=%U", f"/proc/{pid}").stdout.strip()
    assert owner == "simtask-0"
    told = machine.simagent("doctor", check=False)
    assert "commands of tasks without an image run as simtask-0" in told
    assert "no task gets to 169.254.169.254" in told, told
    machine.run("kill", "-KILL", agent)
    vm.restarted(agent)
    assert machine.shows("simagent", "NRestarts") == "1"
    assert vm.step() == pid
    vm.ends_well()


def test_an_agent_that_hangs_is_found_by_the_watchdog(vm: Vm) -> None:
    vm.machine.write("/etc/systemd/system/simagent.service.d/hasty.conf", HASTY)
    vm.machine.systemctl("daemon-reload")
    vm.configured()
    vm.submit()
    pid, agent = vm.runs(), vm.agent
    vm.machine.run("kill", "-STOP", agent)
    vm.restarted(agent)
    assert "Watchdog timeout" in vm.machine.journal()
    assert vm.step() == pid
    vm.ends_well()


def test_a_reboot_gives_the_task_back_before_and_takes_it_up_after(vm: Vm) -> None:
    vm.configured()
    vm.submit()
    vm.runs()
    vm.machine.reboot()
    vm.machine.until(lambda: vm.machine.is_active() and vm.step())
    assert vm.attempts()[0] == "preempted"
    counters = vm.state()["counters"]
    assert (counters["preemptions"], counters["losses"], counters["errors"]) == (1, 0, 0)
    vm.ends_well(attempt=2)


def test_a_shutdown_waits_for_what_takes_long_to_be_given_back(vm: Vm) -> None:
    """Longer than TimeoutStopSec of the agent, who has told that it ends."""
    vm.configured()
    vm.submit(STUBBORN)
    vm.machine.until(lambda: "line 3\n" in vm.log())
    vm.machine.reboot()
    vm.machine.until(vm.machine.is_active)
    counters = vm.state()["counters"]
    assert (counters["preemptions"], counters["losses"], counters["errors"]) == (1, 0, 0)
    assert vm.attempts()[0] == "preempted"


def test_a_kill_reaches_all_that_a_task_runs(vm: Vm) -> None:
    vm.configured()
    vm.submit(ASKED)
    vm.runs()
    vm.machine.run("simagent", "kill", vm.task)
    vm.machine.simagent("wait", vm.task, check=False)
    assert vm.state()["status"] == "killed"
    assert vm.log() == "line 3\nasked\n"
    vm.is_clean()


def test_stopping_the_service_gives_nothing_back(vm: Vm) -> None:
    vm.configured()
    vm.submit()
    pid = vm.runs()
    vm.machine.systemctl("restart", "simagent-shutdown", check=False)
    vm.machine.systemctl("stop", "simagent")
    assert vm.step() == pid
    vm.machine.systemctl("start", "simagent")
    assert vm.step() == pid
    vm.ends_well()


def test_a_machine_that_loses_power_finds_its_task_lost_and_tries_it_again(vm: Vm) -> None:
    vm.configured()
    vm.submit()
    vm.runs()
    vm.machine.crash()
    vm.machine.until(lambda: vm.machine.is_active() and vm.step())
    # The second where the container's old processes are not gone yet: a machine has none then.
    assert vm.attempts()[0] in ("shim_lost", "agent_error"), vm.state()["attempts"]
    vm.ends_well(attempt=2)


def test_a_task_that_fills_the_disk_ends_and_the_agent_lives(
    machines: Lab, package: Callable[[str], Path]
) -> None:
    vm = Vm(machines.boot(package=package("trixie"), disk_mb=96))
    vm.configured(min_free="8MiB")
    agent = vm.agent
    vm.submit(FILLS)
    vm.machine.simagent("wait", vm.task, check=False)
    state = vm.state()
    assert (state["status"], state["reason"]) == ("failed", "disk_full")
    vm.is_clean()
    assert (vm.agent, vm.machine.shows("simagent", "NRestarts")) == (agent, "0")
    vm.submit()
    vm.ends_well()


def test_a_network_that_is_cut_at_boot_is_waited_for(
    machines: Lab, package: Callable[[str], Path], tmp_path: Path
) -> None:
    aws = machines.aws
    bucket = make_bucket(aws.endpoint, aws.name("lab"), aws.region)
    queue = aws.name("lab")
    create_queue(f"{queue}-default", region=aws.region, endpoint=aws.endpoint)
    engines = {
        "store": bucket.url,
        "s3_endpoint": aws.endpoint,
        "s3_region": aws.region,
        "queue": f"sqs://{queue}-{{group}}",
        "sqs_endpoint": aws.endpoint,
        "sqs_region": aws.region,
    }
    client: Tasks = open_tasks(load_config(None, state_dir=tmp_path / "client", **engines))
    keys = "".join(f"{name.lower()} = {value}\n" for name, value in KEYS.items())
    vm = Vm(machines.boot(package=package("trixie")))
    machine = vm.machine
    machine.write("/etc/credstore/simagent.aws", f"[default]\n{keys}", 0o600)
    machine.configure(allow_process=True, **engines)
    machine.cut_off()
    machine.reboot()
    told = machine.until(lambda: machine.shows("simagent", "StatusText") or None)
    spec = Spec.model_validate({"commands": [{"run": LOOP, "shell": True}], "grace": 1})
    task = client.submit(spec, base=tmp_path)
    machine.join()
    machine.until(lambda: client.state(task).status == "running")
    pid = machine.until(vm.step)
    assert machine.is_active()
    assert machine.shows("simagent", "NRestarts") == "0", f"it waited: {told}"

    machine.cut_off()
    machine.until(lambda: "telemetry is late" in machine.journal(), 2 * PATIENCE)
    assert vm.step() == pid
    machine.join()
    machine.run("touch", f"/proc/{pid}/cwd/go")
    machine.until(lambda: client.state(task).terminal or None)
    state = client.state(task)
    assert (state.status, state.epoch) == ("succeeded", 1)
    vm.is_clean()
