"""What somebody wants to run, as a spec: of a task file, a folder, a table, keywords, a `Spec`.

Each mistake becomes one line: where it stands, what is wrong, the fix.
"""

import json
import os
import sys
import tomllib
from collections.abc import Hashable, Mapping, Set
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from simagent.api.mistakes import explain
from simagent.client.errors import UsageError
from simagent.config import Config
from simagent.domain.spec import Spec

_MAX_BYTES = 16 * 2**20

Wanted = str | os.PathLike[str] | Mapping[str, object] | Spec | None


def to_spec(wanted: Wanted, fields: Mapping[str, object], config: Config) -> tuple[Spec, Path]:
    """Make a spec, and tell the folder that its inputs are relative to.

    ``fields`` go before what ``wanted`` says, if that is a task file, a table or a `Spec`; a
    folder is the first of the inputs. A spec that names no project or group gets the
    configuration's. Raises `UsageError` with one line for each mistake.
    """
    given = {name: _plain(value) for name, value in fields.items()}
    if wanted is None:
        return _spec("", given, config), Path.cwd()
    if isinstance(wanted, Spec):
        if not given and {"project", "group"} <= wanted.model_fields_set:
            return wanted, Path.cwd()
        return _spec("", _plain(wanted) | given, config), Path.cwd()
    if isinstance(wanted, Mapping):
        return _spec("", {str(k): _plain(v) for k, v in wanted.items()} | given, config), Path.cwd()
    try:
        path = Path(wanted)
    except TypeError:
        kind = type(wanted).__name__
        raise UsageError(
            f"a {kind} is no task: give a folder, a task file, a dict or a Spec"
        ) from None
    if path.is_dir():
        return _of_folder(path, given, config), Path.cwd()
    return read_spec(path, config, given)


def read_spec(
    path: Path, config: Config, fields: Mapping[str, object] | None = None
) -> tuple[Spec, Path]:
    """Read a task file (``-``: standard input), and tell the folder its inputs are relative to.

    ``fields`` go before those of the file. Raises `UsageError`.
    """
    name, text = _read(path)
    written = _parse(name, path.suffix.lower(), text)
    if not isinstance(written, dict):
        raise UsageError(f"{name}: a task is a table of fields, as in: commands: [echo hello]")
    base = Path.cwd() if name == "-" else path.parent
    return _spec(f"{name}: ", written | dict(fields or {}), config), base


def _of_folder(path: Path, fields: Mapping[str, Any], config: Config) -> Spec:
    if "commands" not in fields:
        raise UsageError(
            f"{path} is a folder, an input: tell with commands=[…] what runs on it; "
            "a task file in it is submitted by its own path"
        )
    others = fields.get("inputs", [])
    inputs = [{"source": str(path.absolute())}, *(others if isinstance(others, list) else [others])]
    return _spec("", {**fields, "inputs": inputs}, config)


def _spec(where: str, fields: dict[str, Any], config: Config) -> Spec:
    for field in ("project", "group"):
        fields.setdefault(field, getattr(config, field))
    try:
        return Spec.model_validate(fields)
    except ValidationError as error:
        raise UsageError("\n".join(where + line for line in explain(error, fields))) from None


def _plain(value: Any) -> Any:
    """Give what a task file would have there: lists, tables, text and numbers."""
    if isinstance(value, BaseModel):
        return _plain(value.model_dump(exclude_unset=True))
    if isinstance(value, Mapping):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple | Set):
        return [_plain(inner) for inner in value]
    return os.fspath(value) if isinstance(value, os.PathLike) else value


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
