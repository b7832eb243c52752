"""What is said of the Apptainer that is installed, and which shells run in any image."""

import os
from pathlib import Path

import pytest

from simagent.runtimes import apptainer_program
from simagent.runtimes.apptainer_program import ApptainerProgram
from simagent.runtimes.static_shell import static_shell

BUILD = "PACKAGE_NAME=apptainer\nLIBEXECDIR={folder}\n"


def program(folder: Path, version: str, build: str = BUILD) -> ApptainerProgram:
    """A program that answers as Apptainer of some version does."""
    file = folder / "apptainer"
    (folder / "build").write_text(build.format(folder=folder))
    said = f'[ "$1" = buildcfg ] && cat {folder}/build || echo "{version}"'
    file.write_text(f"#!/bin/sh\n{said}\n")
    file.chmod(0o755)
    return ApptainerProgram(str(file))


def test_one_that_works(tmp_path: Path) -> None:
    setup = program(tmp_path, "apptainer version 1.4.5").setup()
    assert (setup.version, setup.trouble) == ("1.4.5", None)


@pytest.mark.parametrize(
    ("version", "why"),
    [
        ("apptainer version 1.1.9", "Apptainer 1.1.9 is too old: install 1.2 or newer"),
        (
            "singularity-ce version 4.1.0",
            "says 'singularity-ce version 4.1.0'",
        ),
        ("", "is not Apptainer"),
    ],
)
def test_one_that_will_not_do(tmp_path: Path, version: str, why: str) -> None:
    assert why in (program(tmp_path, version).setup().trouble or "")


def test_none_at_all(tmp_path: Path) -> None:
    assert "is not installed" in (ApptainerProgram(str(tmp_path / "none")).setup().trouble or "")


def test_one_that_hangs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(apptainer_program, "_ANSWER_LIMIT", 0.2)
    file = tmp_path / "apptainer"
    file.write_text("#!/bin/sh\nexec sleep 60\n")
    file.chmod(0o755)
    assert "does not answer" in (ApptainerProgram(str(file)).setup().trouble or "")


def test_without_user_namespaces_it_takes_the_privileged_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    off = tmp_path / "max_user_namespaces"
    off.write_text("0\n")
    monkeypatch.setattr(apptainer_program, "_USERNS", {str(off): "0"})
    made = program(tmp_path, "apptainer version 1.4.5")
    assert "or install apptainer-suid" in (made.setup().trouble or "")
    starter = tmp_path / "apptainer/bin/starter-suid"
    starter.parents[1].rename(tmp_path / "program")
    starter.parent.mkdir(parents=True)
    starter.touch()
    starter.chmod(0o4755)
    again = ApptainerProgram(str(tmp_path / "program"))
    assert again.setup().trouble is None


def test_it_gets_nothing_of_the_agents_variables_but_where_programs_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "/opt/bin:/usr/bin")
    env = ApptainerProgram().env(tmp_path)
    assert env.pop("PATH") == "/opt/bin:/usr/bin:/usr/local/sbin:/usr/sbin:/sbin"
    assert set(env.values()) == {str(tmp_path)}


def test_asked_what_it_is_it_leaves_no_folder_behind(tmp_path: Path) -> None:
    asked = program(tmp_path, "apptainer version 1.4.5")
    file = Path(asked.name)
    made = 'mkdir -p "$HOME/.apptainer" "$APPTAINER_CONFIGDIR" && touch "$0.made"'
    file.write_text(file.read_text().replace("#!/bin/sh\n", f"#!/bin/sh\n{made} 2>/dev/null\n"))
    assert asked.setup().trouble is None
    assert not (tmp_path / "apptainer.made").exists()


def test_a_shell_that_needs_files_of_the_host_is_none() -> None:
    assert static_shell(("/no/such/file", "/bin/ls", __file__)) is None
    if os.path.exists("/bin/busybox"):
        assert static_shell(("/bin/ls", "/bin/busybox")) == Path("/bin/busybox").resolve()


def test_a_device_for_root_alone_is_of_no_use_to_tasks(tmp_path: Path) -> None:
    device = tmp_path / "fuse"
    assert not apptainer_program._is_for_all(device)
    device.touch(mode=0o666)
    device.chmod(0o666)
    assert apptainer_program._is_for_all(device)
    device.chmod(0o400)
    assert not apptainer_program._is_for_all(device)
