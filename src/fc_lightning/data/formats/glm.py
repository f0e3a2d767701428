"""GLM-4: the tools are in the system message, a call is a name and a line of JSON, or JSON with ``metadata``."""

from __future__ import annotations

from fc_lightning.data.formats.chat import CHAT_KEYS, chat_reader, objects_in, role_of
from fc_lightning.data.formats.format import Format
from fc_lightning.data.formats.values import Row


def _detect(row: Row) -> bool:
    turns = objects_in(row, "messages", "conversations")
    return any(role_of(turn) == "system" and turn.get("tools") for turn in turns)


FORMAT = Format(chat_reader("messages", "conversations"), _detect, CHAT_KEYS)
