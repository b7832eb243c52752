"""What is wrong with a task file, in the user's terms: the field as it is written, and the fix."""

from collections.abc import Iterator, Mapping, Sequence
from difflib import get_close_matches
from types import UnionType
from typing import Any, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from simagent.domain.spec import Spec

_MAX_LINES = 20

Path = tuple[str | int, ...]

# By pydantic's error types (https://docs.pydantic.dev/latest/errors/validation_errors/).
_HAS_TO_BE: Mapping[str, str] = {
    "bool_type": "true or false",
    "bool_parsing": "true or false",
    "dict_type": "a table of fields",
    "finite_number": "a finite number",
    "float_type": "a number",
    "float_parsing": "a number",
    "greater_than": "more than {gt}",
    "greater_than_equal": "at least {ge}",
    "int_from_float": "a whole number",
    "int_parsing": "a whole number",
    "int_parsing_size": "a smaller number",
    "int_type": "a whole number",
    "less_than_equal": "at most {le}",
    "list_type": "a list",
    "literal_error": "{expected}",
    "model_type": "a table of fields",
    "string_too_long": "at most {max_length} characters",
    "string_type": "text (in quotes)",
    "too_long": "at most {max_length} items",
    "too_short": "a list with something in it",
    "tuple_type": "a list",
}


def explain(error: ValidationError, fields: Mapping[str, Any]) -> list[str]:
    """Give a line for each mistake in ``fields``, which a spec could not be made of."""
    found: dict[Path, list[ErrorDetails]] = {}
    for detail in error.errors(include_url=False):
        found.setdefault(_path(detail["loc"], fields), []).append(detail)
    lines = []
    for path, details in found.items():
        if any(other[: len(path)] == path and other != path for other in found):
            continue  # it only follows from the mistake further down
        if details[0]["type"] == "missing" and _is_misspelt(path, found):
            continue
        lines.append(f"{_written(path)}: {_say(path, details)}")
    if len(lines) > _MAX_LINES:
        lines[_MAX_LINES:] = [f"… and {len(lines) - _MAX_LINES} mistakes more"]
    return lines


def _path(loc: Sequence[str | int], fields: object) -> Path:
    """Leave out of pydantic's location what the user did not write: names of union members."""
    path: list[str | int] = []
    here: Any = fields
    for part in loc:
        if isinstance(here, Mapping) and (part in here or part in _FIELDS):
            path.append(part)
            here = here.get(part)
        elif isinstance(here, list) and isinstance(part, int) and part < len(here):
            path.append(part)
            here = here[part]
    return tuple(path)


def _written(path: Path) -> str:
    text = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path)
    return text.removeprefix(".") or "the task"


def _is_misspelt(path: Path, found: Mapping[Path, list[ErrorDetails]]) -> bool:
    return any(
        other[:-1] == path[:-1]
        and details[0]["type"] == "extra_forbidden"
        and path[-1] in _similar(other)
        for other, details in found.items()
        if other
    )


def _say(path: Path, details: Sequence[ErrorDetails]) -> str:
    first = details[0]
    match first["type"]:
        case "missing":
            return "is missing: add it"
        case "extra_forbidden":
            similar = _similar(path)
            return f"unknown field: {f'did you mean {similar[0]}?' if similar else 'remove it'}"
        case "value_error":
            return first["msg"].removeprefix("Value error, ")
        case "string_too_short":
            return "is empty: fill it in, or remove it"
    wishes = [
        _HAS_TO_BE[detail["type"]].format(**detail.get("ctx", {}))
        for detail in details
        if detail["type"] in _HAS_TO_BE
    ]
    if not wishes:
        return first["msg"]
    got = first["input"]
    shown = f", not {got!r:.60}" if isinstance(got, str | int | float) else ""
    return f"has to be {' or '.join(dict.fromkeys(wishes))}{shown}"


def _similar(path: Path) -> list[str]:
    names = _fields_at(path[:-1])
    return get_close_matches(str(path[-1]), names, n=1) if path else []


def _fields_at(path: Path) -> list[str]:
    model: type[BaseModel] = Spec
    for part in path:
        if isinstance(part, str):
            inner = next(_models(model.model_fields[part].annotation), None)
            if inner is None:
                return []
            model = inner
    return list(model.model_fields)


def _models(annotation: Any) -> Iterator[type[BaseModel]]:
    """Yield the models that a field's type names."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    elif get_origin(annotation) in (tuple, Union, UnionType):
        for inner in get_args(annotation):
            yield from _models(inner)


def _names(model: type[BaseModel]) -> Iterator[str]:
    for name, field in model.model_fields.items():
        yield name
        for inner in _models(field.annotation):
            yield from _names(inner)


_FIELDS = frozenset(_names(Spec))
