"""Items of OpenAI's Responses API: messages, ``function_call`` and ``function_call_output`` side by side."""

from __future__ import annotations

from typing import Any

from fc_lightning.conversation.types import Conversation
from fc_lightning.data.formats.chat import COMMON_KEYS, decoded_list, read_chat, turns_of
from fc_lightning.data.formats.format import Format
from fc_lightning.data.formats.values import Row, RowError, column_text

_COLUMNS = ("input", "messages", "items")
_TYPES = ("function_call", "function_call_output", "reasoning")


def _detect(row: Row) -> bool:
    items = [item for column in (*_COLUMNS, "output") for item in decoded_list(row.get(column)) or []]
    return any(isinstance(item, dict) and "role" not in item and item.get("type") in _TYPES for item in items)


def _read(row: Row) -> Conversation:
    items: list[dict[str, Any]] = []
    if isinstance(row.get("input"), str) and decoded_list(row["input"]) is None:
        items.append({"role": "user", "content": row["input"]})
    else:
        items += turns_of(row, _COLUMNS)
    if decoded_list(row.get("output")):
        items += turns_of(row, ("output",))
    messages = [_message(item) for item in items if not _is_empty_reasoning(item)]
    return read_chat(row, messages, column_text(row, "instructions"))


def _is_empty_reasoning(item: dict[str, Any]) -> bool:
    """Whether a reasoning item has no text: a summary is written only if it was requested."""
    return item.get("type") == "reasoning" and not _reasoning(item).strip()


def _reasoning(item: dict[str, Any]) -> str:
    parts = [*(item.get("summary") or []), *(item.get("content") or [])]
    return "\n".join(str(part.get("text") or "") for part in parts if isinstance(part, dict))


def _message(item: dict[str, Any]) -> dict[str, Any]:
    kind = item.get("type")
    if kind == "function_call":
        if "arguments" not in item:
            raise RowError(f"the call of {item.get('name')} has no `arguments`")
        call = {"name": item.get("name"), "arguments": item["arguments"], "id": item.get("call_id")}
        return {"role": "assistant", "content": "", "tool_calls": [call]}
    if kind == "function_call_output":
        return {"role": "tool", "content": item.get("output"), "tool_call_id": item.get("call_id")}
    if kind == "reasoning":
        return {"role": "assistant", "content": "", "reasoning_content": _reasoning(item)}
    if "role" not in item:
        raise RowError(f"an item of type {kind!r:.40} is neither a message nor a function call")
    return {key: value for key, value in item.items() if key not in ("type", "id", "status")}


FORMAT = Format(_read, _detect, COMMON_KEYS | {"input", "output", "messages", "items", "instructions"})
