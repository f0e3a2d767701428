"""Anthropic's messages: blocks of ``text``, ``thinking``, ``tool_use`` and ``tool_result``, and a ``system`` key."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from fc_lightning.conversation.types import Conversation
from fc_lightning.data.formats.chat import COMMON_KEYS, objects_in, read_chat, turns_of
from fc_lightning.data.formats.format import Format
from fc_lightning.data.formats.values import Row

_BLOCKS = ("tool_use", "tool_result", "redacted_thinking")


def _detect(row: Row) -> bool:
    turns = objects_in(row, "messages")
    if any(block.get("type") in _BLOCKS for turn in turns for block in objects_in(turn, "content")):
        return True
    return bool(turns and row.get("system")) and any("input_schema" in tool for tool in objects_in(row, "tools"))


def _read(row: Row) -> Conversation:
    return read_blocks(row, lambda block: block)


def read_blocks(row: Row, to_anthropic: Callable[[dict[str, Any]], dict[str, Any]]) -> Conversation:
    """Read messages of blocks, each of which is given in Anthropic's notation."""
    system = row.get("system")
    if isinstance(system, list):
        system = "\n".join(str(block.get("text") or "") for block in objects_in(row, "system"))
    turns = [message for turn in turns_of(row, ("messages",)) for message in _messages(turn, to_anthropic)]
    return read_chat(row, turns, system if isinstance(system, str) else "")


def _messages(
    turn: dict[str, Any], to_anthropic: Callable[[dict[str, Any]], dict[str, Any]]
) -> Iterator[dict[str, Any]]:
    """A turn as OpenAI's messages: results are separate messages, before the text of the turn."""
    if not isinstance(turn.get("content"), list):
        yield turn
        return
    rest: list[Any] = []
    calls = []
    for item in turn["content"]:
        block = to_anthropic(item) if isinstance(item, dict) else {"type": "text", "text": item}
        if block.get("type") == "tool_result":
            rest_of_block = {key: value for key, value in block.items() if key not in ("type", "tool_use_id")}
            yield {"content": None, **rest_of_block, "role": "tool", "tool_call_id": block.get("tool_use_id")}
        elif block.get("type") == "tool_use":
            calls.append({key: value for key, value in block.items() if key not in ("type", "toolUseId")})
        elif block.get("type") != "redacted_thinking":
            rest.append(block)
    if rest or calls or not turn["content"]:
        yield {**turn, "content": rest, **({"tool_calls": calls} if calls else {})}


FORMAT = Format(_read, _detect, COMMON_KEYS | {"messages", "system"})
