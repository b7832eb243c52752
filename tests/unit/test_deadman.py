"""What powers off a machine whose agent cannot run: the shell script, with a systemctl of ours."""

import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "systemd" / "deadman.sh"
NOW = 10_000

ACTIVE = {
    "LoadState": "loaded",
    "ActiveState": "active",
    "SubState": "running",
    "Result": "success",
    "ConditionResult": "yes",
    "ConditionTimestampMonotonic": "5000000",
    "ActiveEnterTimestampMonotonic": str((NOW - 60) * 1_000_000),
}
RESTARTING = ACTIVE | {
    "ActiveState": "activating",
    "SubState": "auto-restart",
    "Result": "exit-code",
}
CRASHED_AGAIN = ACTIVE | {"ActiveEnterTimestampMonotonic": str((NOW - 59) * 1_000_000)}
STOPPED = ACTIVE | {"ActiveState": "inactive", "SubState": "dead"}
UNCONFIGURED = STOPPED | {"ConditionResult": "no"}
NEVER_TRIED = STOPPED | {"ConditionTimestampMonotonic": "0"}
NOT_THERE = NEVER_TRIED | {"LoadState": "not-found"}
FAILED = STOPPED | {"ActiveState": "failed", "SubState": "failed", "Result": "exit-code"}
MUTE: dict[str, str] = {}


@dataclass
class Machine:
    """A machine of files; ``off`` is what it was told to do, last."""

    folder: Path

    def __post_init__(self) -> None:
        (self.folder / "bin").mkdir()
        (self.folder / "proc").mkdir()
        (self.folder / "proc" / "uptime").write_text(f"{NOW}.42 12345.67\n")
        for unit in ("simagent.service", "simagent-member.service"):
            self.has(unit, NOT_THERE)
        self.obeys()

    def has(self, unit: str, properties: dict[str, str]) -> None:
        text = "".join(f"{name}={value}\n" for name, value in properties.items())
        (self.folder / unit).write_text(text)

    def runs(self, *argv: str) -> None:
        process = self.folder / "proc" / "4711"
        process.mkdir()
        (process / "cmdline").write_text("\0".join(argv))

    def obeys(self, only: str = "poweroff") -> None:
        systemctl = self.folder / "bin" / "systemctl"
        systemctl.write_text(
            f'#!/bin/sh\nif [ "$1" = show ]; then for unit; do :; done; cat "{self.folder}/$unit"\n'
            f'else echo "$*" >>"{self.folder}/told"; [ "$*" = "{only}" ]; fi\n'
        )
        systemctl.chmod(0o755)

    def was_well(self, seconds_ago: int) -> None:
        (self.folder / "well").write_text(f"{NOW - seconds_ago}\n")

    @property
    def seen_well(self) -> int:
        return int((self.folder / "well").read_text())

    def look(self, after: str = "1800") -> str:
        done = subprocess.run(
            ["/bin/sh", str(SCRIPT)],
            env={
                "PATH": f"{self.folder}/bin:/usr/bin:/bin",
                "RUNTIME_DIRECTORY": str(self.folder),
                "DEADMAN_PROC": str(self.folder / "proc"),
                "DEADMAN_AFTER": after,
            },
            capture_output=True,
            text=True,
            timeout=30,
            check=True,
        )
        return done.stdout + done.stderr

    @property
    def told(self) -> list[str]:
        try:
            return (self.folder / "told").read_text().splitlines()
        except FileNotFoundError:
            return []


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


@pytest.mark.parametrize("properties", [ACTIVE, STOPPED], ids=["active", "stopped"])
@pytest.mark.parametrize("unit", ["simagent.service", "simagent-member.service"])
def test_a_machine_with_an_agent_stays_on(
    machine: Machine, unit: str, properties: dict[str, str]
) -> None:
    machine.has(unit, properties)
    machine.was_well(5000)
    assert machine.look() == ""
    assert machine.told == []
    assert machine.seen_well == NOW


CANNOT_RUN = {
    "restarting": RESTARTING,
    "crashed again": CRASHED_AGAIN,
    "not configured": UNCONFIGURED,
    "never tried": NEVER_TRIED,
    "not there": NOT_THERE,
    "failed": FAILED,
    "systemd is mute": MUTE,
}


@pytest.mark.parametrize("properties", CANNOT_RUN.values(), ids=CANNOT_RUN)
def test_a_machine_whose_agent_cannot_run_is_powered_off(
    machine: Machine, properties: dict[str, str]
) -> None:
    machine.has("simagent.service", properties)
    machine.was_well(1799)
    assert "power-off in 1 s" in machine.look()
    assert machine.told == []
    machine.was_well(1800)
    assert "powering off" in machine.look()
    assert machine.told == ["poweroff"]


def test_the_time_begins_with_the_first_look(machine: Machine) -> None:
    assert "power-off in 1800 s" in machine.look()
    assert machine.seen_well == NOW


def test_a_mark_that_cannot_be_read_is_made_anew(machine: Machine) -> None:
    (machine.folder / "well").write_text("")
    assert "power-off in 1800 s" in machine.look()
    assert machine.seen_well == NOW


@pytest.mark.parametrize(
    "argv",
    [
        ("/opt/simagent/bin/python", "-I", "-S", "/data/t/steps/shim.pyc", "/data/t/steps", "0"),
        ("/bin/sh", "-c", "_sa_guard() {\n sleep 30\n}", "simagent"),
    ],
    ids=["shim", "container"],
)
def test_no_machine_is_powered_off_under_a_simulation(
    machine: Machine, argv: tuple[str, ...]
) -> None:
    machine.runs(*argv)
    machine.was_well(5000)
    assert "the machine stays on" in machine.look()
    assert machine.told == []
    assert machine.seen_well == NOW - 5000, "it goes as soon as the simulation has ended"


def test_other_processes_hold_nothing(machine: Machine) -> None:
    machine.runs("grep", "-qsE", "[s]him\\.pyc|[_]sa_guard")
    machine.was_well(5000)
    machine.look()
    assert machine.told == ["poweroff"]


def test_it_can_be_switched_off(machine: Machine) -> None:
    machine.was_well(5000)
    assert machine.look("0") == ""
    assert machine.told == []


def test_a_wrong_time_is_told_of_and_the_usual_one_taken(machine: Machine) -> None:
    machine.was_well(1700)
    said = machine.look("30min")
    assert "DEADMAN_AFTER is '30min'" in said
    assert "power-off in 100 s" in said


def test_a_systemd_that_does_not_power_off_is_passed_over(machine: Machine) -> None:
    machine.obeys("poweroff --force --force")
    machine.was_well(5000)
    machine.look()
    assert machine.told == ["poweroff", "poweroff --force", "poweroff --force --force"]
