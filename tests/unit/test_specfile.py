"""A mistake in a task file gets one line: the file, the field as it was written, the fix."""

import json
from pathlib import Path
from typing import Any

import pytest

from simagent.api.specs import read_spec
from simagent.client import UsageError
from simagent.config import Config
from simagent.domain.spec import Spec

GOOD: dict[str, Any] = {"commands": ["true"]}


def read(path: Path, text: str, **settings: str) -> Spec:
    path.write_text(text)
    return read_spec(path, Config(state_dir=path.parent, **settings))[0]  # type: ignore[arg-type]


def refusal(path: Path, text: str) -> list[str]:
    with pytest.raises(UsageError) as caught:
        read(path, text)
    return [line.removeprefix(str(path)) for line in str(caught.value).splitlines()]


@pytest.mark.parametrize(
    ("fields", "line"),
    [
        ({"comands": ["true"]}, ": comands: unknown field: did you mean commands?"),
        (GOOD | {"zzz": 1}, ": zzz: unknown field: remove it"),
        ({}, ": commands: is missing: add it"),
        ({"commands": []}, ": commands: has to be a list with something in it"),
        ({"commands": "echo a"}, ": commands: has to be a list, not 'echo a'"),
        ({"commands": ["true", ""]}, ": commands[1]: the command is empty: name a program"),
        ({"commands": [[]]}, ": commands[0]: the command is empty: name a program"),
        ({"commands": [["a", 5]]}, ": commands[0][1]: has to be text (in quotes), not 5"),
        (
            {"commands": [{"run": 5}]},
            ": commands[0].run: has to be text (in quotes) or a list, not 5",
        ),
        (
            {"commands": ["echo 'a"]},
            ': commands[0]: cannot split "echo \'a" (No closing quotation): close the quote',
        ),
        (
            {"commands": [{"run": "a", "mpi": {"np": 0}}]},
            ": commands[0].mpi.np: has to be at least 1 or 'max', not 0",
        ),
        (
            {"commands": [{"run": "a", "mpi": {"np": 10**9}}]},
            ": commands[0].mpi.np: has to be at most 65536 or 'max', not 1000000000",
        ),
        (
            {"commands": [{"run": "a", "mpi": {"nps": 2}}]},
            ": commands[0].mpi.nps: unknown field: did you mean np?",
        ),
        (
            GOOD | {"inputs": [{"source": "x", "destination": "../y"}]},
            ": inputs[0].destination: '../y' leads out of the task's folder: remove the '..'",
        ),
        (
            GOOD | {"inputs": [{"source": "x", "destination": "/y"}]},
            ": inputs[0].destination: '/y' is absolute: write it relative to the task's folder",
        ),
        (GOOD | {"inputs": [""]}, ": inputs[0]: is empty: fill it in, or remove it"),
        (GOOD | {"name": 7}, ": name: has to be text (in quotes), not 7"),
        (GOOD | {"env": ["A"]}, ": env: has to be a table of fields"),
        (GOOD | {"time_limit": 0}, ": time_limit: has to be more than 0, not 0"),
        (
            GOOD | {"grace": "soon"},
            ": grace: cannot read 'soon': write a number, or one with a unit, as \"15 min\"",
        ),
        (
            GOOD | {"runtime": "podman"},
            ": runtime: has to be 'auto', 'docker', 'apptainer' or 'process', not 'podman'",
        ),
    ],
)
def test_a_mistake_gets_one_line(tmp_path: Path, fields: dict[str, Any], line: str) -> None:
    assert refusal(tmp_path / "task.json", json.dumps(fields)) == [line]


def test_each_of_several_mistakes_gets_a_line(tmp_path: Path) -> None:
    lines = refusal(tmp_path / "task.toml", 'commands = [""]\nnam = "x"\nmax_attempts = 0\n')
    assert len(lines) == 3


def test_a_thousand_mistakes_do_not_fill_the_screen(tmp_path: Path) -> None:
    lines = refusal(tmp_path / "task.json", json.dumps({"commands": [""] * 1000}))
    assert len(lines) < 30
    assert "980 mistakes more" in lines[-1]


@pytest.mark.parametrize(
    ("name", "text", "line"),
    [
        ("task.json", '{"commands": [\n"true"', ":2: not valid JSON"),
        ("task.json", '{"commands": ["a"], "commands": ["b"]}', "'commands' stands there twice"),
        ("task.json", '["true"]', "a task is a table of fields"),
        ("task.toml", "commands = [", "not valid TOML"),
        ("task.toml", 'name = "a"\nname = "b"\n', "not valid TOML"),
        ("task.yaml", "commands: [\n", ":2: not valid YAML"),
        ("task.yaml", "commands: [a]\ncommands: [b]\n", ":2: not valid YAML: the field 'commands'"),
        ("task.yaml", "env: {A: 1, A: 2}\n", "the field 'A' stands there twice"),
        ("task.yaml", "commands: [!!python/name:os.system '']\n", "not valid YAML"),
        ("task.yaml", "echo hello", "a task is a table of fields"),
        ("task.yaml", "", "a task is a table of fields"),
        ("task.txt", "commands: [a]", "Name it .toml, .yaml or .json"),
    ],
)
def test_a_file_that_cannot_be_read_is_named(
    tmp_path: Path, name: str, text: str, line: str
) -> None:
    (found,) = refusal(tmp_path / name, text)
    assert line in found


def test_a_deep_file_is_refused(tmp_path: Path) -> None:
    (line,) = refusal(tmp_path / "task.json", '{"commands": ' + "[" * 100_000)
    assert "not valid JSON" in line


@pytest.mark.parametrize(
    ("data", "line"), [(b"commands: [\xff]", "not UTF-8"), (b" " * (17 << 20), "is larger than")]
)
def test_bytes_that_are_no_task_are_refused(tmp_path: Path, data: bytes, line: str) -> None:
    path = tmp_path / "task.yaml"
    path.write_bytes(data)
    with pytest.raises(UsageError, match=line):
        read_spec(path, Config(state_dir=tmp_path))


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"none\.toml: cannot be read: No such file"):
        read_spec(tmp_path / "none.toml", Config(state_dir=tmp_path))


def test_all_formats_say_the_same(tmp_path: Path) -> None:
    specs = [
        read(tmp_path / "a.toml", 'commands = [{run = "x", mpi = {np = 2}}]\ngrace = "1m"\n'),
        read(tmp_path / "a.yaml", "commands: [{run: x, mpi: {np: 2}}]\ngrace: 1m\n"),
        read(tmp_path / "a.json", '{"commands": [{"run": "x", "mpi": {"np": 2}}], "grace": 60}'),
    ]
    assert specs[0] == specs[1] == specs[2]


def test_project_and_group_come_from_the_configuration_unless_named(tmp_path: Path) -> None:
    path = tmp_path / "task.yaml"
    spec = read(path, "commands: [a]\ngroup: mine\n", project="ours", group="theirs")
    assert (spec.project, spec.group) == ("ours", "mine")
