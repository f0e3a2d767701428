"""Preference pairs: the chosen side is read, the rejected one is not."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from fc_lightning.conversation.types import Conversation
from fc_lightning.data.formats.chat import COMMON_KEYS, decoded_list, read_chat, system_column
from fc_lightning.data.formats.values import Row, RowError

_CHOSEN, _REJECTED = ("chosen", "chosen_response"), ("rejected", "rejected_response")
_PROMPTS = ("prompt", "messages", "conversations")
KEYS = COMMON_KEYS | {*_CHOSEN, *_REJECTED, *_PROMPTS, "system", "system_prompt"}


def is_preference(row: Row) -> bool:
    """Whether the row has a chosen and a rejected side."""
    return any(key in row for key in _CHOSEN) and any(key in row for key in _REJECTED)


def read_preference(row: Row) -> Conversation:
    """Read the chosen side of a row."""
    prompt = next((row[key] for key in _PROMPTS if row.get(key)), None)
    chosen = next((row[key] for key in _CHOSEN if row.get(key)), None)
    turns = _turns(prompt, "user") + _turns(chosen, "assistant")
    if prompt is not None and _turns(chosen, "assistant")[: len(_turns(prompt, "user"))] == _turns(prompt, "user"):
        turns = _turns(chosen, "assistant")  # the chosen side repeats the prompt
    conversation = read_chat(row, turns, system_column(row))
    return replace(conversation, notices=(*conversation.notices, ("chosen_side", "the rejected side is not used")))


def _turns(value: Any, role: str) -> list[dict[str, Any]]:
    if isinstance(value, dict):
        return [value]
    turns = decoded_list(value)
    if turns is None and isinstance(value, str):
        return [{"role": role, "content": value}]
    if turns is None or not all(isinstance(turn, dict) for turn in turns):
        raise RowError("the chosen side or its prompt is neither text nor a list of turns")
    return turns
