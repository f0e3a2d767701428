"""JSON schemas: of a tool's arguments, and of the answer of a structured-output row.

Schemas and values come from datasets and models, and a pattern such as ``^(a|aa)+$`` takes exponential time on some
texts. So patterns are matched by the `regex` module with a time limit: unlike an engine without backtracking, it
supports all of the syntax of patterns, and transformers requires it anyway.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator
from typing import Any

import regex
from jsonschema import Draft202012Validator, SchemaError, ValidationError
from jsonschema.validators import extend
from referencing import Registry

# Type names of other languages that tools use. None means no restriction.
_TYPE_ALIASES: dict[str, str | None] = {
    **{"dict": "object", "hashmap": "object", "list": "array", "tuple": "array", "arraylist": "array"},
    **{"str": "string", "int": "integer", "long": "integer", "float": "number", "double": "number"},
    **{"bool": "boolean", "any": None},
}
_MAPS_OF_SCHEMAS = ("properties", "$defs", "definitions")  # their keys are names, not keywords
_VALUES = ("enum", "const", "default", "examples")  # not schemas
_PATTERN_TIMEOUT = 0.5  # seconds per match; an ordinary pattern takes microseconds


class PatternError(ValueError):
    """A pattern of a schema cannot be matched: it takes too long, or it is invalid."""


def fits_schema(value: Any, schema: dict[str, Any]) -> bool | None:
    """Whether a value is valid under a schema; None if the schema is invalid or takes too long to check.

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

    Validating raises :class:`PatternError` if a pattern cannot be matched in time.

    Raises:
        SchemaError: If the schema is invalid.
    """
    schema = standard_schema(json.loads(text))
    Draft202012Validator.check_schema(schema)
    if '"unevaluatedProperties"' in text and '"patternProperties"' in text:
        raise SchemaError("unevaluatedProperties with patternProperties is not supported")  # jsonschema matches them
    return _TimeLimitedValidator(schema, registry=Registry())  # an empty registry resolves nothing remotely


def _search(pattern: str, text: str) -> bool:
    """Whether a pattern occurs in a text."""
    if pattern in _SLOW_PATTERNS:
        raise PatternError(f"the pattern {pattern!r} takes too long")
    try:
        return regex.search(pattern, text, timeout=_PATTERN_TIMEOUT) is not None
    except TimeoutError as error:
        _SLOW_PATTERNS.add(pattern)  # one time limit per pattern, not one per value
        raise PatternError(f"the pattern {pattern!r} takes too long") from error
    except regex.error as error:
        raise PatternError(f"the pattern {pattern!r} is invalid: {error}") from error


_SLOW_PATTERNS: set[str] = set()


# The keywords of jsonschema that match patterns, with the signature that it calls them with.


def _pattern(validator: Any, pattern: str, instance: Any, schema: dict[str, Any]) -> Iterator[ValidationError]:
    if isinstance(instance, str) and not _search(pattern, instance):
        yield ValidationError(f"{instance!r} does not match {pattern!r}")


def _pattern_properties(
    validator: Any, patterns: dict[str, Any], instance: Any, schema: dict[str, Any]
) -> Iterator[ValidationError]:
    if isinstance(instance, dict):
        for pattern, subschema in patterns.items():
            for name in instance:
                if _search(pattern, name):
                    yield from validator.descend(instance[name], subschema, path=name, schema_path=pattern)


def _additional_properties(
    validator: Any, additional: Any, instance: Any, schema: dict[str, Any]
) -> Iterator[ValidationError]:
    if not isinstance(instance, dict):
        return
    patterns = schema.get("patternProperties", {})
    known = schema.get("properties", {})
    for name in instance:
        if name in known or any(_search(pattern, name) for pattern in patterns):
            continue
        if isinstance(additional, dict):
            yield from validator.descend(instance[name], additional, path=name)
        elif not additional:
            yield ValidationError(f"Additional properties are not allowed ({name!r} was unexpected)")


_TimeLimitedValidator = extend(
    Draft202012Validator,
    {
        "pattern": _pattern,
        "patternProperties": _pattern_properties,
        "additionalProperties": _additional_properties,
    },
)
