"""The pages about the task file, the settings and the commands name all there is, and no more."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer.main
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from simagent.cli.commands import app
from simagent.config import Config
from simagent.domain.spec import (
    Array,
    Checkpoint,
    Command,
    Input,
    Mpi,
    Outputs,
    Resources,
    Spec,
    Watch,
)
from simagent.domain.support import unsupported
from simagent.domain.times import Times

DOCS = Path(__file__).parents[2] / "docs"
NOT_CONSTANT = {"state_dir": "see above", "outputs": "see below", "resources": "see below"}
NOT_CONSTANT |= {"times": "see below"}


def default(name: str, field: FieldInfo) -> str:
    if name in NOT_CONSTANT:
        return NOT_CONSTANT[name]
    if field.is_required():
        return "required"
    value = field.get_default(call_default_factory=True, validated_data={})
    if value is None:
        return ""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return f"`{json.dumps(value)}`"


def rows(model: type[BaseModel]) -> list[str]:
    """Make the rows of the table that describes a model."""
    return [
        f"| `{name}` | {default(name, field)} | {field.description} |"
        for name, field in model.model_fields.items()
    ]


def tables(page: str) -> Iterator[list[str]]:
    """Yield the rows about fields of each table of a page."""
    for block in re.findall(r"(?:^\|.*\n)+", (DOCS / page).read_text(), re.MULTILINE):
        if found := [line for line in block.splitlines() if line.startswith("| `")]:
            yield found


@pytest.mark.parametrize(
    ("page", "models"),
    [
        (
            "spec.md",
            [Spec, Command, Mpi, Input, Outputs, Resources, Checkpoint, Watch, Array],
        ),
        ("configuration.md", [Config, Times]),
    ],
)
def test_every_field_has_its_row(page: str, models: list[type[BaseModel]]) -> None:
    assert list(tables(page)) == [rows(model) for model in models]


def test_the_task_page_says_which_fields_are_refused_so_far() -> None:
    text = (DOCS / "spec.md").read_text().partition("## Not yet")[2].partition("\n## ")[0]
    listed = set(re.findall(r"^- `([a-z_.]+)", text, re.MULTILINE))
    asked: dict[str, Any] = {
        "commands": [
            {"run": "a", "mpi": {"np": 1, "hosts": 1, "ranks_per_host": 1, "version": "4"}}
        ],
        "image": "a",
        "runtime": "docker",
        "network": "none",
        "outputs": {"layout": "files"},
        "checkpoint": {"paths": ["a"]},
        "watches": [{"name": "a"}],
        "progress": "a",
        "require": ["a"],
        "priority": 1,
        "array": {"size": 2},
        "depends_on": ["a"],
        "expires_at": 1,
        "retention": 1,
        "idempotency_key": "a",
        "resources": {"cpus": 1},
    }
    lines = unsupported(Spec.model_validate(asked))
    refused = {line.partition(":")[0].replace("commands[0].", "") for line in lines}
    assert listed == refused


def test_every_command_and_option_is_in_the_page_of_commands() -> None:
    text = (DOCS / "cli.md").read_text()
    group = typer.main.get_command(app)
    sections = dict(re.findall(r"^## simagent ([a-z]+)\n(.*?)(?=^## |\Z)", text, re.M | re.S))
    commands = group.commands  # type: ignore[attr-defined]
    assert set(sections) == set(commands)
    common = {option for parameter in group.params for option in parameter.opts}
    missing = [
        f"{option} of all commands" for option in common if option not in text.split("## ")[0]
    ]
    for name, command in commands.items():
        for parameter in command.params:
            missing += [
                f"{option} of {name}"
                for option in parameter.opts
                if option.startswith("-")
                and option not in common
                and option not in re.findall(r"(?<![\w-])--?[a-z-]+", sections[name])
            ]
    assert missing == []
