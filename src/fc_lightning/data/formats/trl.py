"""TRL: ``prompt`` and ``completion`` with ``tools``; each of the two a list of messages or a text."""

from __future__ import annotations

from typing import Any

from fc_lightning.conversation.types import Conversation
from fc_lightning.data.formats.chat import COMMON_KEYS, decoded_list, read_chat
from fc_lightning.data.formats.format import Format
from fc_lightning.data.formats.values import Row, RowError, text_of


def _detect(row: Row) -> bool:
    return "prompt" in row and "completion" in row


def _read(row: Row) -> Conversation:
    if row.get("label") is False:
        raise RowError("the completion is labeled as undesirable (`label` is false)")
    turns: list[Any] = []
    for key, role in (("prompt", "user"), ("completion", "assistant")):
        value = row.get(key)
        messages = None if isinstance(value, str) else decoded_list(value)
        if messages:
            turns += messages
        else:
            turns.append({"role": role, "content": text_of(value, f"turn {len(turns) + 1}: its text")})
    if not all(isinstance(turn, dict) for turn in turns):
        raise RowError("`prompt` and `completion` are not lists of messages")
    return read_chat(row, turns, is_verbatim=all(isinstance(turn.get("content"), str) for turn in turns))


FORMAT = Format(_read, _detect, COMMON_KEYS | {"prompt", "completion", "label"}, ("prompt", "completion"))
