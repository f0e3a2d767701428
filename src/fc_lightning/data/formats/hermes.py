"""Hermes: ``conversations`` whose texts carry the tools, reasoning, calls and responses between tags.

JSON-mode rows offer no tools: their answer is JSON of a ``schema``, a column or a block in the system text.
"""

from __future__ import annotations

from typing import Any

from fc_lightning.conversation.types import Conversation
from fc_lightning.data.formats.chat import (
    CHAT_KEYS,
    decoded_list,
    objects_in,
    read_chat,
    system_column,
    turns_of,
)
from fc_lightning.data.formats.format import Format
from fc_lightning.data.formats.values import Row

_TAGS = ("<tool_call>", "<tools>", "<tool_response>")


def _detect(row: Row) -> bool:
    if row.get("conversations") is not None and decoded_list(row["conversations"]) is not None:
        return True
    texts: list[Any] = [turn.get("content") for turn in objects_in(row, "messages")]
    return all(isinstance(text, str) for text in texts) and any(tag in text for text in texts for tag in _TAGS)


def _read(row: Row) -> Conversation:
    turns = turns_of(row, ("conversations", "messages"))
    return read_chat(row, turns, system_column(row), is_verbatim=True, has_schema=True)


FORMAT = Format(_read, _detect, CHAT_KEYS | {"schema"}, ("conversations",))
