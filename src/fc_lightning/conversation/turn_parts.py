"""The parts of a model turn: which of its characters are reasoning, tags, names, values or an answer.

Positions come from the parser that reads generated turns too, so that a tag inside a string of a call is a part of the
string here as it is there.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Literal, get_args

from fc_lightning.conversation.parsing import CALL_CLOSE, CALL_OPEN, THINK_BLOCK, take_lenient_call
from fc_lightning.conversation.types import ToolCall

TurnPart = Literal["reasoning", "tag", "function_name", "argument_name", "argument_value", "answer"]
TURN_PARTS: tuple[TurnPart, ...] = get_args(TurnPart)

Span = tuple[int, int, TurnPart]  # first character, one past the last, what it is

# A string, a bracket or separator, or a bare value, in JSON or as a Python literal.
_LEXEME = re.compile(r"\"(?:[^\"\\]|\\.)*\"|'(?:[^'\\]|\\.)*'|[{}\[\](),:]|[^\s{}\[\](),:\"']+", re.DOTALL)


def split_turn(text: str) -> list[Span]:
    """Split the text of a model turn into its parts, in order and without gaps.

    The syntax around names and values, and a call that cannot be read, count as ``tag``.

    Args:
        text: A turn without the tokens that open and end it.

    Example:
        >>> text = '<tool_call>{"name": "clock", "arguments": {"city": "Rome"}}</tool_call>'
        >>> [(text[first:last], part) for first, last, part in split_turn(text) if part != "tag"]
        [('clock', 'function_name'), ('city', 'argument_name'), ('"Rome"', 'argument_value')]
    """
    known: list[Span] = []
    position = 0
    if think := THINK_BLOCK.match(text):
        known.append((*think.span(1), "reasoning"))
        position = think.end()
    while (start := text.find(CALL_OPEN, position)) >= 0:
        known += answer_spans(text, position, start)
        body = start + len(CALL_OPEN)
        position, outcome = take_lenient_call(text, body)
        if isinstance(outcome, ToolCall):
            known += _call_spans(text, body, position - len(CALL_CLOSE))
    known += answer_spans(text, position, len(text))
    return list(fill_gaps(known, len(text)))


def answer_spans(text: str, first: int, last: int) -> list[Span]:
    """The text between tags, without the white space around it."""
    inside = text[first:last].strip()
    if not inside:
        return []
    begin = text.index(inside, first)
    return [(begin, begin + len(inside), "answer")]


def _call_spans(text: str, first: int, last: int) -> Iterator[Span]:
    """The names and values of one readable call, ``{"name": …, "arguments": {…}}`` with its keys in any order."""
    depth, key, is_key, value_start = 0, "", False, -1
    for lexeme in _LEXEME.finditer(text, first, last):
        symbol = lexeme[0]
        in_arguments = key == "arguments" and depth >= 2
        if symbol in "{[(":
            depth += 1
            if in_arguments and depth == 3:  # a nested value begins
                value_start = lexeme.start()
            is_key = depth <= 2
        elif symbol in "}])":
            depth -= 1
            if in_arguments and depth == 2:
                yield value_start, lexeme.end(), "argument_value"
        elif symbol in ",:":
            is_key = symbol == ","
        elif depth == 1 and is_key:
            key = symbol[1:-1]
        elif depth == 1 and key == "name":
            yield lexeme.start() + 1, lexeme.end() - 1, "function_name"
        elif depth == 1 and key == "arguments":  # written as a string
            yield lexeme.start(), lexeme.end(), "argument_value"
        elif depth == 2 and in_arguments and is_key:
            yield lexeme.start() + 1, lexeme.end() - 1, "argument_name"
        elif depth == 2 and in_arguments:
            yield lexeme.start(), lexeme.end(), "argument_value"


def fill_gaps(known: list[Span], length: int) -> Iterator[Span]:
    """The known parts of a text in order, with ``tag`` between them."""
    position = 0
    for first, last, part in known:
        if first > position:
            yield position, first, "tag"
        if last > first:
            yield first, last, part
        position = max(position, last)
    if position < length:
        yield position, length, "tag"
