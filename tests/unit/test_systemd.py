"""systemd itself finds nothing to say about the unit."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

UNIT = Path(__file__).parents[2] / "systemd" / "simagent.service"

pytestmark = pytest.mark.skipif(
    shutil.which("systemd-analyze") is None,
    reason="the systemd unit is not checked: systemd-analyze is missing (apt install systemd)",
)


def verify(unit: str, folder: Path) -> str:
    """Give all that systemd-analyze says; it exits with 0 on unknown keys, too."""
    file = folder / UNIT.name
    file.write_text(re.sub(r"^ExecStart=\S+", "ExecStart=/bin/true", unit, flags=re.MULTILINE))
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", str(file)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    return done.stdout + done.stderr


def test_the_unit_is_right(tmp_path: Path) -> None:
    assert verify(UNIT.read_text(), tmp_path) == ""


@pytest.mark.parametrize("mistake", ["KillMod=process", "WatchdogSec=soon", "Type=notfy"])
def test_a_mistake_would_be_noticed(tmp_path: Path, mistake: str) -> None:
    wrong = UNIT.read_text().replace("[Install]", f"{mistake}\n[Install]")
    assert f"{UNIT.name}:" in verify(wrong, tmp_path)


def test_simulations_outlive_a_restart_of_the_agent() -> None:
    lines = UNIT.read_text().splitlines()
    assert "KillMode=process" in lines
    assert not [line for line in lines if line.startswith("PrivateTmp")]
