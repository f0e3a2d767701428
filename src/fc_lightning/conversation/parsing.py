"""Tools, calls and conversations: the one form that every source becomes and every other room speaks.

A model turn has a grammar, *think → tool_call → tool_response → answer*::

    turn  = [ think ] ( calls | answer )
    think = "<think>" text "</think>"
    calls = { "<tool_call>" object "</tool_call>" }

This file parses that grammar, writes calls back and compares them. It needs the standard library only.
"""

from __future__ import annotations

import ast
import json
import math
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from fc_lightning.conversation.types import Message, Tool, ToolCall

CALL_OPEN, CALL_CLOSE = "<tool_call>", "</tool_call>"
THINK_OPEN, THINK_CLOSE = "<think>", "</think>"
_TAGS = (CALL_OPEN, CALL_CLOSE, THINK_OPEN, THINK_CLOSE)
_THINK = re.compile(r"\s*<think>(?P<reasoning>.*?)</think>", re.DOTALL)
# A broken call is searched for its end only so often, so that hostile text costs linear time.
_MAX_CLOSING_TAGS = 16
_MAX_BODY = 1_000_000
_MAX_DEPTH = 64
# Python reads 0x… of any length, but refuses to write integers of more than 4,300 digits.
_MAX_INT_BITS = 10_000


class CallSyntaxError(ValueError):
    """A text that should be a tool call, or a list of tools, and is not. Its message is one sentence."""


@dataclass(frozen=True)
class Turn:
    """A model turn, parsed.

    Attributes:
        reasoning: The text of the think block, stripped; ``None`` without a closed one.
        content: The text outside of the blocks, stripped.
        tool_calls: The calls that could be read.
        errors: One sentence for each call that could not; it begins with the call's number, counted from 1.
        grammatical: Whether the turn follows the grammar: an optional closed think, then either calls alone, broken
            ones too, or an answer.
    """

    reasoning: str | None
    content: str
    tool_calls: tuple[ToolCall, ...]
    errors: tuple[str, ...]
    grammatical: bool


def parse_literal(text: str) -> Any:
    """Read one value of JSON's types, written as JSON or as a Python literal; nothing is ever evaluated.

    Raises:
        CallSyntaxError: If it is neither, too deep, too long, or holds what JSON cannot (sets, bytes, NaN, other keys).
    """
    text = text.strip()
    if len(text) > _MAX_BODY:
        raise CallSyntaxError(f"a value of {len(text):,} characters is longer than {_MAX_BODY:,}")
    try:
        value = _JSON.decode(text)
        # Neither half a surrogate pair can be in it nor too many levels.
        if text.isascii() and "\\u" not in text and text.count("{") + text.count("[") <= _MAX_DEPTH:
            return value
    except (ValueError, RecursionError) as json_error:
        try:
            value = ast.literal_eval(text)
        except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
            where = f" (as JSON: {json_error})" if isinstance(json_error, json.JSONDecodeError) else ""
            raise CallSyntaxError(f"neither JSON nor a Python literal{where}: {_shorten(text)}") from None
    return to_json_value(value)


def parse_call(text: str) -> ToolCall:
    """Read one call, the text between ``<tool_call>`` and ``</tool_call>``, or raise :class:`CallSyntaxError`."""
    return call_from_value(parse_literal(text), is_json_value=True)


def call_from_value(value: Any, is_json_value: bool = False) -> ToolCall:
    """Make a call from ``{"name": …, "arguments": …}``; arguments may be a string, as OpenAI's are.

    With ``is_json_value`` the value comes from :func:`to_json_value` and is not gone through once more.

    Raises:
        CallSyntaxError: If a key is missing or of another type.
    """
    if not isinstance(value, dict):
        raise CallSyntaxError(f"a call is an object with `name` and `arguments`, not {_show(value)}")
    name = value.get("name")
    if not isinstance(name, str) or not name:
        raise CallSyntaxError(f"the call has no `name`: {_show(value)}")
    if "arguments" not in value:
        raise CallSyntaxError(f"the call of {name} has no `arguments`: {_show(value)}")
    arguments = value["arguments"]
    if isinstance(arguments, str):
        arguments = parse_literal(arguments)
    if not isinstance(arguments, dict):
        raise CallSyntaxError(f"the arguments of {name} are no object: {_show(arguments)}")
    return ToolCall(_text(name), arguments if is_json_value else to_json_value(arguments))


def tool_from_value(value: Any, is_json_value: bool = False) -> Tool:
    """Make a tool from OpenAI's ``{"type": "function", "function": {…}}`` or from the inner object alone.

    Raises:
        CallSyntaxError: If it has no name, or its parameters are no object.
    """
    function = value.get("function", value) if isinstance(value, dict) else value
    if not isinstance(function, dict) or not isinstance(function.get("name"), str) or not function["name"]:
        raise CallSyntaxError(f"a tool is an object with a `name`, not {_show(value)}")
    parameters = function.get("parameters") or {}
    if not isinstance(parameters, dict):
        raise CallSyntaxError(f"the parameters of {function['name']} are no object: {_show(parameters)}")
    description = str(function.get("description") or "")
    return Tool(_text(function["name"]), _text(description), parameters if is_json_value else to_json_value(parameters))


def parse_turn(text: str) -> Turn:
    """Parse the text of a model turn, without the tokens that open and end it.

    Tags inside a string of a call's arguments belong to the string: the end of a call is the first closing tag before
    which a whole value stands.

    Example:
        >>> turn = parse_turn('<think>2+2</think><tool_call>{"name": "add", "arguments": {"a": 2}}</tool_call>')
        >>> turn.reasoning, turn.tool_calls, turn.grammatical
        ('2+2', (ToolCall(name='add', arguments={'a': 2}),), True)
    """
    think = _THINK.match(text)
    position = think.end() if think else 0
    calls: list[ToolCall] = []
    errors: list[str] = []
    outside: list[str] = []
    while (start := text.find(CALL_OPEN, position)) >= 0:
        outside.append(text[position:start])
        position, outcome = _take_call(text, start + len(CALL_OPEN))
        if isinstance(outcome, ToolCall):
            calls.append(outcome)
        else:
            errors.append(f"call {len(calls) + len(errors) + 1}: {outcome}")
    outside.append(text[position:])
    content = "".join(outside).strip()
    clean = not any(tag in content for tag in _TAGS) and not (think and THINK_OPEN in think["reasoning"])
    either = bool(calls or errors) != bool(content)
    reasoning = think["reasoning"].strip() if think else None
    return Turn(reasoning, content, tuple(calls), tuple(errors), clean and either)


def same_calls(first: Iterable[ToolCall], second: Iterable[ToolCall]) -> bool:
    """Whether two turns make the same calls, in any order."""
    return Counter(first) == Counter(second)


def same_names(first: Iterable[ToolCall], second: Iterable[ToolCall]) -> bool:
    """Whether two turns call the same tools equally often, in any order and with any arguments."""
    return Counter(call.name for call in first) == Counter(call.name for call in second)


def render_turn(message: Message) -> str:
    """Write an assistant's turn as the canonical template does: the inverse of :func:`parse_turn`."""
    parts = [] if message.reasoning is None else [f"{THINK_OPEN}\n{message.reasoning}\n{THINK_CLOSE}"]
    parts += [message.content] if message.content else []
    parts += [f"{CALL_OPEN}\n{dump_json(call.to_dict())}\n{CALL_CLOSE}" for call in message.tool_calls]
    return "\n".join(parts)


def dump_json(value: Any) -> str:
    """JSON on one line, as the ``tojson`` filter of Hugging Face's chat templates writes it."""
    return json.dumps(value, ensure_ascii=False)


def _take_call(text: str, start: int) -> tuple[int, ToolCall | str]:
    """Take one call that starts behind an opening tag: where it ends, and the call or what is wrong with it."""
    end, first_end, error = start - 1, -1, ""
    for _ in range(_MAX_CLOSING_TAGS):
        end = text.find(CALL_CLOSE, end + 1)
        if end < 0:
            break
        try:
            return end + len(CALL_CLOSE), parse_call(text[start:end])
        except CallSyntaxError as problem:
            error = error or str(problem)
            first_end = end if first_end < 0 else first_end
    if first_end < 0:
        return len(text), f"<tool_call> is not closed: {_shorten(text[start:])}"
    return first_end + len(CALL_CLOSE), error


def to_json_value(value: Any, depth: int = 0) -> Any:
    """The value in JSON's types.

    Raises:
        CallSyntaxError: If it holds anything else, text that is no Unicode, or too many levels.
    """
    if depth > _MAX_DEPTH:
        raise CallSyntaxError(f"nested more than {_MAX_DEPTH} levels deep")
    if isinstance(value, str):  # as most values are
        return value if value.isascii() else _text(value)
    if isinstance(value, dict):
        return {_key(key): to_json_value(item, depth + 1) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [to_json_value(item, depth + 1) for item in value]
    if isinstance(value, int) and value.bit_length() > _MAX_INT_BITS:
        raise CallSyntaxError("a number has more than 3,000 digits")
    if value is None or isinstance(value, bool | int) or (isinstance(value, float) and math.isfinite(value)):
        return value
    raise CallSyntaxError(f"JSON has no value for {_show(value)}")


def _key(value: Any) -> str:
    if not isinstance(value, str):
        raise CallSyntaxError(f"an object has a key that is no string: {_show(value)}")
    return _text(value)


def _text(value: str) -> str:
    if not value.isascii() and any("\ud800" <= char <= "\udfff" for char in value):
        raise CallSyntaxError(f"a string holds half a surrogate pair: {_shorten(ascii(value))}")
    return value


def _finite(number: str) -> float:
    if not math.isfinite(value := float(number)):
        raise ValueError(f"JSON has no value {number}")
    return value


_JSON = json.JSONDecoder(parse_float=_finite, parse_constant=_finite)


def _shorten(text: str, limit: int = 80) -> str:
    return text if len(text) <= limit else text[:limit] + "…"


def _show(value: Any) -> str:
    """The value for a message; text from a model may hold values that Python itself refuses to write."""
    try:
        return _shorten(repr(value))
    except (ValueError, RecursionError):
        return f"a value of type {type(value).__name__}"
