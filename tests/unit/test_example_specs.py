"""The examples' task files are what a user would write: valid, honoured, complete."""

import json
import tomllib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from simagent.domain.spec import Spec
from simagent.domain.support import unsupported

EXAMPLES = Path(__file__).parents[2] / "examples"
READERS: Mapping[str, Callable[[str], Any]] = {
    ".toml": tomllib.loads,
    ".yaml": yaml.safe_load,
    ".json": json.loads,
}
FOLDERS = sorted(path for path in EXAMPLES.iterdir() if path.is_dir())


def task_file(folder: Path) -> Path:
    (path,) = folder.glob("task.*")
    return path


def read(folder: Path) -> Spec:
    path = task_file(folder)
    return Spec.model_validate(READERS[path.suffix](path.read_text()))


def test_every_format_has_an_example() -> None:
    assert {task_file(folder).suffix for folder in FOLDERS} == set(READERS)


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_the_task_asks_for_nothing_unsupported(folder: Path) -> None:
    assert list(unsupported(read(folder))) == []


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_the_inputs_are_there_and_documented(folder: Path) -> None:
    sources = {source.source for source in read(folder).inputs}
    present = {path.name for path in folder.iterdir()}
    assert present == sources | {"README.md", task_file(folder).name}
