"""systemd itself finds nothing to say about the units."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / "systemd"
UNIT = FOLDER / "simagent.service"
KINDS = (".service", ".slice", ".mount", ".timer")
UNITS = sorted(path for path in FOLDER.iterdir() if path.suffix in KINDS)
SERVICES = [path for path in UNITS if path.suffix == ".service"]

pytestmark = pytest.mark.skipif(
    shutil.which("systemd-analyze") is None,
    reason="the systemd unit is not checked: systemd-analyze is missing (apt install systemd)",
)


def verify(unit: str, folder: Path, name: str = UNIT.name) -> str:
    """Give all that systemd-analyze says; it exits with 0 on unknown keys, too."""
    for path in UNITS:
        (folder / path.name).write_text(runnable(path.read_text()))
    file = folder / name
    file.write_text(runnable(unit))
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", str(file)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    return done.stdout + done.stderr


def runnable(unit: str) -> str:
    """Name a program that there is on this machine."""
    return re.sub(r"^(Exec\w+=[-+]*)/\S+", r"\1/bin/true", unit, flags=re.MULTILINE)


@pytest.mark.parametrize("unit", UNITS, ids=lambda path: path.name)
def test_the_unit_is_right(tmp_path: Path, unit: Path) -> None:
    assert verify(unit.read_text(), tmp_path, unit.name) == ""


@pytest.mark.parametrize("unit", SERVICES, ids=lambda path: path.name)
def test_the_unit_is_exposed_to_little(tmp_path: Path, unit: Path) -> None:
    copy = tmp_path / unit.name
    copy.write_text(unit.read_text())
    done = subprocess.run(
        ["systemd-analyze", "security", "--offline=true", "--threshold=40", str(copy)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("mistake", ["KillMod=process", "WatchdogSec=soon", "Type=notfy"])
def test_a_mistake_would_be_noticed(tmp_path: Path, mistake: str) -> None:
    wrong = UNIT.read_text().replace("[Install]", f"{mistake}\n[Install]")
    assert f"{UNIT.name}:" in verify(wrong, tmp_path)


def test_a_drop_in_takes_nothing_back_that_an_administrators_sets() -> None:
    """They are read by their names, wherever they lie: ``aws.conf`` before ``credentials.conf``."""
    taking = [
        path.name
        for path in FOLDER.glob("*.conf")
        if re.search(r"^\w+=$", path.read_text(), flags=re.MULTILINE)
    ]
    assert taking
    assert all(name.startswith("00-") for name in taking), taking


def test_simulations_outlive_a_restart_of_the_agent() -> None:
    lines = UNIT.read_text().splitlines()
    assert "KillMode=process" in lines
    assert not [line for line in lines if line.startswith("PrivateTmp")]


def test_each_exposure_is_explained() -> None:
    shown = subprocess.run(
        ["systemd-analyze", "security", "--offline=true", "--json=short", str(UNIT)],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    ).stdout
    left = {each["name"] for each in json.loads(shown) if float(each.get("exposure") or 0) > 0}
    page = (FOLDER.parent / "docs" / "security.md").read_text()
    table = page.partition("| exposure | needed for |\n|---|---|\n")[2].partition("\n\n")[0]
    rows = re.findall(r"^\| `(.+?)` \| .+ \|$", table, flags=re.MULTILINE)
    assert len(rows) == len(set(rows)) == len(table.splitlines())
    assert {row.replace("\\|", "|") for row in rows} == left


def test_the_member_differs_in_what_it_does_alone() -> None:
    agent, member = (
        {line for line in (FOLDER / name).read_text().splitlines() if re.match(r"\w+=", line)}
        for name in ("simagent.service", "simagent-member.service")
    )
    assert {line.partition("=")[0] for line in agent ^ member} == {
        *("Description", "Documentation", "ExecStart", "Conflicts")
    }
