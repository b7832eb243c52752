"""The JSON Schema describes task files as people write them, short forms included."""

import json
from typing import Any

from simagent.cli.schema import schema_text

SCHEMA: dict[str, Any] = json.loads(schema_text())


def words(schema: Any) -> set[str]:
    """Collect the keywords of a schema, of subschemas too, without the names of properties."""
    if isinstance(schema, list):
        return set().union(*map(words, schema))
    if not isinstance(schema, dict):
        return set()
    found = set(schema)
    for key, value in schema.items():
        named = value.values() if key in ("properties", "$defs") else [value]
        if key not in ("default", "const", "enum", "required"):
            found |= set().union(*map(words, named))
    return found


def test_a_command_is_a_string_a_list_or_a_table() -> None:
    types = [form["type"] for form in SCHEMA["$defs"]["Command"]["anyOf"]]
    assert types == ["string", "array", "object"]


def test_an_input_is_a_string_or_a_table() -> None:
    types = [form["type"] for form in SCHEMA["$defs"]["Input"]["anyOf"]]
    assert types == ["string", "object"]


def test_unknown_fields_are_refused_where_the_fields_are_named() -> None:
    assert SCHEMA["additionalProperties"] is False
    table = SCHEMA["$defs"]["Command"]["anyOf"][-1]
    assert table["additionalProperties"] is False
    assert "run" in table["properties"]


def test_times_sizes_and_variables_are_numbers_or_text() -> None:
    assert SCHEMA["properties"]["grace"]["type"] == ["number", "string"]
    memory = SCHEMA["$defs"]["Resources"]["properties"]["memory"]["anyOf"][0]
    assert memory == {"type": ["integer", "string"], "minimum": 0}
    assert SCHEMA["properties"]["env"]["additionalProperties"] == {"type": ["string", "number"]}


def test_only_words_of_json_schema_are_used() -> None:
    known = {"$defs", "$ref", "$schema", "additionalProperties", "anyOf", "const", "default"}
    known |= {"description", "enum", "items", "maxItems", "maxLength", "maximum", "minItems"}
    known |= {"minLength", "minimum", "exclusiveMinimum", "properties", "required", "title", "type"}
    assert words(SCHEMA) <= known
