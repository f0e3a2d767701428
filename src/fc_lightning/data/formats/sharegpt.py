"""ShareGPT as LLaMA-Factory writes it: ``function_call`` and ``observation`` turns, ``system`` column."""

from __future__ import annotations

from fc_lightning.data.formats.chat import CALL_ROLES, CHAT_KEYS, chat_reader, objects_in, role_of
from fc_lightning.data.formats.format import Format
from fc_lightning.data.formats.values import Row


def _detect(row: Row) -> bool:
    turns = objects_in(row, "conversations")  # Hermes rows have neither a call turn nor a system column
    return any(role_of(turn) in CALL_ROLES for turn in turns) or bool(turns and row.get("system"))


FORMAT = Format(chat_reader("conversations"), _detect, CHAT_KEYS - {"messages"})
