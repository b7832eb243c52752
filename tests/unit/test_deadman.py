"""What powers off a machine whose agent cannot run: the shell script, with a systemctl of ours."""

import os
import subprocess
from dataclasses import dataclass, field
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "systemd" / "deadman.sh"
LOOK = 60
LOOKS = 6
AFTER = LOOKS * LOOK
BOOTED = 120
"""Seconds of uptime at the first look, as the timer has it."""
AGENT, MEMBER = "simagent.service", "simagent-member.service"

ACTIVE = {
    "LoadState": "loaded",
    "UnitFileState": "enabled",
    "ActiveState": "active",
    "SubState": "running",
    "Result": "success",
    "Restart": "always",
    "ConditionResult": "yes",
    "ConditionTimestampMonotonic": "5000000",
    "ActiveEnterTimestampMonotonic": "5500000",
}
BY_HAND = ACTIVE | {"UnitFileState": "disabled"}
RELOADING = ACTIVE | {"ActiveState": "reloading"}
RESTARTING = ACTIVE | {
    "ActiveState": "activating",
    "SubState": "auto-restart",
    "Result": "exit-code",
}
STARTING = RESTARTING | {"SubState": "start", "Result": "success"}
STOPPING = ACTIVE | {"ActiveState": "deactivating", "SubState": "stop-sigterm"}
STOPPED = ACTIVE | {"ActiveState": "inactive", "SubState": "dead"}
UNCONFIGURED = STOPPED | {"ConditionResult": "no"}
NEVER_TRIED = STOPPED | {"ConditionTimestampMonotonic": "0", "ConditionResult": "no"}
BROKEN_UNIT = STOPPED | {"LoadState": "bad-setting"}
FAILED = STOPPED | {"ActiveState": "failed", "SubState": "failed", "Result": "exit-code"}
KILLED_AT_ITS_STOP = FAILED | {"Result": "timeout"}
NEVER_RESTARTED = FAILED | {"Restart": "no"}
TOO_OFTEN = FAILED | {"Result": "start-limit-hit"}
DISABLED = NEVER_TRIED | {"UnitFileState": "disabled"}
MASKED = NEVER_TRIED | {"LoadState": "masked", "UnitFileState": "masked", "Restart": "no"}
NOT_THERE = NEVER_TRIED | {"LoadState": "not-found", "UnitFileState": "", "Restart": "no"}
MUTE: dict[str, str] = {}


@dataclass
class Machine:
    """A machine of files; ``told`` is what it was told to do."""

    folder: Path
    now: int = BOOTED
    after: str = str(AFTER)
    uptime: str = "{now}.42 12345.67\n"
    said: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        for name in ("bin", "proc", "run", "dev/pts"):
            (self.folder / name).mkdir(parents=True)
        (self.folder / "dev/tty1").touch()
        (self.folder / "dev/pts/ptmx").touch()
        self.has(AGENT, DISABLED)
        self.has(MEMBER, DISABLED)
        self.is_booting(False)
        self.obeys()

    def has(self, unit: str, properties: dict[str, str]) -> None:
        text = "".join(f"{name}={value}\n" for name, value in properties.items())
        (self.folder / unit).write_text(text)

    def starts(self, unit: str = AGENT) -> None:
        """The unit becomes active now, another one than before."""
        since = str(self.now * 1_000_000)
        self.has(unit, ACTIVE | {"ActiveEnterTimestampMonotonic": since})

    def is_booting(self, it_is: bool) -> None:
        (self.folder / "system").write_text("starting" if it_is else "degraded")

    def runs(self, *argv: str, cgroup: str = "/user.slice/session-1.scope") -> Path:
        number = len(list((self.folder / "proc").glob("[0-9]*"))) + 4711
        process = self.folder / "proc" / str(number)
        process.mkdir()
        (process / "cmdline").write_text("".join(f"{word}\0" for word in argv))
        (process / "cgroup").write_text(f"0::{cgroup}\n")
        return process / "cmdline"

    def obeys(self, only: str = "poweroff") -> None:
        systemctl = self.folder / "bin" / "systemctl"
        systemctl.write_text(
            f'#!/bin/sh\nfor last; do :; done\ncd "{self.folder}"\ncase $1 in\n'
            'show) cat "$last" ;;\nis-system-running) cat system; exit 1 ;;\n'
            f'*) echo "$*" >>told; [ "$*" = "{only}" ] ;;\nesac\n'
        )
        systemctl.chmod(0o755)

    @property
    def mark(self) -> Path:
        return self.folder / "run" / "looks"

    @property
    def dead(self) -> int:
        """Seconds without an agent, as the script counts them."""
        return int(self.mark.read_text().split()[1])

    def look(self) -> str:
        (self.folder / "proc" / "uptime").write_text(self.uptime.format(now=self.now))
        done = subprocess.run(
            ["/bin/sh", str(SCRIPT)],
            env={
                "PATH": f"{self.folder}/bin:/usr/bin:/bin",
                "RUNTIME_DIRECTORY": str(self.folder / "run"),
                "DEADMAN_PROC": str(self.folder / "proc"),
                "DEADMAN_DEV": str(self.folder / "dev"),
                "DEADMAN_AFTER": self.after,
            },
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )
        self.said.append(done.stdout + done.stderr)
        return self.said[-1]

    def minutes(self, looks: int) -> str:
        """Look so often, a minute apart, unless it is powered off; give what was said last."""
        for _ in range(looks):
            if not self.told:
                self.now += LOOK
                self.look()
        return self.said[-1]

    @property
    def told(self) -> list[str]:
        try:
            return (self.folder / "told").read_text().splitlines()
        except FileNotFoundError:
            return []


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


WELL = {
    "active": ACTIVE,
    "active, by hand": BY_HAND,
    "reloading": RELOADING,
    "stopped": STOPPED,
    "killed at its stop": KILLED_AT_ITS_STOP,
    "exit code at its stop": FAILED,
    "disabled": DISABLED,
    "disabled, tried": DISABLED | {"ConditionTimestampMonotonic": "5000000"},
    "failed, and masked": MASKED | {"ActiveState": "failed", "Result": "timeout"},
    "masked": MASKED,
    "masked until the next boot": MASKED | {"UnitFileState": "masked-runtime"},
    "removed": NOT_THERE,
}


@pytest.mark.parametrize("properties", WELL.values(), ids=WELL)
@pytest.mark.parametrize("unit", [AGENT, MEMBER])
def test_a_machine_with_an_agent_or_without_one_on_purpose_stays_on(
    machine: Machine, unit: str, properties: dict[str, str]
) -> None:
    machine.has(unit, properties)
    machine.look()
    assert machine.minutes(2) == ""
    assert machine.told == []
    assert machine.dead == 0


CANNOT_RUN = {
    "starting": STARTING,
    "restarting": RESTARTING,
    "stopping for ever": STOPPING,
    "not configured": UNCONFIGURED,
    "what it needs failed": NEVER_TRIED,
    "its unit is broken": BROKEN_UNIT,
    "failed without a restart": NEVER_RESTARTED,
    "failed too often": TOO_OFTEN,
}


@pytest.mark.parametrize("properties", CANNOT_RUN.values(), ids=CANNOT_RUN)
@pytest.mark.parametrize("unit", [AGENT, MEMBER])
def test_a_machine_whose_agent_cannot_run_is_powered_off(
    machine: Machine, unit: str, properties: dict[str, str]
) -> None:
    machine.has(unit, properties)
    assert f"power-off in {AFTER} s" in machine.look()
    assert "power-off in 60 s" in machine.minutes(LOOKS - 1)
    assert machine.told == []
    assert "powering off" in machine.minutes(1)
    assert machine.told == ["poweroff"]


def test_an_agent_that_crashes_or_hangs_again_and_again_cannot_run(machine: Machine) -> None:
    for _ in range(LOOKS + 2):
        machine.starts()
        machine.minutes(1)
    assert machine.told == ["poweroff"]


def test_one_that_crashes_again_and_again_is_not_always_seen_in_the_same_state(
    machine: Machine,
) -> None:
    for _ in range(LOOKS):
        machine.starts()
        machine.minutes(1)
        machine.has(AGENT, RESTARTING)
        machine.minutes(1)
    assert machine.told == ["poweroff"]


def test_an_agent_that_was_stopped_for_a_member_that_crashes_does_not_hold_the_machine(
    machine: Machine,
) -> None:
    machine.has(AGENT, STOPPED)
    machine.has(MEMBER, RESTARTING)
    machine.minutes(LOOKS + 1)
    assert machine.told == ["poweroff"]


def test_an_agent_that_is_started_again_now_and_then_is_well(machine: Machine) -> None:
    """As by upgrades, or crashes that are far between."""
    for _ in range(3):
        machine.starts()
        machine.minutes(2)
        assert machine.dead == 0
        machine.has(AGENT, RESTARTING)
        machine.minutes(1)
    assert machine.told == []


def test_an_agent_that_can_run_again_just_in_time_is_waited_for(machine: Machine) -> None:
    machine.has(AGENT, RESTARTING)
    machine.minutes(LOOKS)
    machine.starts()
    assert "power-off unless it stays" in machine.minutes(1)
    assert machine.minutes(1) == ""
    assert machine.dead == 0
    assert machine.told == []


@pytest.mark.parametrize("gap", [3600, -3600, 10**8], ids=["sleep", "backwards", "for years"])
def test_time_in_which_nobody_looked_is_no_time_without_an_agent(
    machine: Machine, gap: int
) -> None:
    """A machine sleeps, or is paused, and its agent is started again by systemd's watchdog."""
    machine.now = 5000
    machine.has(AGENT, RESTARTING)
    machine.look()
    machine.now += gap
    machine.look()
    assert machine.dead <= 120
    machine.starts()
    machine.minutes(2)
    assert machine.dead == 0
    assert machine.told == []


def test_many_looks_at_once_are_no_time_without_an_agent(machine: Machine) -> None:
    machine.has(AGENT, RESTARTING)
    for _ in range(LOOKS + 1):
        machine.look()
    assert machine.dead == 0


def test_a_short_time_takes_some_looks_all_the_same(machine: Machine) -> None:
    machine.after = "30"
    machine.has(AGENT, RESTARTING)
    machine.look()
    assert "power-off after 1 more looks" in machine.minutes(3)
    machine.minutes(1)
    assert machine.told == ["poweroff"]


@pytest.mark.parametrize("unit", [AGENT, MEMBER])
def test_what_systemd_does_not_tell_counts_for_nothing(machine: Machine, unit: str) -> None:
    machine.has(AGENT, RESTARTING)
    machine.minutes(LOOKS - 1)
    dead = machine.dead
    machine.has(unit, MUTE)
    assert "this look does not count" in machine.minutes(LOOKS)
    assert machine.dead == dead
    assert machine.told == []


def test_an_agent_that_was_not_seen_for_a_look_is_the_same_afterwards(machine: Machine) -> None:
    machine.starts()
    machine.minutes(2)
    machine.has(AGENT, MUTE)
    machine.minutes(1)
    machine.has(AGENT, ACTIVE | {"ActiveEnterTimestampMonotonic": str(BOOTED * 1_000_000)})
    assert machine.minutes(1) == ""


@pytest.mark.parametrize("properties", [NEVER_TRIED, UNCONFIGURED], ids=["waits", "no settings"])
def test_a_boot_that_goes_on_has_four_times_as_long(
    machine: Machine, properties: dict[str, str]
) -> None:
    machine.has(AGENT, properties)
    machine.is_booting(True)
    machine.look()
    machine.minutes(4 * LOOKS - 1)
    assert machine.told == []
    machine.minutes(1)
    assert machine.told == ["poweroff"]


def test_after_a_long_boot_the_time_begins(machine: Machine) -> None:
    machine.has(AGENT, NEVER_TRIED)
    machine.is_booting(True)
    machine.minutes(4 * LOOKS - 2)
    machine.is_booting(False)
    machine.has(AGENT, RESTARTING)
    assert f"power-off in {AFTER - LOOK} s" in machine.minutes(1)
    machine.minutes(LOOKS - 1)
    assert machine.told == ["poweroff"]


def test_an_agent_that_crashes_while_the_machine_boots_has_no_longer(machine: Machine) -> None:
    machine.has(AGENT, RESTARTING)
    machine.is_booting(True)
    machine.minutes(LOOKS + 1)
    assert machine.told == ["poweroff"]


SIMULATIONS = {
    "shim": ("/opt/simagent/bin/python", "-I", "-S", "/data/t/steps/shim.pyc", "/data/t/steps"),
    "container": ("/bin/sh", "-c", "_sa_guard() {\n sleep 30\n}", "simagent"),
}


@pytest.mark.parametrize("argv", SIMULATIONS.values(), ids=SIMULATIONS)
def test_no_machine_is_powered_off_under_a_simulation(
    machine: Machine, argv: tuple[str, ...]
) -> None:
    process = machine.runs(*argv, cgroup="/simagent/t.1")
    machine.has(AGENT, RESTARTING)
    machine.look()
    assert "the machine stays on" in machine.minutes(LOOKS + 2)
    assert machine.told == []
    process.unlink()
    assert "power-off after 4 more looks" in machine.minutes(1), "not at once"
    machine.minutes(4)
    assert machine.told == ["poweroff"]


SOMEBODY = {
    "by ssh": ("sshd: root@pts/0",),
    "by a newer ssh": ("sshd-session: admin@pts/0,pts/1",),
    "copies files": ("sshd: root@notty",),
    "by sftp": ("sshd: root@internal-sftp",),
    "an agent by hand": ("/opt/simagent/bin/python3", "/usr/bin/simagent", "agent"),
    "a task by hand": ("python3", "-m", "simagent", "run", "task.toml"),
}


@pytest.mark.parametrize("argv", SOMEBODY.values(), ids=SOMEBODY)
def test_the_time_begins_anew_once_nobody_works_there_any_more(
    machine: Machine, argv: tuple[str, ...]
) -> None:
    machine.has(AGENT, UNCONFIGURED)
    machine.minutes(LOOKS - 1)
    process = machine.runs(*argv)
    assert "the machine stays on" in machine.minutes(LOOKS + 2)
    assert machine.dead == 0
    process.unlink()
    machine.minutes(LOOKS - 1)
    assert machine.told == []
    machine.minutes(1)
    assert machine.told == ["poweroff"]


@pytest.mark.parametrize(
    "cgroup",
    [
        "/user.slice/user-1000.slice/user@1000.service/app.slice/simagent.service",
        "/system.slice/docker-0123456789ab.scope",
        "/system.slice/our-own.service",
    ],
)
def test_an_agent_that_is_not_of_our_units_counts(machine: Machine, cgroup: str) -> None:
    machine.has(AGENT, UNCONFIGURED)
    machine.runs("/usr/bin/python3", "/usr/local/bin/simagent", "agent", cgroup=cgroup)
    assert "one was started by hand" in machine.minutes(LOOKS + 2)
    assert machine.told == []


@pytest.mark.parametrize("terminal", ["dev/pts/3", "dev/tty1", "dev/ttyS0", "dev/hvc0"])
def test_whoever_types_is_there(machine: Machine, terminal: str) -> None:
    machine.has(AGENT, UNCONFIGURED)
    (machine.folder / terminal).touch()
    hour_ago = machine.mark.parent.stat().st_mtime - 3600
    os.utime(machine.folder / terminal, (hour_ago, hour_ago))
    machine.minutes(3)
    assert machine.dead == 2 * LOOK
    last = machine.mark.stat().st_mtime
    os.utime(machine.folder / terminal, (last + 8, hour_ago))
    assert "somebody is logged in" in machine.minutes(1)
    os.utime(machine.mark, (last + 9, last + 9))
    assert f"power-off in {AFTER - LOOK} s" in machine.minutes(1), "nothing was typed since then"


OTHERS = {
    "grep": ("grep", "-qsaE", "[s]him\\.pyc|[_]sa_guard"),
    "at the door": ("sshd: unknown [priv]",),
    "a name with an @": ("sshd: a@b [net]",),
    "listens": ("sshd: /usr/sbin/sshd -D [listener] 0 of 10-100 startups",),
    "an editor": ("vim", "/etc/simagent/agent.toml"),
    "another's shim": ("/usr/bin/containerd-shim-runc-v2", "-namespace", "moby"),
}


@pytest.mark.parametrize("argv", OTHERS.values(), ids=OTHERS)
def test_other_processes_hold_nothing(machine: Machine, argv: tuple[str, ...]) -> None:
    machine.runs(*argv)
    machine.has(AGENT, UNCONFIGURED)
    machine.minutes(LOOKS + 1)
    assert machine.told == ["poweroff"]


@pytest.mark.parametrize("unit", [AGENT, MEMBER])
def test_the_process_of_a_unit_that_crashes_holds_nothing(machine: Machine, unit: str) -> None:
    machine.runs(
        "/opt/simagent/bin/python3",
        "/opt/simagent/bin/simagent",
        "agent",
        cgroup=f"/simagent.slice/{unit}",
    )
    machine.has(unit, RESTARTING)
    machine.minutes(LOOKS + 1)
    assert machine.told == ["poweroff"]


MARKS = ("", "\n", "nothing\n", "60 -5 7\n", "99999999999 400 9\n", "08 400 9\n", "60 400\n")


@pytest.mark.parametrize("text", MARKS)
def test_a_mark_that_cannot_be_read_is_made_anew(machine: Machine, text: str) -> None:
    machine.mark.write_text(text)
    machine.has(AGENT, RESTARTING)
    assert f"power-off in {AFTER} s" in machine.look()


def test_a_mark_that_is_gone_is_made_anew(machine: Machine) -> None:
    machine.has(AGENT, RESTARTING)
    machine.minutes(LOOKS)
    machine.mark.unlink()
    assert f"power-off in {AFTER} s" in machine.minutes(1)


def test_the_mark_stays_as_long_as_it_is(machine: Machine) -> None:
    """It is written over where there is no room for more."""
    machine.starts()
    machine.minutes(2)
    size = machine.mark.stat().st_size
    machine.has(AGENT, RESTARTING)
    machine.minutes(2)
    assert machine.mark.stat().st_size == size
    assert machine.mark.read_text().split() == [str(machine.now), "120", "2"]


@pytest.mark.parametrize("uptime", ["", "soon"])
def test_without_a_clock_nothing_is_done(machine: Machine, uptime: str) -> None:
    machine.has(AGENT, RESTARTING)
    machine.minutes(LOOKS)
    machine.uptime = uptime
    machine.minutes(2)
    assert machine.told == []


def test_it_can_be_switched_off(machine: Machine) -> None:
    machine.after = "0"
    machine.has(AGENT, RESTARTING)
    assert machine.minutes(LOOKS + 1) == ""
    assert machine.told == []


@pytest.mark.parametrize("after", ["30min", "-5", "1e3", "0900", "12345678901234567890"])
def test_a_wrong_time_is_told_of_and_the_usual_one_taken(machine: Machine, after: str) -> None:
    machine.after = after
    machine.has(AGENT, RESTARTING)
    said = machine.look()
    assert f"DEADMAN_AFTER is '{after}'" in said
    assert "power-off in 1800 s" in said


def test_a_systemd_that_does_not_power_off_is_passed_over(machine: Machine) -> None:
    machine.obeys("poweroff --force --force")
    machine.has(AGENT, RESTARTING)
    machine.minutes(LOOKS + 1)
    assert machine.told == ["poweroff", "poweroff --force", "poweroff --force --force"]


def test_a_power_off_that_fails_is_tried_again(machine: Machine) -> None:
    machine.obeys("nothing")
    machine.has(AGENT, RESTARTING)
    machine.minutes(LOOKS + 1)
    machine.now += LOOK
    machine.look()
    assert machine.told.count("poweroff") == 2
