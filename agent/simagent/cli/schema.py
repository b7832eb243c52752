"""The JSON Schema of task files, their short forms included."""

import json
from collections.abc import Mapping
from typing import Any

from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue
from pydantic_core import core_schema

from simagent.domain.quantities import parse_duration, parse_size
from simagent.domain.spec import Command, Input, Spec

_TEXT: JsonSchemaValue = {"type": "string"}
_WITH_UNIT = (parse_duration, parse_size)
_WORDS = {"ge": "minimum", "gt": "exclusiveMinimum"}
_SHORT_FORMS: Mapping[type, list[JsonSchemaValue]] = {
    Command: [_TEXT, {"type": "array", "items": _TEXT, "minItems": 1}],
    Input: [_TEXT],
}


def schema_text() -> str:
    """Write the schema, for editors and other validators."""
    schema = Spec.model_json_schema(schema_generator=_WithShortForms)
    schema = {"$schema": GenerateJsonSchema.schema_dialect, **_with_known_words(schema)}
    return json.dumps(schema, indent=2, ensure_ascii=False) + "\n"


def _with_known_words(schema: Any) -> Any:
    """Spell limits as JSON Schema does where pydantic could not, because of the functions."""
    if isinstance(schema, list):
        return [_with_known_words(item) for item in schema]
    if isinstance(schema, dict):
        return {_WORDS.get(key, key): _with_known_words(value) for key, value in schema.items()}
    return schema


class _WithShortForms(GenerateJsonSchema):
    """Adds what a spec also accepts, because a function turns it into the full form."""

    def function_before_schema(
        self, schema: core_schema.BeforeValidatorFunctionSchema
    ) -> JsonSchemaValue:
        full = super().function_before_schema(schema)
        if schema["function"]["function"] in _WITH_UNIT:
            return {"type": [full["type"], "string"]}
        return full

    def model_schema(self, schema: core_schema.ModelSchema) -> JsonSchemaValue:
        full = super().model_schema(schema)
        short = _SHORT_FORMS.get(schema["cls"])
        return {"anyOf": [*short, full]} if short else full

    def dict_schema(self, schema: core_schema.DictSchema) -> JsonSchemaValue:
        full = super().dict_schema(schema)
        if full.get("additionalProperties") == _TEXT:
            full["additionalProperties"] = {"type": ["string", "number"]}
        return full
