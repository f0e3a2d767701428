"""GLM-4: the tools are in the system message, a call is a name and a line of JSON, or JSON with ``metadata``."""

from __future__ import annotations

from fc_lightning.conversation.types import Conversation
from fc_lightning.data.formats.chat import decoded_list, read_chat, role_of, turns_of
from fc_lightning.data.formats.openai import KEYS
from fc_lightning.data.formats.values import Row

__all__ = ["KEYS", "is_glm", "read_glm"]

_COLUMNS = ("messages", "conversations")


def is_glm(row: Row) -> bool:
    """Whether a system message has tools."""
    turns = decoded_list(row.get("messages") or row.get("conversations")) or []
    return any(isinstance(turn, dict) and role_of(turn) == "system" and turn.get("tools") for turn in turns)


def read_glm(row: Row) -> Conversation:
    """Read a GLM-4 row."""
    return read_chat(row, turns_of(row, _COLUMNS))
