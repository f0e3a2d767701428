"""ReAct, as ToolLLaMA has it: ``Thought:``, ``Action:`` and ``Action Input:`` in the texts of the model."""

from __future__ import annotations

import re
from typing import Any

from fc_lightning.conversation.types import Conversation
from fc_lightning.data.formats.chat import (
    CHAT_KEYS,
    ROLES,
    objects_in,
    read_chat,
    role_of,
    system_column,
    turns_of,
)
from fc_lightning.data.formats.format import Format
from fc_lightning.data.formats.values import Row

_COLUMNS = ("conversations", "messages")
_BEGIN = re.compile(r"\s*\bBegin!\s*$")


def _detect(row: Row) -> bool:
    return any("Action:" in text and "Action Input:" in text for text in map(_model_text, objects_in(row, *_COLUMNS)))


def _model_text(turn: dict[str, Any]) -> str:
    role = role_of(turn)
    text = turn.get("content") if turn.get("value") is None else turn["value"]
    return text if isinstance(role, str) and ROLES.get(role) == "assistant" and isinstance(text, str) else ""


def _read(row: Row) -> Conversation:
    turns = [
        # "Begin!" only starts the model off.
        {**turn, key: _BEGIN.sub("", turn[key])} if isinstance(turn.get(key), str) else turn
        for turn in turns_of(row, _COLUMNS)
        for key in ["content" if turn.get("value") is None else "value"]
    ]
    return read_chat(row, turns, system_column(row))


FORMAT = Format(_read, _detect, CHAT_KEYS)
