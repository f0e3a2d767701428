"""Anthropic's messages: blocks of ``text``, ``thinking``, ``tool_use`` and ``tool_result``, ``system`` beside them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from fc_lightning.conversation.types import Conversation
from fc_lightning.data.formats.chat import COMMON_KEYS, decoded_list, read_chat, turns_of
from fc_lightning.data.formats.values import Row

KEYS = COMMON_KEYS | {"messages", "system"}
_BLOCKS = ("tool_use", "tool_result", "redacted_thinking")


def is_anthropic(row: Row) -> bool:
    """Whether a message has a block of Anthropic's, or the tools have its ``input_schema``."""
    turns = [turn for turn in decoded_list(row.get("messages")) or [] if isinstance(turn, dict)]
    if any(isinstance(block, dict) and block.get("type") in _BLOCKS for turn in turns for block in _content(turn)):
        return True
    tools = decoded_list(row.get("tools")) or []
    return bool(turns and row.get("system")) and any(
        isinstance(tool, dict) and "input_schema" in tool for tool in tools
    )


def _content(turn: dict[str, Any]) -> list[Any]:
    content = turn.get("content")
    return content if isinstance(content, list) else []


def read_anthropic(row: Row) -> Conversation:
    """Read a row of Anthropic's messages."""
    system = row.get("system")
    if isinstance(system, list):
        system = "\n".join(str(block.get("text") or "") for block in system if isinstance(block, dict))
    turns = [message for turn in turns_of(row, ("messages",)) for message in _messages(turn)]
    return read_chat(row, turns, system if isinstance(system, str) else "")


def _messages(turn: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """A turn as OpenAI's messages: results are messages of their own, before the text beside them."""
    rest, calls = [], []
    for block in _content(turn):
        kind = block.get("type") if isinstance(block, dict) else None
        if kind == "tool_result":
            yield {"role": "tool", "content": block.get("content"), "tool_call_id": block.get("tool_use_id")}
        elif kind == "tool_use":
            calls.append({"name": block.get("name"), "arguments": block.get("input"), "id": block.get("id")})
        elif kind != "redacted_thinking":
            rest.append(block)
    if not isinstance(turn.get("content"), list):
        yield turn
    elif rest or calls or not turn["content"]:
        yield {**turn, "content": rest, **({"tool_calls": calls} if calls else {})}
