"""Machines that end: idle ones by themselves, those whose agent cannot run by systemd's timer."""

from collections.abc import Callable
from pathlib import Path

import pytest

from system.machines import SETTINGS, Lab, Machine

TASK = 'commands = ["sleep 2"]\n'
HASTY = (
    "[Timer]\nOnBootSec=\nOnUnitActiveSec=\nOnActiveSec=1s\nOnUnitActiveSec=1s\nAccuracySec=100ms\n"
)
"""The timer's own times, shorter: a look takes place each second."""
DEADMAN = "/etc/simagent/deadman.env"
AFTER = 8
LATER = 40
"""Seconds without an agent; the more where what the machine says is looked at before it is off."""

pytestmark = pytest.mark.parametrize("suite", ["trixie"])


def test_an_idle_machine_powers_itself_off_after_its_task(
    suite: str, machines: Lab, package: Callable[[str], Path]
) -> None:
    machine = machines.boot(suite, package=package(suite))
    machine.configure(allow_process=True, idle_timeout=30, idle_action="poweroff")
    machine.write("/root/task.toml", TASK)
    task = machine.simagent("submit", "/root/task.toml").split()[-1]
    machine.systemctl("start", "simagent")
    machine.until(lambda: "poweroff at" in machine.shows("simagent", "StatusText"))
    machine.until(lambda: not machine.is_on)
    machine.start_again()
    machine.is_up()
    assert '"succeeded"' in machine.simagent("show", "--json", task)
    assert "life_over" in machine.journal()


def test_a_machine_whose_agent_cannot_run_is_powered_off(
    suite: str, machines: Lab, package: Callable[[str], Path]
) -> None:
    machine = machines.boot(suite, package=package(suite))
    machine.configure(allow_process=True)
    machine.systemctl("start", "simagent")
    machine.write(DEADMAN, f"DEADMAN_AFTER={AFTER}\n")
    drop_in = "/etc/systemd/system/simagent-deadman.timer.d/hasty.conf"
    machine.write(drop_in, HASTY)
    machine.systemctl("daemon-reload")
    assert machine.systemctl("is-enabled", "simagent-deadman.timer", check=False) == "disabled"
    machine.systemctl("enable", "--now", "simagent-deadman.timer")
    stays_on(machine, 2 * AFTER)
    machine.systemctl("stop", "simagent")
    stays_on(machine, 2 * AFTER)
    machine.write(DEADMAN, f"DEADMAN_AFTER={LATER}\n")
    machine.write(SETTINGS, "grup = 'a'\n")
    machine.systemctl("start", "simagent", check=False)
    text = machine.until(lambda: machine.shows("simagent", "StatusText") or None)
    assert text == f"grup: unknown setting: did you mean group? ({SETTINGS})"
    assert f"simagent: {text}" in machine.journal()
    machine.until(lambda: "power-off in" in machine.journal("simagent-deadman.service"))
    machine.until(lambda: not machine.is_on)


def stays_on(machine: Machine, seconds: int) -> None:
    """See that the agent is seen again and again, for so long."""
    first = machine.until(lambda: seen(machine))
    machine.until(lambda: (seen(machine) or 0) >= first + seconds, 10.0 * seconds)


def seen(machine: Machine) -> int | None:
    """Tell when the agent was seen last, in seconds since the boot."""
    looks = machine.run("cat", "/run/simagent-deadman/looks", check=False).stdout.split()
    return int(looks[0]) if looks and looks[1] == "0" else None
