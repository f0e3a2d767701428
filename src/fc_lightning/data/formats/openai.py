"""OpenAI's ``messages`` with ``tool_calls``, or with typed parts for text, reasoning and calls."""

from __future__ import annotations

from typing import Any

from fc_lightning.conversation.types import Conversation
from fc_lightning.data.formats.chat import COMMON_KEYS, decoded_list, read_chat, system_column, turns_of
from fc_lightning.data.formats.values import Row

KEYS = COMMON_KEYS | {"messages", "conversations", "system", "system_prompt", "parallel_tool_calls"}
_COLUMNS = ("messages", "conversations")


def is_openai(row: Row) -> bool:
    """Whether the row has ``messages``, or ``conversations`` in the shape of messages."""
    if row.get("messages") is not None:
        return decoded_list(row.get("messages")) is not None
    return any(map(_is_message, decoded_list(row.get("conversations")) or []))


def _is_message(turn: Any) -> bool:
    return isinstance(turn, dict) and bool(
        turn.get("tool_calls") or turn.get("tool_call_id") or turn.get("function_call")
    )


def read_openai(row: Row) -> Conversation:
    """Read an OpenAI row."""
    return read_chat(row, turns_of(row, _COLUMNS), system_column(row))
