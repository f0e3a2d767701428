"""JSON schemas: of a tool's arguments, and of the answer of a structured-output row."""

from __future__ import annotations

import functools
import json
from typing import Any

from jsonschema import Draft202012Validator
from referencing import Registry

# Type names of other languages that tools use. None means no restriction.
_TYPE_ALIASES: dict[str, str | None] = {
    **{"dict": "object", "hashmap": "object", "list": "array", "tuple": "array", "arraylist": "array"},
    **{"str": "string", "int": "integer", "long": "integer", "float": "number", "double": "number"},
    **{"bool": "boolean", "any": None},
}
_MAPS_OF_SCHEMAS = ("properties", "$defs", "definitions")  # their keys are names, not keywords
_VALUES = ("enum", "const", "default", "examples")  # not schemas


def fits_schema(value: Any, schema: dict[str, Any]) -> bool | None:
    """Whether a value is valid under a schema; None if the schema itself is invalid.

    Args:
        value: A JSON value.
        schema: A JSON schema. Type names of other languages (``dict``, ``float``) are accepted.

    Example:
        >>> schema = {"type": "dict", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
        >>> fits_schema({"n": 1}, schema), fits_schema({"n": "1"}, schema), fits_schema({}, {"type": 7})
        (True, False, None)
    """
    try:
        return bool(schema_validator(json.dumps(schema)).is_valid(value))
    except Exception:  # foreign schemas fail in many ways: dangling references, invalid patterns, …
        return None


def standard_schema(schema: Any) -> Any:
    """A schema with the type names of JSON Schema in place of other languages' names."""
    if isinstance(schema, list):
        return [standard_schema(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    standard: dict[str, Any] = {}
    for key, value in schema.items():
        if key in _MAPS_OF_SCHEMAS and isinstance(value, dict):
            standard[key] = {name: standard_schema(item) for name, item in value.items()}
        elif key in _VALUES:
            standard[key] = value
        elif key == "type" and isinstance(value, str):
            type_name = _TYPE_ALIASES.get(value.lower(), value)
            standard |= {} if type_name is None else {"type": type_name}
        else:
            standard[key] = standard_schema(value)
    return standard


@functools.lru_cache(maxsize=4096)
def schema_validator(text: str) -> Draft202012Validator:
    """The validator of a schema given as JSON. It never fetches a remote schema.

    Raises:
        SchemaError: If the schema is invalid.
    """
    schema = standard_schema(json.loads(text))
    Draft202012Validator.check_schema(schema)
    return Draft202012Validator(schema, registry=Registry())  # an empty registry resolves nothing remotely
