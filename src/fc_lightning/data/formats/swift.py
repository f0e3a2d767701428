"""ms-swift: ``messages`` with the roles ``tool_call`` and ``tool_response``; several calls in a row are one turn."""

from __future__ import annotations

from fc_lightning.conversation.types import Conversation
from fc_lightning.data.formats.chat import CALL_ROLES, decoded_list, read_chat, role_of, system_column, turns_of
from fc_lightning.data.formats.openai import KEYS
from fc_lightning.data.formats.values import Row

__all__ = ["KEYS", "is_swift", "read_swift"]


def is_swift(row: Row) -> bool:
    """Whether a message is a call."""
    return any(
        isinstance(turn, dict) and role_of(turn) in CALL_ROLES for turn in decoded_list(row.get("messages")) or []
    )


def read_swift(row: Row) -> Conversation:
    """Read a row of ms-swift."""
    return read_chat(row, turns_of(row, ("messages",)), system_column(row))
