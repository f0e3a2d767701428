"""Glaive v2: ``system`` with the functions, and ``chat``, a text that names each speaker at the start of a line."""

from __future__ import annotations

import json
import re
from typing import Any

from fc_lightning.conversation.types import Conversation, Role, Tool
from fc_lightning.data.formats.builder import ConversationBuilder, Row, RowError, column_text

_NOT_BLANK = re.compile(r"\S")
_SPEAKER = re.compile(r"^(USER|ASSISTANT|FUNCTION RESPONSE):", re.MULTILINE)
_ROLES: dict[str, Role] = {"USER": "user", "ASSISTANT": "assistant", "FUNCTION RESPONSE": "tool"}
_TOOLS_MARKER, _CALL_MARKER, _END_MARKER = "Use them if required -", "<functioncall>", "<|endoftext|>"
_INTRODUCTION = "You are a helpful assistant with access to the following functions. "
_QUOTED_ARGUMENTS = re.compile(r"""\{\s*"name":\s*"([^"]*)",\s*"arguments":\s*'(.*)'\s*\}""", re.DOTALL)


def is_glaive(row: Row) -> bool:
    """Whether the row has a ``chat`` text."""
    return isinstance(row.get("chat"), str)


def read_glaive(row: Row) -> Conversation:
    """Read a Glaive row."""
    builder = ConversationBuilder()
    prompt, tools = _split_system(column_text(row, "system"), builder)
    builder.add(0, "system", prompt)
    chat = column_text(row, "chat", needed=True).strip()
    # Turns are separated by a blank line: "USER:" on any other line is part of a text.
    marks = [m for m in _SPEAKER.finditer(chat) if not m.start() or chat[m.start() - 2 : m.start()] == "\n\n"]
    if not marks or marks[0].start():
        raise RowError("`chat` does not begin with a speaker, such as `USER:`")
    ends = [*(mark.start() for mark in marks[1:]), len(chat)]
    for number, (mark, end) in enumerate(zip(marks, ends, strict=True), 1):
        text = chat[mark.end() : end].strip()
        role = _ROLES[mark[1]]
        if role != "assistant":
            builder.add(number, role, text)
            continue
        said, *calls = text.replace(_END_MARKER, "").split(_CALL_MARKER)
        builder.add(number, role, said, None, builder.read_calls(number, [_call_value(call) for call in calls]))
    return builder.build(row, tools)


def _split_system(text: str, builder: ConversationBuilder) -> tuple[str, tuple[Tool, ...]]:
    """Split a system text into its prose and its functions, JSON objects one after the other."""
    prompt, marker, functions = text.strip().removeprefix("SYSTEM:").partition(_TOOLS_MARKER)
    values, decoder, end = [], json.JSONDecoder(), 0
    try:
        while following := _NOT_BLANK.search(functions, end):
            value, end = decoder.raw_decode(functions, following.start())
            values.append(value)
    except ValueError as error:
        builder.defects.append(f"tools: function {len(values) + 1} of the system text is not JSON ({error})")
        return text, ()
    return prompt.removesuffix(_INTRODUCTION) if marker else prompt, builder.read_tools(values)


def _call_value(text: str) -> Any:
    """A call whose arguments are JSON in single quotes, within which quotes may be unescaped."""
    quoted = _QUOTED_ARGUMENTS.fullmatch(text.strip())
    return {"name": quoted[1], "arguments": quoted[2].replace("\\'", "'")} if quoted else text
