"""Tool schemas for constrained decoding: as xgrammar understands them, and what it does not enforce."""

from __future__ import annotations

from collections.abc import Iterator, Set
from typing import Any

from fc_lightning.conversation.json_schema import fits_schema, standard_schema

_MAPS_OF_SCHEMAS = ("properties", "patternProperties", "dependentSchemas", "$defs", "definitions")
_LISTS_OF_SCHEMAS = ("anyOf", "allOf", "oneOf", "prefixItems")
_SCHEMAS = ("items", "additionalProperties", "contains", "propertyNames", "not", "if", "then", "else")

# Keywords that the compiler of xgrammar ignores.
IGNORED = {"not", "if", "uniqueItems", "contains", "dependentRequired", "dependentSchemas", "dependencies"}
# Keywords that may be next to `anyOf` or `$ref` without being lost.
_ANNOTATIONS = {"title", "description", "default", "examples", "$defs", "definitions", "$schema", "$id", "$comment"}


def arguments_schema(parameters: dict[str, Any]) -> dict[str, Any]:
    """The schema of a tool's arguments: always an object, whatever type the tool declares, as calls are parsed.

    Properties that are required and not declared are declared, as nothing else would be allowed for them, and values of
    an ``enum`` that the rest of its schema rejects are omitted.

    Args:
        parameters: The tool's own schema.

    Example:
        >>> arguments_schema({"type": "array", "required": ["city"]})
        {'type': 'object', 'required': ['city'], 'properties': {'city': {}}}
    """
    return _complete({**standard_schema(parameters), "type": "object"})


def unenforced_keywords(schema: Any, ignored: Set[str] = IGNORED) -> set[str]:
    """The keywords in a schema that constrained decoding does not enforce.

    Args:
        schema: A schema.
        ignored: The keywords that the grammar ignores.

    Example:
        >>> sorted(unenforced_keywords({"properties": {"a": {"uniqueItems": True}}, "not": {"required": ["a"]}}))
        ['not', 'uniqueItems']
    """
    if not isinstance(schema, dict):
        return set()
    found = {keyword for keyword in ignored & schema.keys() if schema[keyword] is not False}
    if len(schema.get("allOf", ())) > 1:
        found.add("allOf")
    if len(schema.get("oneOf", ())) > 1:
        found.add("oneOf")  # taken as anyOf
    for keyword in ("anyOf", "oneOf", "allOf", "$ref"):
        if keyword in schema and schema.keys() - _ANNOTATIONS - {keyword}:
            found.add(f"{keyword} with other keywords")
    return found.union(*(unenforced_keywords(each, ignored) for each in _subschemas(schema)))


def _complete(schema: Any) -> Any:
    if not isinstance(schema, dict):
        return schema
    complete = dict(schema)
    for keyword in schema.keys() & {*_MAPS_OF_SCHEMAS}:
        if isinstance(schema[keyword], dict):
            complete[keyword] = {name: _complete(item) for name, item in schema[keyword].items()}
    for keyword in schema.keys() & {*_LISTS_OF_SCHEMAS}:
        complete[keyword] = [_complete(item) for item in schema[keyword]]
    for keyword in schema.keys() & {*_SCHEMAS}:
        complete[keyword] = _complete(schema[keyword])
    if required := schema.get("required"):
        complete["properties"] = {**{name: {} for name in required}, **complete.get("properties", {})}
    if enum := schema.get("enum"):
        others = {keyword: value for keyword, value in schema.items() if keyword != "enum"}
        complete["enum"] = [value for value in enum if fits_schema(value, others) is not False] or enum
    return complete


def _subschemas(schema: dict[str, Any]) -> Iterator[Any]:
    for keyword in _MAPS_OF_SCHEMAS:
        yield from schema[keyword].values() if isinstance(schema.get(keyword), dict) else ()
    for keyword in _LISTS_OF_SCHEMAS:
        yield from schema.get(keyword, ())
    yield from (schema[keyword] for keyword in _SCHEMAS if keyword in schema)
