"""Preferences: a history with a ``chosen`` and a ``rejected`` turn, each a message, a list of messages or a text."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from fc_lightning.conversation.types import Conversation
from fc_lightning.data.formats.builder import Row, RowError
from fc_lightning.data.formats.trl import read_trl


def is_preference(row: Row) -> bool:
    """Whether the row has ``chosen`` and ``rejected``."""
    return "chosen" in row and "rejected" in row


def read_preference(row: Row) -> Conversation:
    """Read a preference row; the conversation ends with the chosen turn and carries the rejected one.

    The history is in ``prompt`` or ``messages``, or at the beginning of both turns' lists.

    Raises:
        RowError: If the two turns do not follow the same history.
    """
    history: Any = row.get("prompt") or row.get("messages") or []
    chosen, rejected = (
        read_trl({**row, "prompt": history, "completion": [row[side]] if isinstance(row[side], dict) else row[side]})
        for side in ("chosen", "rejected")
    )
    if chosen.messages[:-1] != rejected.messages[:-1]:
        raise RowError("`chosen` and `rejected` do not follow the same history: only their last turns may differ")
    if not chosen.messages or chosen.messages[-1].role != "assistant" or rejected.messages[-1].role != "assistant":
        raise RowError("`chosen` and `rejected` must end with a turn of the assistant")
    if chosen.messages[-1] == rejected.messages[-1]:
        raise RowError("`chosen` and `rejected` are the same turn")
    return replace(chosen, rejected=rejected.messages[-1], defects=(*chosen.defects, *rejected.defects), raw_turns=())
