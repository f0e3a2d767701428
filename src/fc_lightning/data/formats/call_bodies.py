"""Syntaxes between a call's markers: JSON, Python, XML, and the ones of single models.

A parser returns no calls for a text in another syntax, and raises for a broken text in its own.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from typing import Any

from fc_lightning.conversation.json_schema import fits_schema
from fc_lightning.conversation.parsing import CallSyntaxError, parse_literal, to_json_value
from fc_lightning.conversation.types import ToolCall
from fc_lightning.data.formats.python_calls import NAME, Tools, parse_python
from fc_lightning.data.formats.values import as_list, read_call

# All repetitions are bounded, so that hostile text costs linear time; what is long is found with `str.find`.
_NAMED_JSON = re.compile(rf"\s{{0,9}}(?P<name>{NAME}?)\s{{0,9}}(?:\[ARGS\]|\n|(?=\{{))\s{{0,9}}(?P<arguments>\{{)")
_FUNCTION = re.compile(r"<function=(?P<name>[^>]{1,128})>")
_PARAMETER = re.compile(r"<parameter=(?P<name>[^>]{1,128})>")
_INVOKE = re.compile(r'<invoke name="(?P<name>[^"]{1,128})">')
_INVOKE_PARAMETER = re.compile(r'<parameter name="(?P<name>[^"]{1,128})"[^>]{0,99}>')
_ARGUMENT_KEY, _ARGUMENT_VALUE = re.compile("<arg_key>"), re.compile("<arg_value>")
_QUOTED_ARGUMENTS = re.compile(
    r"""\{\s{0,9}"name":\s{0,9}"(?P<name>[^"]{1,128})",\s{0,9}"arguments":\s{0,9}'(?P<arguments>.*)'\s{0,9}\}""",
    re.DOTALL,
)
_DEEPSEEK_CALL, _KIMI_CALL = re.compile("<｜tool▁call▁begin｜>"), re.compile(r"<\|tool_call_begin\|>")
FENCE = re.compile(r"\s*```(?:json|python|py)?\s*\n(?P<body>.*?)\n?\s*```\s*", re.DOTALL)


def parse_calls(text: str, tools: Tools) -> list[ToolCall]:
    """Read the calls of a text without markers, in any of the known syntaxes.

    Raises:
        CallSyntaxError: If it is in none of them.
    """
    try:
        return [read_call(value) for value in as_list(text)] or _no_calls(text)
    except CallSyntaxError as problem:
        for parse in _BODY_PARSERS:
            calls = parse(text, tools)
            if calls:
                return calls
        raise problem from None


def _no_calls(text: str) -> list[ToolCall]:
    if text.strip().startswith("["):  # an empty list calls nothing
        return []
    raise CallSyntaxError("there is no call between the tags")


def _parse_quoted(text: str, tools: Tools) -> list[ToolCall]:
    """Glaive: arguments are JSON in single quotes, within which quotes may be unescaped."""
    match = _QUOTED_ARGUMENTS.fullmatch(text.strip())
    if match is None:
        return []
    return [read_call({"name": match["name"], "arguments": match["arguments"].replace("\\'", "'")})]


def _parse_named_json(text: str, tools: Tools) -> list[ToolCall]:
    """A name, then the arguments as JSON: Mistral's ``name[ARGS]{…}``, GLM-4's name on a line of its own."""
    match = _NAMED_JSON.match(text)
    if match is None:
        return []
    return [read_call({"name": match["name"].strip(), "arguments": parse_literal(text[match.start("arguments") :])})]


def _elements(text: str, opening: re.Pattern[str], closing: str) -> Iterator[tuple[re.Match[str], str]]:
    """Each opening mark with the text up to the next closing one.

    Raises:
        CallSyntaxError: If one of several opening marks is not closed.
    """
    position = 0
    while match := opening.search(text, position):
        end = text.find(closing, match.end())
        if (end < 0 and position) or (end >= 0 and opening.search(text, match.end(), end)):
            raise CallSyntaxError(f"{match[0]} is not closed: {text[match.start() : match.start() + 80]}")
        if end < 0:  # another syntax
            return
        yield match, text[match.end() : end]
        position = end + len(closing)


def _parse_xml(text: str, tools: Tools) -> list[ToolCall]:
    """``<function=name>`` with JSON or ``<parameter=…>`` inside, or ``<invoke name="…">`` with parameters."""
    calls = []
    notations = ((_FUNCTION, "</function>", _PARAMETER), (_INVOKE, "</invoke>", _INVOKE_PARAMETER))
    for opening, closing, parameter in notations:
        for match, body in _elements(text, opening, closing):
            name = match["name"].strip()
            given = {one["name"]: value for one, value in _elements(body, parameter, "</parameter>")}
            if given or not body.strip():
                arguments = {key: typed_argument(value, name, key, tools) for key, value in given.items()}
            else:
                arguments = parse_literal(body)
            calls.append(read_call({"name": name, "arguments": arguments}))
    return calls


def _parse_glm(text: str, tools: Tools) -> list[ToolCall]:
    """GLM-4.5: a name, then ``<arg_key>`` and ``<arg_value>`` for each argument."""
    name = text.partition("<arg_key>")[0].strip()
    keys = [key.strip() for _, key in _elements(text, _ARGUMENT_KEY, "</arg_key>")]
    values = [value for _, value in _elements(text, _ARGUMENT_VALUE, "</arg_value>")]
    if len(keys) != len(values):
        raise CallSyntaxError(f"{len(keys)} <arg_key>, but {len(values)} <arg_value>: {text[:80]}")
    given = dict(zip(keys, values, strict=True))
    if not re.fullmatch(NAME, name) or (not given and name not in tools):
        return []
    return [ToolCall(name, {key: typed_argument(value, name, key, tools) for key, value in given.items()})]


def typed_argument(text: str, name: str, argument: str, tools: Tools) -> Any:
    """An argument that is written without quotes: a text if only a text fits the schema, else JSON if it is JSON."""
    text = text.strip("\n") if "\n" in text else text.strip()
    properties = tools[name].parameters.get("properties") if name in tools else None
    schema = properties.get(argument) if isinstance(properties, dict) else None
    if isinstance(schema, dict) and str(schema.get("type")).lower() in ("string", "str"):
        return text
    try:
        value = parse_literal(text)
    except CallSyntaxError:
        return text
    is_text = isinstance(schema, dict) and fits_schema(text, schema) and not fits_schema(value, schema)
    return text if is_text else value


def _parse_sections(text: str, tools: Tools) -> list[ToolCall]:
    """DeepSeek's and Kimi's sections: each call between markers of its own."""
    calls = []
    for _, call in _elements(text, _DEEPSEEK_CALL, "<｜tool▁call▁end｜>"):
        head, _, body = (part.strip() for part in call.partition("<｜tool▁sep｜>"))
        if head == "function":  # the name is on the first line, the arguments in a fence
            head, _, body = body.partition("\n")
        fence = FENCE.fullmatch(body)
        calls.append(read_call({"name": head.strip(), "arguments": fence["body"] if fence else body}))
    for _, call in _elements(text, _KIMI_CALL, "<|tool_call_end|>"):
        name, _, body = call.partition("<|tool_call_argument_begin|>")
        name = re.sub(r"^functions\.|:\d{1,9}$", "", name.strip())
        calls.append(read_call({"name": name, "arguments": body.strip()}))
    return calls


def _parse_function_gemma(text: str, tools: Tools) -> list[ToolCall]:
    """FunctionGemma: ``call:name{key:<escape>text<escape>,number:1}``; Gemma 4 has another quote."""
    match = re.fullmatch(rf"\s*call:(?P<name>{NAME})(?P<body>\{{.*\}})\s*", text, re.DOTALL)
    if match is None:
        return []
    return [ToolCall(match["name"], to_json_value(parse_gemma_object(match["body"])))]


def parse_gemma_object(text: str) -> Any:
    """Read FunctionGemma's objects: keys without quotes, texts between ``<escape>`` marks.

    Raises:
        CallSyntaxError: If the text is not such an object.
    """
    quote = '<|"|>' if '<|"|>' in text else "<escape>"
    parts = text.split(quote)
    # Outside of texts only keys need quotes; a text becomes a JSON string.
    pieces = [
        json.dumps(part) if index % 2 else re.sub(r"([{,]\s*)([A-Za-z_][\w.\-]*)\s*:", r'\1"\2":', part)
        for index, part in enumerate(parts)
    ]
    if len(parts) % 2 == 0:
        raise CallSyntaxError(f"a string is not closed: {text[:80]}")
    return parse_literal("".join(pieces))


_BODY_PARSERS: tuple[Callable[[str, Tools], list[ToolCall]], ...] = (
    _parse_quoted,
    _parse_function_gemma,
    _parse_xml,
    _parse_sections,
    _parse_glm,
    _parse_named_json,
    parse_python,
)
