"""Glaive v2: ``system`` with the functions, and ``chat``, a text that names each speaker at the start of a line."""

from __future__ import annotations

import json
import re

from fc_lightning.conversation.types import Conversation, Role
from fc_lightning.data.formats.builder import ConversationBuilder
from fc_lightning.data.formats.chat import COMMON_KEYS
from fc_lightning.data.formats.format import Format
from fc_lightning.data.formats.values import Row, RowError, column_text

_NOT_BLANK = re.compile(r"\S")
_SPEAKER = re.compile(r"^(USER|ASSISTANT|FUNCTION RESPONSE):", re.MULTILINE)
_ROLES: dict[str, Role] = {"USER": "user", "ASSISTANT": "assistant", "FUNCTION RESPONSE": "tool"}
_TOOLS_MARKER, _END_MARKER = "Use them if required -", "<|endoftext|>"
_INTRODUCTION = "You are a helpful assistant with access to the following functions. "


def _detect(row: Row) -> bool:
    return isinstance(row.get("chat"), str)


def _read(row: Row) -> Conversation:
    builder = ConversationBuilder()
    prompt = _read_system(column_text(row, "system"), builder)
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
        if role == "tool":
            builder.add_result(number, text)
        elif role == "user":
            builder.add(number, role, text)
        else:
            builder.add_assistant(number, text.replace(_END_MARKER, ""))
    return builder.build(row)


def _read_system(text: str, builder: ConversationBuilder) -> str:
    """Read the functions of a system text, JSON objects one after the other; returns its prose."""
    prompt, marker, functions = text.strip().removeprefix("SYSTEM:").partition(_TOOLS_MARKER)
    values, decoder, end = [], json.JSONDecoder(), 0
    try:
        while following := _NOT_BLANK.search(functions, end):
            value, end = decoder.raw_decode(functions, following.start())
            values.append(value)
    except ValueError as error:
        builder.defects.append(f"tools: function {len(values) + 1} of the system text is not JSON ({error})")
        return text
    builder.read_tools(values)
    return prompt.removesuffix(_INTRODUCTION) if marker else prompt


FORMAT = Format(_read, _detect, COMMON_KEYS | {"system", "chat"}, ("chat",))
