"""Python calls in text, such as ``[f(a=1), g(b="x")]``: parsed, never run."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

from fc_lightning.conversation.parsing import CallSyntaxError, to_json_value
from fc_lightning.conversation.types import Tool, ToolCall

NAME = r"[^\W\d][\w.\-/ ]{0,127}"
_PYTHON_CALL = re.compile(rf"\s{{0,99}}(?P<name>{NAME})\s{{0,9}}\(")
_SEPARATORS = re.compile(r"[\s,;]*")
_MAX_CHARACTERS = 200_000

Tools = Mapping[str, Tool]


def parse_python(text: str, tools: Tools) -> list[ToolCall]:
    """Python calls: ``[f(a=1), g(b="x")]``, or one or several statements such as ``print(f(a=1))``."""
    text = text.strip()
    if len(text) > _MAX_CHARACTERS or not _PYTHON_CALL.match(text.removeprefix("[")):
        return []
    return list(_python_calls(text[1:-1] if text.startswith("[") and text.endswith("]") else text, tools))


def _python_calls(text: str, tools: Tools) -> Iterator[ToolCall]:
    position = 0
    while position < len(text):
        match = _PYTHON_CALL.match(text, position)
        if match is None:
            raise CallSyntaxError(f"not a Python call: {text[position : position + 80]}")
        end = _closing_parenthesis(text, match.end())
        name, arguments = match["name"].strip(), text[match.end() : end]
        if name == "print" and name not in tools:
            yield from _python_calls(arguments, tools)
        else:
            yield _python_call(name, arguments, tools)
        position = end + 1
        separators = _SEPARATORS.match(text, position)
        position = separators.end() if separators else position


def _closing_parenthesis(text: str, start: int) -> int:
    """The index of the parenthesis that closes a call's arguments; brackets inside of strings do not count."""
    depth, quote, index = 1, "", start
    while index < len(text):
        char = text[index]
        if quote:
            if char == "\\":
                index += 1
            elif text.startswith(quote, index):
                index += len(quote) - 1
                quote = ""
        elif char in "\"'":
            quote = char * 3 if text.startswith(char * 3, index) else char
            index += len(quote) - 1
        elif char in "([{":
            depth += 1
        elif char in ")]}":
            depth -= 1
            if not depth:
                return index
        index += 1
    raise CallSyntaxError(f"a call is not closed: {text[start : start + 80]}")


def _python_call(name: str, arguments: str, tools: Tools) -> ToolCall:
    """Read the arguments of one call; values are literals, or the names of JSON's constants."""
    try:
        node = ast.parse(f"f({arguments})", mode="eval").body
    except (SyntaxError, ValueError, MemoryError, RecursionError):
        raise CallSyntaxError(f"the arguments of {name} are not Python: {arguments[:80]}") from None
    if not isinstance(node, ast.Call) or any(keyword.arg is None for keyword in node.keywords):
        raise CallSyntaxError(f"the arguments of {name} are not Python: {arguments[:80]}")
    named = {keyword.arg: _literal(keyword.value, name) for keyword in node.keywords if keyword.arg is not None}
    if node.args:
        properties = tools[name].parameters.get("properties") if name in tools else None
        order = [key for key in properties if key not in named] if isinstance(properties, dict) else []
        if len(order) < len(node.args):
            raise CallSyntaxError(f"the call of {name} has arguments without a name")
        named = {key: _literal(value, name) for key, value in zip(order, node.args, strict=False)} | named
    return ToolCall(name, to_json_value(named))


class _Constants(ast.NodeTransformer):
    """Replaces the names of JSON's constants, which Python does not have."""

    _VALUES: ClassVar = {"true": True, "false": False, "null": None}

    def visit_Name(self, node: ast.Name) -> ast.AST:
        return ast.Constant(self._VALUES[node.id]) if node.id in self._VALUES else node


def _literal(node: ast.expr, name: str) -> Any:
    try:
        return ast.literal_eval(_Constants().visit(node))
    except (ValueError, TypeError, MemoryError, RecursionError):
        raise CallSyntaxError(f"an argument of {name} is not a literal") from None
