"""The grammar of a model turn, *think → tool_call → tool_response → answer*, and calls and tools as JSON values.

A model turn is::

    turn  = [ think ] ( calls | answer )
    think = "<think>" text "</think>"
    calls = { "<tool_call>" object "</tool_call>" }

There are two parsing modes. The lenient one is for datasets: a call may be a Python literal, or have its arguments as a
string. The strict one is for generated text: a call counts exactly if a server delivers it to a client.
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

from fc_lightning.conversation.call_pattern import is_call_object
from fc_lightning.conversation.types import Message, Tool, ToolCall
from fc_lightning.utils.escaping import shorten

CALL_OPEN, CALL_CLOSE = "<tool_call>", "</tool_call>"
THINK_OPEN, THINK_CLOSE = "<think>", "</think>"
_TAGS = (CALL_OPEN, CALL_CLOSE, THINK_OPEN, THINK_CLOSE)
THINK_BLOCK = re.compile(r"\s*<think>(?P<reasoning>.*?)</think>", re.DOTALL)
# The lenient reading tries this many closing tags as the end of a call, so that hostile text takes linear time.
_MAX_CLOSING_TAGS = 16
_MAX_VALUE_LENGTH = 1_000_000  # characters
_MAX_DEPTH = 64
_MAX_INT_BITS = 10_000  # Python refuses to write integers of more than 4,300 digits


class CallSyntaxError(ValueError):
    """A text or value is not a call, a tool, or a JSON value. The message is one sentence."""


@dataclass(frozen=True)
class Turn:
    """A parsed model turn.

    Attributes:
        reasoning: Text of the think block, stripped; None without a closed one.
        content: Text outside of the blocks, stripped.
        tool_calls: The calls that could be read.
        errors: One sentence per call that could not be read, starting with its number in the turn, counted from 1.
            The strict reading also reports a think block that hides or swallows calls.
        grammatical: Whether the turn follows the grammar: optionally a closed think block, then either only calls,
            readable or not, or an answer.
    """

    reasoning: str | None
    content: str
    tool_calls: tuple[ToolCall, ...]
    errors: tuple[str, ...]
    grammatical: bool


def parse_turn(text: str, strict: bool = False) -> Turn:
    """Parse the text of a model turn, without the tokens that open and end it.

    Args:
        text: Text of the turn.
        strict: Whether to read it as servers do: the exported response template and vLLM's ``hermes`` parser. Without
            errors, both deliver exactly ``tool_calls``. In the lenient reading, a closing tag inside a string belongs
            to the string, and a call may have any form that :func:`parse_call` reads.

    Example:
        >>> turn = parse_turn('<think>2+2</think><tool_call>{"name": "add", "arguments": {"a": 2}}</tool_call>')
        >>> turn.reasoning, turn.tool_calls, turn.grammatical
        ('2+2', (ToolCall(name='add', arguments={'a': 2}),), True)
        >>> parse_turn("<tool_call>{'name': 'add', 'arguments': {}}</tool_call>", strict=True).tool_calls
        ()
    """
    think = THINK_BLOCK.match(text)
    if strict and not think and text.lstrip().startswith(THINK_OPEN):
        return Turn(None, text.strip(), (), (f"{THINK_OPEN} is not closed: {shorten(text)}",), grammatical=False)
    calls: list[ToolCall] = []
    errors: list[str] = []
    outside: list[str] = []
    position = think.end() if think else 0
    while (start := text.find(CALL_OPEN, position)) >= 0:
        outside.append(text[position:start])
        take_call = _take_strict_call if strict else take_lenient_call
        position, outcome = take_call(text, start + len(CALL_OPEN))
        if isinstance(outcome, ToolCall):
            calls.append(outcome)
        else:
            errors.append(f"call {len(calls) + len(errors) + 1}: {outcome}")
    content = "".join([*outside, text[position:]]).strip()
    reasoning = think["reasoning"] if think else ""
    has_stray_tags = any(tag in content for tag in _TAGS) or THINK_OPEN in reasoning
    grammatical = bool(calls or errors) != bool(content) and not has_stray_tags
    if strict and CALL_OPEN in reasoning:  # vLLM's parser would deliver it
        errors.insert(0, f"a call inside the think block: {shorten(reasoning)}")
        grammatical = False
    return Turn(reasoning.strip() if think else None, content, tuple(calls), tuple(errors), grammatical)


def render_turn(message: Message) -> str:
    """Write an assistant's turn as the canonical template does: the inverse of :func:`parse_turn`."""
    parts = [] if message.reasoning is None else [f"{THINK_OPEN}\n{message.reasoning}\n{THINK_CLOSE}"]
    parts += [message.content] if message.content else []
    # In JSON, \/ is another way to write /. Parsers that cut at the first closing tag read the complete call.
    objects = (dump_json(call.to_dict()).replace(CALL_CLOSE, r"<\/tool_call>") for call in message.tool_calls)
    parts += [f"{CALL_OPEN}\n{text}\n{CALL_CLOSE}" for text in objects]
    return "\n".join(parts)


def parse_call(text: str, strict: bool = False) -> ToolCall:
    """Read a call from the text between its tags.

    Args:
        text: In the strict reading, a JSON object with exactly the keys ``name`` and ``arguments``. In the lenient one,
            also a Python literal, with further keys, or with the arguments as a string.
        strict: Whether to accept only what servers deliver.

    Raises:
        CallSyntaxError: If the text is not a call.
    """
    value = parse_literal(text, strict)
    call = call_from_value(value, is_json_value=True)
    if strict and not is_call_object(text):
        raise CallSyntaxError(
            f"not a JSON object with exactly a `name` and an `arguments` object, as servers require: {shorten(text)}"
        )
    return call


def call_from_value(value: Any, is_json_value: bool = False) -> ToolCall:
    """Make a call from ``{"name": …, "arguments": …}``. As in OpenAI's API, the arguments may be a string.

    Args:
        value: The object.
        is_json_value: Whether the value comes from :func:`to_json_value`, so that it need not be checked again.

    Raises:
        CallSyntaxError: If a key is missing or has another type.
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
        raise CallSyntaxError(f"the arguments of {name} are not an object: {_show(arguments)}")
    return ToolCall(_check_text(name), arguments if is_json_value else to_json_value(arguments))


def tool_from_value(value: Any, is_json_value: bool = False) -> Tool:
    """Make a tool from OpenAI's ``{"type": "function", "function": {…}}``, or from the inner object alone.

    Raises:
        CallSyntaxError: If it has no name, or its parameters are not an object.
    """
    function = value.get("function", value) if isinstance(value, dict) else value
    if not isinstance(function, dict) or not isinstance(function.get("name"), str) or not function["name"]:
        raise CallSyntaxError(f"a tool is an object with a `name`, not {_show(value)}")
    parameters = function.get("parameters") or {}
    if not isinstance(parameters, dict):
        raise CallSyntaxError(f"the parameters of {function['name']} are not an object: {_show(parameters)}")
    description = _check_text(str(function.get("description") or ""))
    return Tool(_check_text(function["name"]), description, parameters if is_json_value else to_json_value(parameters))


def same_calls(first: Iterable[ToolCall], second: Iterable[ToolCall]) -> bool:
    """Whether two turns make the same calls, in any order."""
    return Counter(first) == Counter(second)


def same_names(first: Iterable[ToolCall], second: Iterable[ToolCall]) -> bool:
    """Whether two turns call the same tools the same number of times, in any order and with any arguments."""
    return Counter(call.name for call in first) == Counter(call.name for call in second)


def dump_json(value: Any) -> str:
    """JSON on one line, as the ``tojson`` filter of Hugging Face's chat templates writes it."""
    return json.dumps(value, ensure_ascii=False)


def parse_literal(text: str, strict: bool = False) -> Any:
    """Read a JSON value that is written as JSON or as a Python literal. No code is executed.

    Args:
        text: The value.
        strict: Whether an object may have duplicate keys: for servers, the last one counts. In data it is ambiguous.

    Raises:
        CallSyntaxError: If it is neither, too long, nested too deep, or contains what JSON cannot: sets, NaN, ….
    """
    text = text.strip()
    if len(text) > _MAX_VALUE_LENGTH:
        raise CallSyntaxError(f"a value of {len(text):,} characters is longer than {_MAX_VALUE_LENGTH:,}")
    try:
        value = (_JSON if strict else _UNAMBIGUOUS_JSON).decode(text)
        # Most values cannot contain a lone surrogate or too many levels, and need no further check.
        if text.isascii() and "\\u" not in text and text.count("{") + text.count("[") <= _MAX_DEPTH:
            return value
    except CallSyntaxError:
        raise  # a key twice
    except (ValueError, RecursionError) as json_error:
        try:
            tree = ast.parse(text, mode="eval")
            value = ast.literal_eval(tree)
        except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
            where = f" (as JSON: {json_error})" if isinstance(json_error, json.JSONDecodeError) else ""
            raise CallSyntaxError(f"neither JSON nor a Python literal{where}: {shorten(text)}") from None
        if not strict:
            _check_unique_keys(tree.body)
    return to_json_value(value)


def to_json_value(value: Any, depth: int = 0) -> Any:
    """The value as JSON-serializable types; tuples become lists.

    Raises:
        CallSyntaxError: If it contains other types, text that is not valid Unicode, or too many levels.
    """
    if depth > _MAX_DEPTH:
        raise CallSyntaxError(f"nested more than {_MAX_DEPTH} levels deep")
    if isinstance(value, str):
        return _check_text(value)
    if isinstance(value, dict):
        return {_check_key(key): to_json_value(item, depth + 1) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_json_value(item, depth + 1) for item in value]
    if isinstance(value, int) and value.bit_length() > _MAX_INT_BITS:
        raise CallSyntaxError("a number has more than 3,000 digits")
    if value is None or isinstance(value, (bool, int)) or (isinstance(value, float) and math.isfinite(value)):
        return value
    raise CallSyntaxError(f"JSON cannot represent {_show(value)}")


def take_lenient_call(text: str, start: int) -> tuple[int, ToolCall | str]:
    """Read one call after its opening tag: where it ends, and the call or what is wrong with it.

    It ends at the first closing tag that completes a value, so tags inside of strings belong to the strings.
    """
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
        return len(text), f"{CALL_OPEN} is not closed: {shorten(text[start:])}"
    return first_end + len(CALL_CLOSE), error


def _take_strict_call(text: str, start: int) -> tuple[int, ToolCall | str]:
    """As :func:`take_lenient_call`, but the call ends at the first closing tag and must be what servers deliver."""
    end = text.find(CALL_CLOSE, start)
    if end < 0:
        return len(text), f"{CALL_OPEN} is not closed: {shorten(text[start:])}"
    try:
        return end + len(CALL_CLOSE), parse_call(text[start:end], strict=True)
    except CallSyntaxError as problem:
        return end + len(CALL_CLOSE), str(problem)


def _check_key(value: Any) -> str:
    if not isinstance(value, str):
        raise CallSyntaxError(f"an object has a key that is not a string: {_show(value)}")
    return _check_text(value)


def _check_text(value: str) -> str:
    if not value.isascii() and any("\ud800" <= char <= "\udfff" for char in value):
        raise CallSyntaxError(f"a string contains a lone surrogate: {shorten(ascii(value))}")
    return value


def _finite_float(number: str) -> float:
    if not math.isfinite(value := float(number)):
        raise ValueError(f"JSON cannot represent {number}")
    return value


def _check_unique(keys: list[Any]) -> None:
    if len(set(keys)) < len(keys):
        raise CallSyntaxError(f"an object has the key {_show(next(key for key in keys if keys.count(key) > 1))} twice")


def _check_unique_keys(node: ast.AST) -> None:
    if isinstance(node, ast.Dict):
        _check_unique([key.value for key in node.keys if isinstance(key, ast.Constant)])
        for value in node.values:
            _check_unique_keys(value)
    elif isinstance(node, (ast.List, ast.Tuple)):
        for value in node.elts:
            _check_unique_keys(value)


def unambiguous_object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Make an object of its keys and values.

    Raises:
        CallSyntaxError: If a key occurs twice.
    """
    value = dict(pairs)
    if len(value) < len(pairs):
        _check_unique([key for key, _ in pairs])
    return value


_JSON = json.JSONDecoder(parse_float=_finite_float, parse_constant=_finite_float)
_UNAMBIGUOUS_JSON = json.JSONDecoder(
    parse_float=_finite_float, parse_constant=_finite_float, object_pairs_hook=unambiguous_object
)


def _show(value: Any) -> str:
    """The value for a message. Generated text may contain values that Python refuses to write."""
    try:
        return shorten(repr(value))
    except (ValueError, RecursionError):
        return f"a value of type {type(value).__name__}"
