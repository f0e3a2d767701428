"""Name masking: functions and parameters get meaningless names, so that only descriptions distinguish them.

After "Hammer: Robust Function-Calling for On-Device Language Models via Function Masking", arXiv:2410.04587.
"""

from __future__ import annotations

import random
import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import replace
from typing import Any

from fc_lightning.conversation.parsing import dump_json
from fc_lightning.conversation.types import Conversation, Message, Tool, ToolCall

_CONSONANTS, _VOWELS = "bdfgklmnprstvz", "aeiou"
# Schemas that name properties outside `properties` and `required`: their names are not changed.
_REFERS_TO_NAMES = {
    *("allOf", "anyOf", "oneOf", "not", "if", "patternProperties", "propertyNames", "prefixItems", "contains"),
    *("dependentRequired", "dependentSchemas", "dependencies"),
}
_VALUES = ("default", "const", "enum", "examples", "example")
# A name that is not also a word of prose: it has an underscore, a dot, a digit or an inner capital.
_IDENTIFIER = re.compile(r"\w*(?:_|\.|\d|[a-z][A-Z])[\w.]*")

Names = Mapping[str, str]


def mask_names(conversation: Conversation, rng: random.Random) -> Conversation:
    """Rename functions and parameters, the same in schemas, calls, accepted answers, responses and descriptions.

    In a text, a name is replaced only if it looks like an identifier or is quoted. The user's texts are not changed,
    because argument values come from them. A conversation is unchanged if two functions have the same name, a called
    function is not offered, or a schema has references.
    """
    functions = [tool.name for tool in conversation.tools]
    called = {call.name for message in conversation.messages for call in message.tool_calls}
    if not functions or len(set(functions)) < len(functions) or not called <= set(functions):
        return conversation
    if any(f'"{key}"' in dump_json(tool.parameters) for tool in conversation.tools for key in ("$ref", "$dynamicRef")):
        return conversation
    parameters = sorted({name for tool in conversation.tools for name in _property_names(tool.parameters)})
    taken = " ".join([dump_json([tool.to_openai() for tool in conversation.tools]), *_texts(conversation)])
    words = _meaningless_words(rng, taken)
    new_functions = {name: f"{next(words)}_{next(words)}" for name in functions}
    new_parameters = {name: next(words) for name in parameters}
    schemas = {tool.name: tool.parameters for tool in conversation.tools}

    def rename_call(call: ToolCall) -> ToolCall:
        name = new_functions.get(call.name, call.name)  # a rejected turn may call a tool that is not offered
        return ToolCall(name, _rename_value(call.arguments, schemas.get(call.name), new_parameters))

    def rename_message(message: Message) -> Message:
        reasoning, content = message.reasoning, message.content
        if message.role != "user":
            content = _rename_text(content, new_functions, new_parameters, message.role == "tool")
        return replace(
            message,
            content=content,
            reasoning=None if reasoning is None else _rename_text(reasoning, new_functions, new_parameters, True),
            tool_calls=tuple(map(rename_call, message.tool_calls)),
        )

    def rename_tool(tool: Tool) -> Tool:
        description = _rename_text(tool.description, new_functions, new_parameters)
        schema = _rename_schema(tool.parameters, new_functions, new_parameters)
        return Tool(new_functions[tool.name], description, schema)

    gold = [
        {new_functions.get(name, name): _rename_value(accepted, schemas.get(name), new_parameters)}
        for call in conversation.gold
        for name, accepted in call.items()
    ]
    return replace(
        conversation,
        messages=tuple(map(rename_message, conversation.messages)),
        tools=tuple(map(rename_tool, conversation.tools)),
        gold=tuple(gold),
        raw_turns=(),
        rejected=None if conversation.rejected is None else rename_message(conversation.rejected),
    )


def _meaningless_words(rng: random.Random, taken: str) -> Iterator[str]:
    """Different words of three syllables, none of which occurs in a text."""
    taken = taken.lower()
    while True:
        word = "".join(rng.choice(_CONSONANTS) + rng.choice(_VOWELS) for _ in range(3))
        if word not in taken:
            taken += f" {word}"
            yield word


def _texts(conversation: Conversation) -> Iterator[str]:
    rejected = () if conversation.rejected is None else (conversation.rejected,)
    for message in (*conversation.messages, *rejected):
        yield message.content
        yield message.reasoning or ""
        yield dump_json([call.arguments for call in message.tool_calls])


def _properties(schema: Any) -> dict[str, Any]:
    """The properties of an object, or of an array's objects, that can be renamed; empty if there are none."""
    if not isinstance(schema, dict) or not _REFERS_TO_NAMES.isdisjoint(schema):
        return {}
    if "properties" not in schema:
        return _properties(schema.get("items"))
    properties = schema["properties"]
    return properties if isinstance(properties, dict) and "items" not in schema else {}


def _property_names(schema: Any) -> Iterator[str]:
    for name, inner in _properties(schema).items():
        yield name
        yield from _property_names(inner)


def _rename_value(value: Any, schema: Any, names: Names) -> Any:
    """A value with the keys of its objects renamed like those of its schema.

    A list has the schema of its items: in accepted answers each value is a list of alternatives.
    """
    if isinstance(value, list):
        return [_rename_value(item, schema, names) for item in value]
    properties = _properties(schema)
    if not isinstance(value, dict) or not properties:
        return value
    return {
        names[name] if name in properties else name: _rename_value(item, properties.get(name), names)
        for name, item in value.items()
    }


def _rename_schema(schema: Any, functions: Names, names: Names) -> Any:
    """A schema with its properties renamed; if that is impossible, only its texts are changed."""
    if not isinstance(schema, dict):
        return schema
    out = dict(schema)
    if isinstance(schema.get("description"), str):
        out["description"] = _rename_text(schema["description"], functions, names)
    if not _properties(schema):
        return out
    for key in _VALUES:
        if key in schema:
            out[key] = _rename_value(schema[key], schema, names)
    if inner := schema.get("properties"):
        out["properties"] = {names[name]: _rename_schema(one, functions, names) for name, one in inner.items()}
        if isinstance(schema.get("required"), list):
            out["required"] = [names[name] if name in inner else name for name in schema["required"]]
    else:
        out["items"] = _rename_schema(schema["items"], functions, names)
    return out


def _rename_text(text: str, functions: Names, parameters: Names, quoted: bool = False) -> str:
    """A text with the names in it replaced.

    Args:
        text: Any text.
        functions: New names of functions; they take precedence over parameters.
        parameters: New names of parameters.
        quoted: Whether to replace plain words too: functions in quotes, parameters as keys (``"city":``) or assigned
            to (``city = "Rome"``), as tool responses and reasoning write them.
    """
    names = {**parameters, **functions}
    patterns = [rf"(?<![\w.])(?:{_one_of([name for name in names if _IDENTIFIER.fullmatch(name)])})(?!\w|\.\w)"]
    if quoted:
        patterns.append(rf"(?<=[\"'`])(?:{_one_of(functions)})(?=[\"'`])")
        patterns.append(rf"(?<=[\"'])(?:{_one_of(parameters)})(?=[\"']\s*:)")
        patterns.append(rf"(?<![\w.])(?:{_one_of(parameters)})(?= = )")
    return re.sub("|".join(patterns), lambda match: names[match[0]], text)


def _one_of(names: Collection[str]) -> str:
    return "|".join(map(re.escape, sorted(names, key=len, reverse=True))) or "(?!)"
