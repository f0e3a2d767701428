"""Values of a row: strict reading of texts, tools, calls and schemas, however they are spelled."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from typing import Any

from fc_lightning.conversation.parsing import (
    CallSyntaxError,
    call_from_value,
    parse_literal,
    to_json_value,
    tool_from_value,
    unambiguous_object,
)
from fc_lightning.conversation.types import Tool, ToolCall

Row = Mapping[str, Any]

# Spellings of a call's name and arguments, and of a tool's parameters, in order of preference.
_NAME_KEYS = ("name", "tool_name", "function_name", "tool", "function")
_ARGUMENT_KEYS = ("arguments", "parameters", "args", "input", "tool_input", "action_input")
_SCHEMA_KEYS = ("parameters", "input_schema", "inputSchema", "parametersJsonSchema", "parameters_json_schema")
CALL_KEYS = frozenset((*_NAME_KEYS, *_ARGUMENT_KEYS, "id", "call_id", "type", "index"))
TOOL_KEYS = frozenset((*_SCHEMA_KEYS, "name", "description", "required", "type", "function"))
# Keywords of JSON schema whose value may be null.
_NULLABLE_KEYWORDS = frozenset(("default", "const", "enum", "examples"))
_NULL_OR_NESTED = frozenset((type(None), dict, list))
_PYTHON_TYPE = re.compile(r"(?P<outer>[\w.]+)(?:\[(?P<inner>.*)\])?", re.DOTALL)


class RowError(ValueError):
    """A row that cannot be read as a conversation.

    The message is one sentence with the reason; the caller adds file and row.
    """


def text_of(value: Any, what: str) -> str:
    """Check that a value is a text that can be encoded."""
    if not isinstance(value, str):
        raise RowError(f"{what} must be a string, not {type(value).__name__}")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise RowError(f"{what} contains half a surrogate pair, which cannot be encoded") from None
    return value


def column_text(row: Row, key: str, needed: bool = False) -> str:
    """A column as text, unchanged; other values as JSON, a missing one as an empty text."""
    value = row.get(key)
    if needed and not value:
        raise RowError(f"the row has no `{key}`")
    if value is not None and not isinstance(value, str):
        value = json.dumps(value, ensure_ascii=False)
    return text_of(value or "", f"`{key}`")


def is_empty(value: Any) -> bool:
    """Whether a value says nothing: null, an empty text, list or object."""
    return value is None or (not value and isinstance(value, (str, list, dict)))


def as_list(value: Any) -> list[Any]:
    """The values of a list, a single object, a text of either, or a text with several values one after the other."""
    if isinstance(value, str):
        try:
            value = parse_literal(value) if value.strip() else None
        except CallSyntaxError as error:
            value = _values_in_sequence(value, error)
    if value is None:
        return []
    if not isinstance(value, dict | list):
        raise CallSyntaxError(f"it must be an object or a list, not {type(value).__name__}")
    return value if isinstance(value, list) else [value]


def _values_in_sequence(text: str, error: CallSyntaxError) -> list[Any]:
    """JSON objects one after the other, or an object on each line."""
    if not text.lstrip().startswith(("{", "[")):
        raise error
    values, position, decoder = [], 0, json.JSONDecoder(object_pairs_hook=unambiguous_object)
    try:
        while following := re.compile(r"[^\s,;]").search(text, position):
            value, position = decoder.raw_decode(text, following.start())
            values += value if isinstance(value, list) else [value]
        return [to_json_value(value) for value in values]
    except (ValueError, RecursionError):
        lines = [line for line in text.splitlines() if line.strip()]
        if len(lines) < 2 or not all(line.lstrip().startswith("{") for line in lines):
            raise error from None
        return [parse_literal(line) for line in lines]


def read_call(value: Any) -> ToolCall:
    """Read a call: an object or a text of one; arguments may be an object, or a text that is encoded once or twice.

    Raises:
        CallSyntaxError: If it is not a call.
    """
    is_json_value = isinstance(value, str)
    value = parse_literal(value) if is_json_value else value
    if isinstance(value, dict):
        if isinstance(value.get("function"), dict):
            value = value["function"]
        name = next((value[key] for key in _NAME_KEYS if isinstance(value.get(key), str)), value.get("name"))
        key = next((key for key in _ARGUMENT_KEYS if key in value), None)
        if key is not None:
            value = {"name": name, "arguments": _arguments(value[key])}
    return call_from_value(value, is_json_value)


def _arguments(value: Any) -> Any:
    if value in (None, ""):  # servers write these for a call without arguments
        return {}
    if isinstance(value, str):
        decoded = parse_literal(value)
        return parse_literal(decoded) if isinstance(decoded, str) else decoded
    return value


def call_id(value: Any) -> str:
    """The id of a call value, or an empty text."""
    found = next((value[key] for key in ("call_id", "id") if value.get(key)), "") if isinstance(value, dict) else ""
    return found if isinstance(found, str) else str(found)


def read_tools(
    value: Any, python_types: bool = False, note_unread: Callable[[str, Row, frozenset[str]], None] | None = None
) -> tuple[Tool, ...]:
    """Read the tools of a list, an object or a text of either.

    Args:
        value: The tools.
        python_types: Whether types are written as in Python, ``List[int], optional``, and are translated.
        note_unread: Is told of each tool, with the keys that are read.

    Raises:
        CallSyntaxError: If one of them cannot be read; half of the tools would be a different task.
    """
    is_text = isinstance(value, str)
    tools: list[Tool] = []
    for item in as_list(value):
        declarations = _declarations(item)
        for declaration in [item] if declarations is None else declarations:
            if note_unread and isinstance(declaration, dict):
                note_unread("tool", {**declaration, **_inner(declaration)}, TOOL_KEYS)
            tools.append(_read_tool(declaration, is_text, python_types))
    return tuple(tools)


def _inner(value: dict[str, Any]) -> dict[str, Any]:
    function = value.get("function")
    return function if isinstance(function, dict) else {}


def _declarations(value: Any) -> list[Any] | None:
    """The functions that a Gemini tool groups; None for any other tool."""
    keys = ("functionDeclarations", "function_declarations")
    key = next((key for key in keys if isinstance(value, dict) and key in value), None)
    return None if key is None else as_list(value[key])


def _read_tool(value: Any, is_json_value: bool, python_types: bool) -> Tool:
    if isinstance(value, str):
        value, is_json_value = parse_literal(value), True
    function = value.get("function", value) if isinstance(value, dict) else value
    if isinstance(function, str) and isinstance(value, dict):
        function = parse_literal(function)
    if not isinstance(function, dict):
        return tool_from_value(function, is_json_value)
    key = next((key for key in _SCHEMA_KEYS if not is_empty(function.get(key))), "parameters")
    parameters = function.get(key)
    if isinstance(parameters, str) and parameters.lstrip().startswith("{"):
        parameters = parse_literal(parameters)
    if isinstance(parameters, dict) and parameters:
        parameters = _read_schema(parameters, python_types)
        # Some sources put `required` next to the schema instead of inside.
        required = value.get("required") or function.get("required")
        if "required" not in parameters and isinstance(required, list):
            parameters = {**parameters, "required": required}
    return tool_from_value({**function, "parameters": parameters}, is_json_value)


def _read_schema(parameters: dict[str, Any], python_types: bool) -> dict[str, Any]:
    """A JSON schema of arguments; the bare ``{name: {description, type}}`` of some sources gets one around it."""
    parameters = _without_nulls(parameters)
    is_schema = isinstance(parameters.get("type"), str) or not all(isinstance(v, dict) for v in parameters.values())
    if not is_schema and "properties" not in parameters:
        parameters = {"type": "object", "properties": parameters}
    properties = parameters.get("properties")
    if not isinstance(properties, dict):
        return parameters
    required = [name for name, one in properties.items() if isinstance(one, dict) and one.get("required") is True]
    types = [one.get("type") for one in properties.values() if isinstance(one, dict)]
    if (
        python_types
        and "required" not in parameters
        and any(isinstance(name, str) and "optional" in name for name in types)
    ):
        required = [name for name, one in properties.items() if isinstance(one, dict) and not _is_optional(one)]
    read = {name: _property(one, python_types) if isinstance(one, dict) else one for name, one in properties.items()}
    if read == properties and not required:
        return parameters
    return {**parameters, "properties": read, **({"required": required} if "required" not in parameters else {})}


def _is_optional(schema: dict[str, Any]) -> bool:
    return "optional" in str(schema.get("type")).lower() or "default" in schema


def _property(schema: dict[str, Any], python_types: bool) -> dict[str, Any]:
    """A property without a boolean ``required``; a Python type is translated unless JSON schema has it."""
    if isinstance(schema.get("required"), bool):
        schema = {key: value for key, value in schema.items() if key != "required"}
    name = schema.get("type")
    if python_types and isinstance(name, str) and re.search(r"[\[,]", name):
        schema = {key: value for key, value in schema.items() if key != "type"} | _python_type(name)
    return schema


def _python_type(name: str) -> dict[str, Any]:
    """The JSON schema of a Python type; no condition where there is no equivalent."""
    name = re.sub(r",\s*optional\s*(?:\(.*\))?$", "", name.strip(), flags=re.IGNORECASE)
    match = _PYTHON_TYPE.fullmatch(name.strip())
    if match is None:
        return {}
    outer, inner = match["outer"].lower().rpartition(".")[2], match["inner"]
    simple = {"str": "string", "int": "integer", "float": "number", "bool": "boolean"}
    simple |= dict.fromkeys(("string", "integer", "number", "boolean", "array", "object"), "") | {"dict": "object"}
    if outer == "optional" and inner:
        return _python_type(inner)
    if outer in ("list", "set", "tuple", "sequence"):
        items = _python_type(inner) if inner and "," not in inner else {}
        return {"type": "array", "items": items} if items else {"type": "array"}
    if outer in simple:
        return {"type": simple[outer] or outer}
    return {}


def _without_nulls(schema: Any, keyword: bool = True) -> Any:
    """A schema without the nulls that a table filled in."""
    if isinstance(schema, list):
        return [_without_nulls(item) for item in schema]
    if not isinstance(schema, dict) or _NULL_OR_NESTED.isdisjoint(map(type, schema.values())):
        return schema
    return {
        key: _without_nulls(value, keyword=key != "properties")
        if isinstance(value, (dict, list)) and not (keyword and key in _NULLABLE_KEYWORDS)
        else value
        for key, value in schema.items()
        if value is not None or (keyword and key in _NULLABLE_KEYWORDS)
    }


def drop_filled_nulls(call: ToolCall, tools: Mapping[str, Tool]) -> ToolCall:
    """The call without null arguments, unless the tool's schema allows null.

    A table gives every call the arguments of all calls; those that a call does not have become null.
    """
    schema = tools[call.name].parameters if call.name in tools else {}
    arguments = _drop_nulls(call.arguments, schema)
    return call if arguments == call.arguments else ToolCall(call.name, arguments)


def _drop_nulls(value: Any, schema: Any) -> Any:
    schema = schema if isinstance(schema, dict) else {}
    if isinstance(value, list):
        return [_drop_nulls(item, schema.get("items")) for item in value]
    if not isinstance(value, dict):
        return value
    properties = schema.get("properties")
    properties = properties if isinstance(properties, dict) else {}
    return {
        key: _drop_nulls(item, properties.get(key))
        for key, item in value.items()
        if item is not None or _allows_null(properties.get(key))
    }


def _allows_null(schema: Any) -> bool:
    if not isinstance(schema, dict):
        return False
    names = schema.get("type")
    names = names if isinstance(names, list) else [names]
    if {"null", "None", "any"} & {name for name in names if isinstance(name, str)} or schema.get("nullable") is True:
        return True
    if "default" in schema and schema["default"] is None:
        return True
    if isinstance(schema.get("enum"), list) and None in schema["enum"]:
        return True
    choices = [choice for key in ("anyOf", "oneOf") for choice in schema.get(key) or []]
    return any(map(_allows_null, choices))
