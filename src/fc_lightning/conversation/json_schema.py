"""Values against JSON schemas, as tools declare their arguments and JSON-mode rows their answer."""

from __future__ import annotations

import functools
import json
from typing import Any

from jsonschema import Draft202012Validator
from referencing import Registry

# Type names that tool lists use and JSON schema does not know; None puts no condition.
_NAMES: dict[str, str | None] = {
    **{"dict": "object", "hashmap": "object", "list": "array", "tuple": "array", "arraylist": "array"},
    **{"str": "string", "int": "integer", "long": "integer", "float": "number", "double": "number"},
    **{"bool": "boolean", "any": None},
}


def fits_schema(value: Any, schema: dict[str, Any]) -> bool | None:
    """Whether a value is valid by a schema; None where the schema itself is no use.

    Args:
        value: Of JSON's types.
        schema: A JSON schema. Type names that tools borrow from Python (``dict``, ``float``) are understood.

    Example:
        >>> schema = {"type": "dict", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
        >>> fits_schema({"n": 1}, schema), fits_schema({"n": "1"}, schema), fits_schema({}, {"type": 7})
        (True, False, None)
    """
    try:
        return bool(schema_validator(json.dumps(schema)).is_valid(value))
    except Exception:  # a schema of somebody else's may fail in many ways: references to nowhere, bad patterns
        return None


def standard_schema(schema: Any) -> Any:
    """A schema with the type names of JSON schema; ``any`` is no restriction."""
    if isinstance(schema, list):
        return [standard_schema(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    out: dict[str, Any] = {}
    for key, value in schema.items():
        if key in ("properties", "$defs", "definitions") and isinstance(value, dict):
            out[key] = {name: standard_schema(item) for name, item in value.items()}  # names, not keywords
        elif key in ("enum", "const", "default", "examples"):
            out[key] = value
        elif key == "type" and isinstance(value, str):
            name = _NAMES.get(value.lower(), value)
            out |= {} if name is None else {"type": name}
        else:
            out[key] = standard_schema(value)
    return out


@functools.lru_cache(maxsize=4096)
def schema_validator(text: str) -> Draft202012Validator:
    """The validator of a schema that is given as JSON; it fetches nothing from anywhere.

    Raises:
        SchemaError: If the schema, with standard type names, is no valid one.
    """
    schema = standard_schema(json.loads(text))
    Draft202012Validator.check_schema(schema)
    return Draft202012Validator(schema, registry=Registry())  # a registry of its own looks nowhere else
