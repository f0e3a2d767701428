"""Alpaca: ``instruction``, ``input`` and ``output``, with ``tools`` and earlier turns in ``history``."""

from __future__ import annotations

from typing import Any

from fc_lightning.conversation.types import Conversation
from fc_lightning.data.formats.chat import COMMON_KEYS, decoded_list, read_chat
from fc_lightning.data.formats.format import Format
from fc_lightning.data.formats.values import Row, RowError, column_text


def _detect(row: Row) -> bool:
    return "instruction" in row and "output" in row


def _read(row: Row) -> Conversation:
    turns: list[dict[str, Any]] = []
    for pair in decoded_list(row.get("history")) or []:
        if not isinstance(pair, list) or len(pair) != 2:
            raise RowError("`history` is not a list of pairs")
        turns += [{"role": "user", "content": pair[0]}, {"role": "assistant", "content": pair[1]}]
    question = [column_text(row, "instruction", needed=True), column_text(row, "input")]
    turns.append({"role": "user", "content": "\n".join(text for text in question if text)})
    turns.append({"role": "assistant", "content": column_text(row, "output", needed=True)})
    return read_chat(row, turns, column_text(row, "system"))


FORMAT = Format(
    _read, _detect, COMMON_KEYS | {"instruction", "input", "output", "history", "system"}, ("instruction", "output")
)
