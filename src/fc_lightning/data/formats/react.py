"""ReAct, as ToolLLaMA has it: ``Thought:``, ``Action:`` and ``Action Input:`` in the texts of the model."""

from __future__ import annotations

import re
from typing import Any

from fc_lightning.conversation.types import Conversation
from fc_lightning.data.formats.chat import ROLES, decoded_list, read_chat, role_of, system_column, turns_of
from fc_lightning.data.formats.openai import KEYS
from fc_lightning.data.formats.values import Row

__all__ = ["KEYS", "is_react", "read_react"]

_COLUMNS = ("conversations", "messages")
_BEGIN = re.compile(r"\s*\bBegin!\s*$")


def is_react(row: Row) -> bool:
    """Whether a text of the model has an action with its input."""
    turns = decoded_list(next((row[key] for key in _COLUMNS if row.get(key)), None)) or []
    return any("Action:" in text and "Action Input:" in text for text in map(_model_text, turns))


def _model_text(turn: Any) -> str:
    role = role_of(turn) if isinstance(turn, dict) else None
    if not isinstance(role, str) or ROLES.get(role) != "assistant":
        return ""
    text = turn.get("content") if turn.get("value") is None else turn["value"]
    return text if isinstance(text, str) else ""


def read_react(row: Row) -> Conversation:
    """Read a ReAct row. ``Begin!``, which only starts the model off, is removed from the question."""
    turns = [
        {**turn, key: _BEGIN.sub("", turn[key])} if isinstance(turn.get(key), str) else turn
        for turn in turns_of(row, _COLUMNS)
        for key in ["content" if turn.get("value") is None else "value"]
    ]
    return read_chat(row, turns, system_column(row))
