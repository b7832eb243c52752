"""The scripts that make machine images: what they refuse, before anything is done."""

import os
import re
import subprocess
from pathlib import Path

import pytest

VM = Path(__file__).parents[2] / "vm"


def refused(tmp_path: Path, script: str, **settings: str) -> str:
    env = {"PATH": os.environ["PATH"], "OUT": str(tmp_path / "out")} | settings
    shell = "bash" if script == "build.sh" else "sh"
    done = subprocess.run(
        [shell, VM / script], env=env, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1, done.stderr
    return done.stderr


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ({"SIZE": "4G"}, "SIZE=4G: not a number of MB"),
        ({"FORMATS": "raw vmdk"}, "FORMATS=vmdk: raw, qcow2, or both"),
        ({"AGENT": "/nowhere/simagent.deb"}, "AGENT=/nowhere/simagent.deb: no such file"),
        ({"AGENT": ""}, "AGENT: name the agent's package, or use make vm-image"),
        ({"IMAGES": "/nowhere/a.sif"}, "IMAGES: /nowhere/a.sif: no such file"),
        ({"APPTAINER": "/nowhere/a.deb"}, "APPTAINER=/nowhere/a.deb: no such file"),
        ({"APPTAINER": "sid"}, "APPTAINER=sid: apt, FILE.deb, https://...deb or none"),
        ({"DOCKER": "1"}, "DOCKER=1: yes or no"),
        ({"DEADMAN": "off"}, "DEADMAN=off: yes or no"),
    ],
)
def test_a_wrong_setting_is_told_before_the_build(
    tmp_path: Path, setting: dict[str, str], words: str
) -> None:
    package = tmp_path / "simagent.deb"
    package.touch()
    assert words in refused(tmp_path, "build.sh", **{"AGENT": str(package)} | setting)
    assert not (tmp_path / "out").exists()


SECRETS = (
    "etc/credstore/simagent.aws",
    "etc/credstore/simagent.config",
    "etc/simagent/agent.toml",
    "etc/ssh/ssh_host_ed25519_key",
    "home/admin/.aws/credentials",
    "home/admin/.ssh/authorized_keys",
    "root/.apptainer/docker-config.json",
    "root/.aws/credentials",
    "root/.docker/config.json",
    "var/lib/docker/engine-id",
    "var/lib/simagent/attempts/a/journal.json",
    "var/log/simagent-provision.log",
)
IMAGE = "var/lib/simagent/images/kept.sif"
SEALS = """
mount --rbind /usr "$0/usr" && for each in bin sbin lib lib64; do ln -s "usr/$each" "$0/$each"; done
: >"$0/dev/null" && cp "$1" "$0/seal.sh" && exec chroot "$0" sh /seal.sh
"""


def test_a_sealed_machine_has_no_identity_and_no_keys(tmp_path: Path) -> None:
    folders = ("dev", "proc", "tmp", "usr", "var/cache/apt", "var/lib/apt/lists", "var/lib/dpkg")
    for folder in folders:
        (tmp_path / folder).mkdir(parents=True)
    for name in (*SECRETS, IMAGE):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("secret")
    argv = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", SEALS]
    subprocess.run([*argv, tmp_path, VM / "seal.sh"], check=True, capture_output=True)
    assert [name for name in SECRETS if (tmp_path / name).exists()] == []
    assert (tmp_path / IMAGE).exists()
    assert (tmp_path / "etc" / "machine-id").read_text() == ""


def test_all_settings_are_documented() -> None:
    text = (VM / "build.sh").read_text()
    names = re.findall(r"^([A-Z]+)=\$\{\1:?-", text, re.MULTILINE)
    table = (VM.parent / "docs" / "vm.md").read_text()
    assert {"OUT", "SIZE", "DEADMAN", "APPTAINER"} <= set(names)
    assert [name for name in names if f"| `{name}` |" not in table] == []
