"""ShareGPT as LLaMA-Factory writes it: ``function_call`` and ``observation`` turns, ``system`` column."""

from __future__ import annotations

from fc_lightning.conversation.types import Conversation
from fc_lightning.data.formats.chat import (
    CALL_ROLES,
    COMMON_KEYS,
    decoded_list,
    read_chat,
    role_of,
    system_column,
    turns_of,
)
from fc_lightning.data.formats.values import Row

KEYS = COMMON_KEYS | {"conversations", "system", "system_prompt"}


def is_sharegpt(row: Row) -> bool:
    """Whether a turn is a call, or the system text has its own column: Hermes rows have neither."""
    turns = [turn for turn in decoded_list(row.get("conversations")) or [] if isinstance(turn, dict)]
    return any(role_of(turn) in CALL_ROLES for turn in turns) or bool(turns and row.get("system"))


def read_sharegpt(row: Row) -> Conversation:
    """Read a ShareGPT row."""
    return read_chat(row, turns_of(row, ("conversations",)), system_column(row))
