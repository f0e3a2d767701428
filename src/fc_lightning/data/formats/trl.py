"""TRL: ``prompt`` and ``completion`` with ``tools``; each of the two a list of messages or a text."""

from __future__ import annotations

from typing import Any

from fc_lightning.conversation.types import Conversation
from fc_lightning.data.formats.builder import Row
from fc_lightning.data.formats.hermes import read_hermes
from fc_lightning.data.formats.openai import read_openai


def is_trl(row: Row) -> bool:
    """Whether the row has ``prompt`` and ``completion``."""
    return "prompt" in row and "completion" in row


def read_trl(row: Row) -> Conversation:
    """Read a TRL row."""
    messages: list[Any] = []
    for key, role in (("prompt", "user"), ("completion", "assistant")):
        value = row.get(key)
        messages += value if isinstance(value, list) else [{"role": role, "content": value}]
    # A completion that is a text carries its calls between tags.
    reader = read_openai if isinstance(row.get("completion"), list) else read_hermes
    return reader({**row, "messages": messages, "conversations": None})
