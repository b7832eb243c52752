"""Task files: JSON, TOML or YAML in; a spec, or one line for each mistake, out."""

import json
import sys
import tomllib
from collections.abc import Hashable
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from simagent.api.mistakes import explain
from simagent.client import UsageError
from simagent.config import Config
from simagent.domain.spec import Spec

_MAX_BYTES = 16 * 2**20


def read_spec(path: Path, config: Config) -> tuple[Spec, Path]:
    """Read a task file (``-``: standard input), and tell the folder its inputs are relative to.

    A spec that names no project or group gets the configuration's. Raises `UsageError` with one
    line for each mistake.
    """
    name, text = _read(path)
    fields = _parse(name, path.suffix.lower(), text)
    if not isinstance(fields, dict):
        raise UsageError(f"{name}: a task is a table of fields, as in: commands: [echo hello]")
    for field in ("project", "group"):
        fields.setdefault(field, getattr(config, field))
    try:
        spec = Spec.model_validate(fields)
    except ValidationError as error:
        raise UsageError("\n".join(f"{name}: {line}" for line in explain(error, fields))) from None
    return spec, Path.cwd() if name == "-" else path.parent


def _read(path: Path) -> tuple[str, str]:
    name = str(path)
    try:
        if name == "-":
            data = sys.stdin.buffer.read(_MAX_BYTES + 1)
        else:
            with path.open("rb") as file:
                data = file.read(_MAX_BYTES + 1)
    except OSError as error:
        raise UsageError(f"{name}: cannot be read: {error.strerror}: name a task file") from None
    if len(data) > _MAX_BYTES:
        raise UsageError(f"{name}: is larger than {_MAX_BYTES >> 20} MiB: large data are inputs")
    try:
        return name, data.decode()
    except UnicodeDecodeError as error:
        raise UsageError(
            f"{name}: byte {error.start} is not UTF-8: save it as UTF-8 text"
        ) from None


def _parse(name: str, suffix: str, text: str) -> Any:
    try:
        if suffix == ".toml":
            return tomllib.loads(text)
        if suffix == ".json" or (name == "-" and text.lstrip().startswith("{")):
            return json.loads(text, object_pairs_hook=_without_repetition)
        if suffix in (".yaml", ".yml") or name == "-":
            return yaml.load(text, _Loader)  # noqa: S506 - it is a SafeLoader
    except json.JSONDecodeError as error:
        raise UsageError(f"{name}:{error.lineno}: not valid JSON: {error.msg}") from None
    except yaml.MarkedYAMLError as error:
        line = f":{error.problem_mark.line + 1}" if error.problem_mark else ""
        raise UsageError(f"{name}{line}: not valid YAML: {error.problem}") from None
    except (ValueError, yaml.YAMLError, RecursionError) as error:
        kind = suffix.removeprefix(".").upper() or "JSON or YAML"
        raise UsageError(f"{name}: not valid {kind}: {' '.join(str(error).split())}") from None
    raise UsageError(f"{name}: what is in it? Name it .toml, .yaml or .json")


def _without_repetition(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields: dict[str, Any] = {}
    for key, value in pairs:
        if key in fields:
            raise ValueError(f"the field {key!r} stands there twice: remove one")
        fields[key] = value
    return fields


class _Loader(yaml.SafeLoader):
    """YAML of plain values, in which a repeated field is a mistake."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen = set()
        for key_node, _ in node.value:
            if not isinstance(key_node, yaml.ScalarNode) or key_node.value == "<<":
                continue
            if key_node.value in seen:
                problem = f"the field {key_node.value!r} stands there twice: remove one"
                raise yaml.constructor.ConstructorError(None, None, problem, key_node.start_mark)
            seen.add(key_node.value)
        return super().construct_mapping(node, deep=deep)
