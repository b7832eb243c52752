"""The settings' file that the package brings tells of every setting, and each line is right."""

import importlib.util
import re
import tomllib
from itertools import pairwise
from pathlib import Path
from types import ModuleType

from simagent.config_load import load_config

SYSTEMD = Path(__file__).parents[2] / "systemd"
FILE = SYSTEMD / "agent.toml"


def writer() -> ModuleType:
    spec = importlib.util.spec_from_file_location("agent_toml", SYSTEMD / "agent_toml.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def uncommented() -> str:
    """Switch all settings on: they have no space after their "#"."""
    return re.sub(r"^#(?=[\w\[])", "", FILE.read_text(), flags=re.MULTILINE)


def test_it_is_what_the_settings_are() -> None:
    assert FILE.read_text() == writer().text(), "run python systemd/agent_toml.py"


def test_as_it_is_it_changes_nothing() -> None:
    assert tomllib.loads(FILE.read_text()) == {}
    assert load_config(FILE).model_dump() == load_config().model_dump()


def test_with_all_its_lines_switched_on_it_loads(tmp_path: Path) -> None:
    file = tmp_path / "agent.toml"
    file.write_text(uncommented())
    config = load_config(file)
    shown = tomllib.loads(file.read_text())
    assert set(shown) == set(type(config).model_fields)
    for table in ("mpi", "times"):
        assert set(shown[table]) == set(type(getattr(config, table)).model_fields)


def test_what_is_shown_is_the_default_unless_it_is_called_an_example(tmp_path: Path) -> None:
    lines = FILE.read_text().splitlines()
    wanted = [
        line.removeprefix("#")
        for before, line in pairwise(lines)
        if re.match(r"#[\w\[]", line) and before != "# Example:"
    ]
    assert len(wanted) > 50
    file = tmp_path / "agent.toml"
    file.write_text("\n".join(wanted))
    assert load_config(file).model_dump() == load_config().model_dump()
