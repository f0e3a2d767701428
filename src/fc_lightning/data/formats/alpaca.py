"""Alpaca: ``instruction``, ``input`` and ``output``, with ``tools`` and earlier turns in ``history``."""

from __future__ import annotations

from typing import Any

from fc_lightning.conversation.types import Conversation
from fc_lightning.data.formats.chat import COMMON_KEYS, decoded_list, read_chat
from fc_lightning.data.formats.values import Row, RowError, column_text

KEYS = COMMON_KEYS | {"instruction", "input", "output", "history", "system"}


def is_alpaca(row: Row) -> bool:
    """Whether the row has ``instruction`` and ``output``."""
    return "instruction" in row and "output" in row


def read_alpaca(row: Row) -> Conversation:
    """Read an Alpaca row."""
    turns: list[dict[str, Any]] = []
    for pair in decoded_list(row.get("history")) or []:
        if not isinstance(pair, list) or len(pair) != 2:
            raise RowError("`history` is not a list of pairs")
        turns += [{"role": "user", "content": pair[0]}, {"role": "assistant", "content": pair[1]}]
    question = [column_text(row, "instruction", needed=True), column_text(row, "input")]
    turns.append({"role": "user", "content": "\n".join(text for text in question if text)})
    turns.append({"role": "assistant", "content": column_text(row, "output", needed=True)})
    return read_chat(row, turns, column_text(row, "system"))
