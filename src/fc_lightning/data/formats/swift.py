"""ms-swift: ``messages`` with the roles ``tool_call`` and ``tool_response``; several calls in a row are one turn."""

from __future__ import annotations

from fc_lightning.data.formats.chat import CALL_ROLES, CHAT_KEYS, chat_reader, objects_in, role_of
from fc_lightning.data.formats.format import Format
from fc_lightning.data.formats.values import Row


def _detect(row: Row) -> bool:
    return any(role_of(turn) in CALL_ROLES for turn in objects_in(row, "messages"))


FORMAT = Format(chat_reader("messages"), _detect, CHAT_KEYS)
