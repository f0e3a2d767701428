"""ToolACE: the tools are JSON in the ``system`` column, calls are written as ``[f(a=1), g(b="x")]``."""

from __future__ import annotations

from fc_lightning.conversation.types import Conversation
from fc_lightning.data.formats.chat import (
    CALL_ROLES,
    decoded_list,
    read_chat,
    role_of,
    system_column,
    tools_of,
    turns_of,
)
from fc_lightning.data.formats.sharegpt import KEYS
from fc_lightning.data.formats.system_text import split_system
from fc_lightning.data.formats.values import Row

__all__ = ["KEYS", "is_toolace", "read_toolace"]


def is_toolace(row: Row) -> bool:
    """Whether the system column, and no other, offers tools."""
    system, turns = row.get("system"), decoded_list(row.get("conversations"))
    if not (turns and isinstance(system, str)) or tools_of(row) is not None:
        return False
    has_call_turn = any(isinstance(turn, dict) and role_of(turn) in CALL_ROLES for turn in turns)
    return not has_call_turn and bool(split_system(system)[1])


def read_toolace(row: Row) -> Conversation:
    """Read a ToolACE row."""
    return read_chat(row, turns_of(row, ("conversations",)), system_column(row))
