"""Settings: where they come from, what they refuse, and what a folder may be called."""

import os
from pathlib import Path
from typing import Any

import pytest

from simagent.config import ConfigError
from simagent.config_load import load_config, load_settings
from simagent.config_origins import origin_of
from simagent.engines import open_queue, open_store


@pytest.fixture(autouse=True)
def own_variables_only(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in os.environ:
        if name.startswith("SIMAGENT_"):
            monkeypatch.delenv(name)


def written(folder: Path, text: str) -> Path:
    file = folder / "agent.toml"
    file.write_text(text)
    return file


def refusal(path: Path | None = None, **flags: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        load_config(path, **flags)
    return str(caught.value)


@pytest.mark.parametrize("name", ["a#b", "a?b", "100%", "a%41", "ü ö"])
def test_a_state_folder_may_have_any_name(tmp_path: Path, name: str) -> None:
    config = load_config(None, state_dir=tmp_path / name)
    open_store(config).put("key", b"")
    open_queue(config, "default").send("hello")
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert {"store", "queue.db"} <= {path.name for path in (tmp_path / name).iterdir()}


@pytest.mark.parametrize("url", ["file:///a?b", "file:///a#b", "file:///a?", "file:///a#"])
def test_a_url_with_more_than_a_path_is_refused(url: str) -> None:
    assert refusal(store=url).startswith("store: ")
    assert "write %3F for ?, %23 for #" in refusal(queue=url.replace("file", "sqlite"))


@pytest.mark.parametrize("source", ["file", "variable", "flag"])
def test_the_state_folder_may_lie_in_the_home(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "me"))
    file, flags = None, {}
    match source:
        case "file":
            file = written(tmp_path, 'state_dir = "~/sim"')
        case "variable":
            monkeypatch.setenv("SIMAGENT_STATE_DIR", "~/sim")
        case "flag":
            flags = {"state_dir": Path("~/sim")}
    assert load_config(file, **flags).state_dir == tmp_path / "me" / "sim"


def test_a_path_in_a_file_is_relative_to_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "etc").mkdir()
    (tmp_path / "here").mkdir()
    written(tmp_path / "etc", 'state_dir = "sim"')
    monkeypatch.chdir(tmp_path / "here")
    assert load_config(Path("../etc/agent.toml")).state_dir.resolve() == tmp_path / "etc" / "sim"
    monkeypatch.setenv("SIMAGENT_STATE_DIR", "sim")
    assert load_config(Path("../etc/agent.toml")).state_dir == tmp_path / "here" / "sim"


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("grup = 'x'", "grup: unknown setting: did you mean group?"),
        ("zzz = 1", "zzz: unknown setting: remove it"),
        (
            "[times]\nsweep_evry = 5",
            "times.sweep_evry: unknown setting: did you mean sweep_every?",
        ),
        ("[times]\nsweep_every = 0", "times.sweep_every: Input should be greater than 0"),
        ("[times]\nsweep_every = inf", "times.sweep_every: Input should be a finite number"),
        ("[times]\nlease_ttl = 44.9", "times: lease_ttl (44.9) has to be at least three times"),
        ("[times]\nbell_extend = 120", "times: bell_visibility (120) has to be more than"),
        ("[mpi]\nhost = ['a']", "mpi.host: unknown setting: did you mean hosts?"),
        ("[mpi]\nhosts = ['a', 'b', 'a']", "mpi.hosts: two hosts are named a: name each once"),
        ("[mpi]\nhosts = ['-o']", "mpi.hosts: '-o' is no name of a host"),
        ("[mpi]\nhosts = ['a']\nhostfile = '/h'", "mpi: hosts and hostfile both name hosts"),
        ("[mpi]\nshared_dir = 'shared'", "mpi.shared_dir: 'shared' is no absolute path"),
        ("[mpi]\ninterface = '10.0.0.0/40'", "mpi.interface: '10.0.0.0/40': "),
        ("[mpi]\ninterface = 'eth 0'", "mpi.interface: 'eth 0' is no interface: use a name"),
        ("[mpi]\nmode = 'both'", "mpi.mode: Input should be 'auto', 'contained' or 'hybrid'"),
        ("orphan_limit = 119", "orphan_limit: Input should be greater than or equal to 120"),
        ("idle_timeout = 0", "idle_timeout: Input should be greater than 0"),
        ("idle_timeout = '5 parsecs'", "idle_timeout: cannot read '5 parsecs': write a number, or"),
        ("idle_action = 'command'", "idle_command: idle_action = command needs it: name a"),
        ("idle_command = ['x']", "idle_command: it is run with idle_action = 'command' alone"),
        ("max_lifetime_grace = 5", "max_lifetime_grace: it comes after max_lifetime: set that"),
        ('state_dir = "~nobody-of-this-name/x"', "Could not determine home directory"),
        ("group = ", "agent.toml: Invalid value"),
    ],
)
def test_a_wrong_file_is_refused(tmp_path: Path, text: str, line: str) -> None:
    found = refusal(written(tmp_path, text))
    assert line in found
    assert len(found.splitlines()) == 1


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("none.toml", "does not exist"),
        ("", "is not a file"),
        ("agent.toml/x", ": Not a directory"),
        ("l" * 300, ": File name too long"),
    ],
)
def test_what_is_no_file_of_settings_is_named(tmp_path: Path, name: str, why: str) -> None:
    written(tmp_path, "")
    path = tmp_path / name
    assert refusal(path) == f"config: {path} {why}".replace(" :", ":")


def test_a_file_that_is_no_text_is_named(tmp_path: Path) -> None:
    file = written(tmp_path, "")
    file.write_bytes(b"group = '\xff'")
    assert refusal(file) == f"{file}: is not text in UTF-8"


def test_bounds_are_allowed(tmp_path: Path) -> None:
    text = 'orphan_limit = "2min"\n[times]\nlease_ttl = 45\nbell_extend = 119.9'
    config = load_config(written(tmp_path, text))
    assert (config.orphan_limit, config.times.lease_ttl) == (120.0, 45.0)


@pytest.mark.parametrize(
    ("variable", "line"),
    [
        ("SIMAGENT_GROP", "SIMAGENT_GROP: unknown setting: did you mean SIMAGENT_GROUP?"),
        ("simagent_state_folder", "did you mean SIMAGENT_STATE_DIR?"),
        ("SIMAGENT_XYZZY", "SIMAGENT_XYZZY: unknown setting: unset it"),
    ],
)
def test_a_variable_that_goes_unheeded_is_named(
    monkeypatch: pytest.MonkeyPatch, variable: str, line: str
) -> None:
    monkeypatch.setenv(variable, "x")
    assert line in refusal()


def test_all_mistakes_are_named_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SIMAGENT_GROP", "x")
    monkeypatch.setenv("SIMAGENT_LOG_LEVEL", "loud")
    monkeypatch.setenv("SIMAGENT_ORPHAN_LIMIT", "1")
    assert len(refusal().splitlines()) == 3


def test_a_table_in_a_variable_that_is_no_json_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SIMAGENT_TIMES", "{")
    assert refusal() == "SIMAGENT_TIMES: '{' is not JSON, as lists and tables have to be"


@pytest.mark.parametrize(
    "variable",
    ["SIMAGENT_CONFIG", "SIMAGENT_DEBUG", "SIMAGENT_TASK_ID", "SIMAGENT_EPOCH", "simagent_group"],
)
def test_other_variables_are_left_alone(monkeypatch: pytest.MonkeyPatch, variable: str) -> None:
    monkeypatch.setenv(variable, "x")
    load_config(None)


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("s3://", "names no bucket"),
        ("s3:///prefix", "names no bucket"),
        ("s3://a_b:80/prefix", "names no bucket"),
        ("s3://bucket/a//b", "empty part"),
        ("s3://bucket/a/../b", "empty part"),
        ("s3://bucket/a?b", "write %3F for ?"),
        ("gs://bucket/a", "use file:///DIR or s3://BUCKET/PREFIX"),
    ],
)
def test_a_store_that_cannot_be_is_refused(url: str, words: str) -> None:
    found = refusal(store=url)
    assert found.startswith("store: ")
    assert words in found


@pytest.mark.parametrize("url", ["s3://bucket", "s3://bucket/", "s3://my.bucket-1/a/b%3F/"])
def test_a_bucket_is_a_store(url: str) -> None:
    assert load_config(None, store=url).store_url == url


def test_tasks_run_programs_of_a_machine_that_is_theirs_alone_or_that_says_so() -> None:
    assert load_config(None).process_allowed
    assert not load_config(None, allow_process=False).process_allowed
    for fleet in ({"store": "s3://bucket"}, {"queue": "sqs://simagent-{group}"}):
        assert not load_config(None, **fleet).process_allowed
        assert load_config(None, **fleet, allow_process=True).process_allowed


def test_credentials_of_the_agent_are_no_variables_for_tasks() -> None:
    with pytest.raises(ConfigError, match=r"^pass_env: AWS_SESSION_TOKEN may hold credentials"):
        load_config(None, pass_env=("PATH", "AWS_SESSION_TOKEN"))


def test_a_mistake_is_told_with_its_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = written(tmp_path, "grup = 'x'\n[times]\nsweep_every = 0")
    monkeypatch.setenv("SIMAGENT_ORPHAN_LIMIT", "5 parsecs")
    first, second, third = sorted(refusal(file, store="x://").splitlines())[:3]
    assert first.endswith(f"did you mean group? ({file})")
    assert second.endswith('as "15 min" (SIMAGENT_ORPHAN_LIMIT)')
    assert third.startswith("store: ")
    assert not third.endswith(")")


def test_where_each_setting_comes_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = "group = 'a'\nproject = 'b'\ntags = ['x']\n[times]\nsweep_every = 60\nring_after = 9"
    file = written(tmp_path, text)
    monkeypatch.setenv("SIMAGENT_PROJECT", "c")
    monkeypatch.setenv("SIMAGENT_TIMES", '{"sweep_every": 70}')
    config, known = load_settings(file, project="d", state_dir=None)
    assert (config.project, config.times.sweep_every, config.times.ring_after) == ("d", 70, 9)
    assert known == {
        "group": str(file),
        "project": "--project",
        "tags": str(file),
        "times.sweep_every": "SIMAGENT_TIMES",
        "times.ring_after": str(file),
    }
    assert origin_of("slots", known) == "default"
    assert origin_of("tags.0", known) == str(file)


def test_metrics_are_served_at_a_port_of_loopback_or_where_it_is_said(tmp_path: Path) -> None:
    path = tmp_path / "agent.toml"
    for given, taken in (("9101", "127.0.0.1:9101"), ('"10.0.0.7:9101"', "10.0.0.7:9101")):
        path.write_text(f"metrics_listen = {given}\n")
        assert load_config(path).metrics_listen == taken
    path.write_text("metrics_listen = true\n")
    with pytest.raises(ConfigError, match="metrics_listen: 'True' is no address: use PORT"):
        load_config(path)
    assert load_config().metrics_listen is None
