"""Preference pairs: the chosen side is a conversation, the last turn of the rejected side is kept next to it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from fc_lightning.conversation.types import Conversation
from fc_lightning.data.formats.chat import COMMON_KEYS, decoded_list, read_chat, system_column
from fc_lightning.data.formats.format import Format
from fc_lightning.data.formats.values import Row, RowError

_CHOSEN, _REJECTED = ("chosen", "chosen_response"), ("rejected", "rejected_response")
_PROMPTS = ("prompt", "messages", "conversations")


def _detect(row: Row) -> bool:
    return any(key in row for key in _CHOSEN) and any(key in row for key in _REJECTED)


def _read(row: Row) -> Conversation:
    chosen = _read_side(row, _CHOSEN)
    try:
        other = _read_side(row, _REJECTED)
    except RowError as error:
        return _without_rejected(chosen, str(error))
    if other.defects:
        return _without_rejected(chosen, other.defects[0])
    if not other.messages or other.messages[:-1] != chosen.messages[:-1]:
        return _without_rejected(chosen, "it follows a different history")
    if other.messages[-1].role != "assistant" or other.messages[-1] == chosen.messages[-1]:
        return _without_rejected(chosen, "it does not end with a different assistant turn")
    notice = ("chosen_side", "the rejected side is used only with `model.preference`")
    return replace(chosen, rejected=other.messages[-1], notices=(*chosen.notices, notice))


def _read_side(row: Row, names: Sequence[str]) -> Conversation:
    prompt = next((row[key] for key in _PROMPTS if row.get(key)), None)
    side = next((row[key] for key in names if row.get(key)), None)
    turns = _turns(prompt, "user") + _turns(side, "assistant")
    if prompt is not None and _turns(side, "assistant")[: len(_turns(prompt, "user"))] == _turns(prompt, "user"):
        turns = _turns(side, "assistant")  # the side repeats the prompt
    return read_chat(row, turns, system_column(row))


def _without_rejected(chosen: Conversation, reason: str) -> Conversation:
    return replace(chosen, notices=(*chosen.notices, ("chosen_side", f"the rejected side is not used: {reason}")))


def _turns(value: Any, role: str) -> list[dict[str, Any]]:
    if isinstance(value, dict):
        return [value]
    turns = decoded_list(value)
    if turns is None and isinstance(value, str):
        return [{"role": role, "content": value}]
    if turns is None or not all(isinstance(turn, dict) for turn in turns):
        raise RowError("the chosen side or its prompt is neither text nor a list of turns")
    return turns


FORMAT = Format(
    _read, _detect, COMMON_KEYS | {*_CHOSEN, *_REJECTED, *_PROMPTS, "system", "system_prompt"}, ("chosen", "rejected")
)
