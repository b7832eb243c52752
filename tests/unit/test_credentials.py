"""Settings and AWS's keys that systemd gives to the agent's unit as credentials."""

import os
from pathlib import Path

import pytest

from simagent import config_sources
from simagent.config import ConfigError
from simagent.config_load import load_config, load_settings
from simagent.config_sources import use_aws_keys


@pytest.fixture(autouse=True)
def own_settings_only(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in os.environ:
        if name.startswith("SIMAGENT_"):
            monkeypatch.delenv(name)
    monkeypatch.delenv("CREDENTIALS_DIRECTORY", raising=False)
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(config_sources, "SYSTEM_CONFIG", tmp_path / "etc" / "agent.toml")
    services = (tmp_path / "service", tmp_path / "member")
    monkeypatch.setattr(config_sources, "OF_SERVICES", services)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Be the unit: its credentials lie in here."""
    made = tmp_path / "credentials"
    made.mkdir()
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(made))
    return made


def write(file: Path, text: str) -> Path:
    file.parent.mkdir(exist_ok=True)
    file.write_text(text)
    return file


def test_the_first_source_that_has_a_setting_decides_key_by_key(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    four = (
        "group = '{0}'\nproject = '{0}'\ntags = ['{0}']\nslots = {1}\n[times]\nring_after = {1}\n"
    )
    write(folder / "simagent.config", "\n".join(four.format("credential", 2).splitlines()[:3]))
    file = write(tmp_path / "etc" / "agent.toml", four.format("file", 7) + "sweep_every = 70")
    with (folder / "simagent.config").open("a") as more:
        more.write("\n[times]\nsweep_every = 60\n")
    monkeypatch.setenv("SIMAGENT_PROJECT", "variable")
    config, known = load_settings(None, tags=("flag",))
    assert (config.tags, config.project, config.group) == (("flag",), "variable", "credential")
    assert (config.slots, config.times.ring_after, config.times.sweep_every) == (7, 7, 60)
    assert known["group"] == "credential simagent.config"
    assert known["slots"] == str(file)


def test_a_credential_alone_is_enough(folder: Path) -> None:
    write(folder / "simagent.config", "group = 'a'")
    assert load_config(None).group == "a"


def test_a_unit_without_this_credential_has_its_file(folder: Path, tmp_path: Path) -> None:
    write(tmp_path / "etc" / "agent.toml", "group = 'a'")
    assert load_config(None).group == "a"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("grup = 'a'", "grup: unknown setting: did you mean group? (credential simagent.config)"),
        ("group = ", "simagent.config: Invalid value"),
        ("state_dir = 'here'", "simagent.config: state_dir: 'here' is to be an absolute path"),
    ],
)
def test_a_wrong_credential_is_refused(folder: Path, text: str, words: str) -> None:
    write(folder / "simagent.config", text)
    with pytest.raises(ConfigError) as caught:
        load_config(None)
    assert words in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("unit", ["service", "member"])
def test_commands_of_root_have_the_settings_of_the_unit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, unit: str
) -> None:
    write(tmp_path / unit / "simagent.config", "group = 'a'")
    named = write(tmp_path / "mine.toml", "project = 'b'")
    assert load_config(None).group == "a"
    assert load_config(named).group == "default"
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert load_config(None).group == "default"


def test_in_the_unit_a_named_file_is_in_the_place_of_the_systems_alone(
    folder: Path, tmp_path: Path
) -> None:
    write(folder / "simagent.config", "group = 'a'")
    config = load_config(write(tmp_path / "mine.toml", "group = 'b'\nproject = 'b'"))
    assert (config.group, config.project) == ("a", "b")


def test_aws_keys_are_found_where_there_are_some(folder: Path) -> None:
    environ: dict[str, str] = {}
    use_aws_keys(environ)
    assert environ == {}
    keys = write(folder / "simagent.aws", "[default]\n")
    use_aws_keys(environ)
    assert environ == {"AWS_SHARED_CREDENTIALS_FILE": str(keys)}
    environ["AWS_SHARED_CREDENTIALS_FILE"] = "/mine"
    use_aws_keys(environ)
    assert environ == {"AWS_SHARED_CREDENTIALS_FILE": "/mine"}
