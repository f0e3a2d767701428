"""OpenAI's ``messages`` with ``tool_calls``, or with typed parts for text, reasoning and calls."""

from __future__ import annotations

from fc_lightning.conversation.types import Conversation
from fc_lightning.data.formats.builder import ConversationBuilder, Row, turns_of

_REASONING_KEYS = ("reasoning_content", "reasoning", "thinking")


def is_openai(row: Row) -> bool:
    """Whether the row has a list of ``messages``."""
    return isinstance(row.get("messages"), list)


def read_openai(row: Row) -> Conversation:
    """Read an OpenAI row."""
    builder = ConversationBuilder()
    for number, (_, role, turn) in enumerate(turns_of(row, ("messages", "conversations")), 1):
        text, thought, part_calls = builder.read_parts(number, turn.get("content"))
        if role != "assistant":
            builder.add(number, role, text)
            continue
        for key in _REASONING_KEYS:
            thought = thought or (turn[key] if isinstance(turn.get(key), str) else "")
        calls = builder.read_calls(number, part_calls)
        for key in ("tool_calls", "function_call"):
            calls += builder.read_calls(number, turn.get(key))
        builder.add(number, role, text, thought, calls)
    return builder.build(row, builder.read_tools(row.get("tools") or row.get("functions")))
