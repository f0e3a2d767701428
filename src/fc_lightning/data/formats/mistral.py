"""Rendered chats of Mistral and Llama 2: one ``text`` with ``[INST]``, ``[AVAILABLE_TOOLS]`` and ``[TOOL_RESULTS]``."""

from __future__ import annotations

import re
from typing import Any

from fc_lightning.conversation.parsing import CallSyntaxError
from fc_lightning.conversation.types import Conversation
from fc_lightning.data.formats.chat import COMMON_KEYS, read_chat
from fc_lightning.data.formats.format import Format
from fc_lightning.data.formats.values import Row, as_list, column_text

_BLOCK = re.compile(
    r"\[(?P<kind>INST|AVAILABLE_TOOLS|TOOL_RESULTS|SYSTEM_PROMPT)\](?P<body>.*?)\[/(?P=kind)\]", re.DOTALL
)
_SYSTEM = re.compile(r"\s*<<SYS>>(?P<system>.*?)<</SYS>>", re.DOTALL)
_ENDS = re.compile(r"</?s>")


def _detect(row: Row) -> bool:
    return isinstance(row.get("text"), str) and "[INST]" in row["text"] and "[/INST]" in row["text"]


def _read(row: Row) -> Conversation:
    text = column_text(row, "text", needed=True)
    turns: list[dict[str, Any]] = []
    tools, position = row.get("tools"), 0
    for block in _BLOCK.finditer(text):
        turns += _answer(text[position : block.start()])
        position, body = block.end(), block["body"]
        if block["kind"] == "AVAILABLE_TOOLS":
            tools = tools or body
        elif block["kind"] == "TOOL_RESULTS":
            turns += _results(body)
        elif block["kind"] == "SYSTEM_PROMPT":
            turns.append({"role": "system", "content": body})
        else:
            system = _SYSTEM.match(body)
            turns += [{"role": "system", "content": system["system"].strip()}] if system else []
            turns.append({"role": "user", "content": body[system.end() :] if system else body})
    return read_chat({**row, "tools": tools}, [*turns, *_answer(text[position:])])


def _answer(text: str) -> list[dict[str, Any]]:
    """The model's turn between two blocks; none if there is no text."""
    text = _ENDS.sub("", text).strip()
    return [{"role": "assistant", "content": text}] if text else []


def _results(body: str) -> list[dict[str, Any]]:
    """Results with the ids of their calls: one object or a list; any other text is one result."""
    call_id, marker, content = body.strip().partition("[TOOL_CONTENT]")
    if marker:
        return [{"role": "tool", "content": content, "tool_call_id": call_id}]
    try:
        values = as_list(body)
    except CallSyntaxError:
        values = []
    if not values or not all(isinstance(value, dict) and "content" in value for value in values):
        return [{"role": "tool", "content": body}]
    return [{"role": "tool", "tool_call_id": value.get("call_id"), **value} for value in values]


FORMAT = Format(_read, _detect, COMMON_KEYS | {"text"})
