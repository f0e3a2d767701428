"""Hermes: ``conversations`` whose texts carry the tools, reasoning, calls and responses between tags."""

from __future__ import annotations

from fc_lightning.conversation.types import Conversation
from fc_lightning.data.formats.chat import COMMON_KEYS, decoded_list, read_chat, system_column, turns_of
from fc_lightning.data.formats.values import Row

KEYS = COMMON_KEYS | {"conversations", "messages", "schema", "system", "system_prompt"}
_COLUMNS = ("conversations", "messages")


def is_hermes(row: Row) -> bool:
    """Whether the row has turns with ``value``, or with Hermes' tags in their texts."""
    if row.get("conversations") is not None and decoded_list(row["conversations"]) is not None:
        return True
    texts = [turn.get("content") for turn in decoded_list(row.get("messages")) or [] if isinstance(turn, dict)]
    tags = ("<tool_call>", "<tools>", "<tool_response>")
    are_texts = bool(texts) and all(isinstance(text, str) for text in texts)
    return are_texts and any(tag in text for text in texts for tag in tags if isinstance(text, str))


def read_hermes(row: Row) -> Conversation:
    """Read a Hermes row.

    JSON-mode rows offer no tools: their answer is JSON of a ``schema``, a column or a block in the system text.
    """
    return read_chat(row, turns_of(row, _COLUMNS), system_column(row), is_verbatim=True, has_schema=True)
