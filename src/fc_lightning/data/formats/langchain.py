"""LangChain's messages: types ``human``, ``ai`` and ``tool``, ``tool_calls`` with ``args``."""

from __future__ import annotations

from typing import Any

from fc_lightning.conversation.types import Conversation
from fc_lightning.data.formats.chat import COMMON_KEYS, decoded_list, read_chat, turns_of
from fc_lightning.data.formats.format import Format
from fc_lightning.data.formats.values import Row

_TYPES = ("human", "ai", "system", "tool", "function")
_CLASSES = {"HumanMessage": "human", "AIMessage": "ai", "SystemMessage": "system", "ToolMessage": "tool"}
_IGNORED = frozenset(("type", "data", "id", "response_metadata", "usage_metadata", "example"))


def _detect(row: Row) -> bool:
    turns = [_flat(turn) for turn in decoded_list(row.get("messages")) or [] if isinstance(turn, dict)]
    return any(
        ("role" not in turn and "from" not in turn and turn.get("type") in _TYPES)
        or any(isinstance(call, dict) and "args" in call for call in decoded_list(turn.get("tool_calls")) or [])
        for turn in turns
    )


def _flat(turn: dict[str, Any]) -> dict[str, Any]:
    """A message without the wrapping of LangChain's serializers."""
    if isinstance(turn.get("data"), dict):
        return {"type": turn.get("type"), **turn["data"]}
    if turn.get("type") == "constructor" and isinstance(turn.get("kwargs"), dict):
        names = turn.get("id")
        name = str(names[-1]).removesuffix("Chunk") if isinstance(names, list) and names else ""
        return {**turn["kwargs"], "type": _CLASSES.get(name, name)}
    return turn


def _read(row: Row) -> Conversation:
    return read_chat(row, [_message(_flat(turn)) for turn in turns_of(row, ("messages",))])


def _message(turn: dict[str, Any]) -> dict[str, Any]:
    role = turn.get("role") or turn.get("type")
    extra = turn.get("additional_kwargs")
    message = {key: value for key, value in turn.items() if key not in _IGNORED and key != "additional_kwargs"}
    if isinstance(extra, dict) and not turn.get("tool_calls"):
        message |= {key: extra[key] for key in ("tool_calls", "function_call", "reasoning_content") if extra.get(key)}
    return {**message, "role": role}


FORMAT = Format(_read, _detect, COMMON_KEYS | {"messages"})
