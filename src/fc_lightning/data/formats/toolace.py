"""ToolACE: the tools are JSON in the ``system`` column, calls are written as ``[f(a=1), g(b="x")]``."""

from __future__ import annotations

from fc_lightning.data.formats.chat import CALL_ROLES, CHAT_KEYS, chat_reader, objects_in, role_of, tools_of
from fc_lightning.data.formats.format import Format
from fc_lightning.data.formats.system_text import split_system
from fc_lightning.data.formats.values import Row


def _detect(row: Row) -> bool:
    system, turns = row.get("system"), objects_in(row, "conversations")
    if not (turns and isinstance(system, str)) or tools_of(row) is not None:
        return False
    return not any(role_of(turn) in CALL_ROLES for turn in turns) and bool(split_system(system)[1])


FORMAT = Format(chat_reader("conversations"), _detect, CHAT_KEYS - {"messages"})
