"""OpenAI's ``messages`` with ``tool_calls``, or with typed parts for text, reasoning and calls."""

from __future__ import annotations

from fc_lightning.data.formats.chat import CHAT_KEYS, chat_reader, decoded_list, objects_in
from fc_lightning.data.formats.format import Format
from fc_lightning.data.formats.values import Row

_MARKS = ("tool_calls", "tool_call_id", "function_call")


def _detect(row: Row) -> bool:
    if row.get("messages") is not None:
        return decoded_list(row["messages"]) is not None
    return any(turn.get(mark) for turn in objects_in(row, "conversations") for mark in _MARKS)


FORMAT = Format(chat_reader("messages", "conversations"), _detect, CHAT_KEYS | {"parallel_tool_calls"}, ("messages",))
