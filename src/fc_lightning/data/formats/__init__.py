"""Rows of every known source, read into conversations, and a registry for sources of your own.

:func:`read_row` finds out by itself how a row is written. A row of which no conversation can be made raises
:class:`RowError`. A row that can be read but has something wrong in it becomes a conversation with
``defects``.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import NamedTuple

from fc_lightning.conversation.types import Conversation
from fc_lightning.data.formats.builder import Row, RowError
from fc_lightning.data.formats.readers import (
    DEFAULT_SYSTEM_PROMPT,
    read_columns,
    read_glaive,
    read_hermes,
    read_openai,
    read_prompt_completion,
    read_sharegpt,
    read_xlam,
)

__all__ = [
    "DEFAULT_SYSTEM_PROMPT",
    "FORMATS",
    "Format",
    "RowError",
    "UnknownFormatError",
    "read_row",
    "register_format",
]


class UnknownFormatError(ValueError):
    """A format name that is neither registered nor the import path of a reader."""


Reader = Callable[[Row], Conversation]
Detector = Callable[[Row], bool]


class Format(NamedTuple):
    """One way to write a row.

    Attributes:
        reader: Makes a conversation of a row, or raises :class:`RowError`.
        detects: Whether a row is written this way; ``None`` for a format that is used by name only.
    """

    reader: Reader
    detects: Detector | None = None


def read_row(row: Row, format: str | None = None, default_id: str = "") -> Conversation:
    """Read one row of any known source.

    Args:
        row: The row, as a dataset or a JSON file gives it.
        format: A name in :data:`FORMATS`, or the import path of a reader (``my_module:my_reader``). By
            default the first format whose detector accepts the row.
        default_id: The conversation's id if the row has none.

    Returns:
        The conversation; what is wrong inside the row stands in its ``defects``.

    Raises:
        RowError: If no conversation can be made of the row.
        UnknownFormatError: If there is no such format.
    """
    if not isinstance(row, Mapping):
        raise RowError(f"a row is an object, not {type(row).__name__}")
    try:
        conversation = (_detect(row) if format is None else _find_reader(format))(row)
    except RecursionError:
        raise RowError("the row is nested too deep") from None
    if not isinstance(conversation, Conversation):
        kind = type(conversation).__name__
        raise TypeError(f"the reader of format {format!r} returned {kind}, no Conversation")
    return conversation if conversation.id else replace(conversation, id=default_id)


def register_format(name: str, reader: Reader, detects: Detector | None = None) -> None:
    """Add a format, or replace one. The newest is the first to be asked whether a row is its own.

    Args:
        name: The name that configurations use.
        reader: Makes a conversation of a row.
        detects: Whether a row is of this format; without it the format is used by name only.
    """
    others = {key: value for key, value in FORMATS.items() if key != name}
    FORMATS.clear()
    FORMATS.update({name: Format(reader, detects), **others})


def _is_sharegpt(row: Row) -> bool:
    """Whether a turn is a call, or the system text has a column of its own: Hermes has neither."""
    turns = row.get("conversations")
    turns = [turn for turn in turns if isinstance(turn, dict)] if isinstance(turns, list) else []
    calls = any("function_call" in (turn.get("from"), turn.get("role")) for turn in turns)
    return calls or bool(turns and row.get("system"))


def _detect(row: Row) -> Reader:
    for entry in FORMATS.values():
        if entry.detects is not None and entry.detects(row):
            return entry.reader
    keys = ", ".join(str(key)[:40] for key in list(row)[:20]) or "none"
    raise RowError(f"no format fits a row with the keys {keys}; known are {', '.join(FORMATS)}")


def _find_reader(name: str) -> Reader:
    if name in FORMATS:
        return FORMATS[name].reader
    module, _, attribute = name.partition(":") if ":" in name else name.rpartition(".")
    known = f"known are {', '.join(FORMATS)}; add one with register_format(), or write my_module:my_reader"
    try:
        reader = getattr(importlib.import_module(module), attribute) if module and attribute else None
    except (ImportError, AttributeError, TypeError, ValueError) as problem:
        raise UnknownFormatError(f"there is no format {name!r} ({problem}); {known}") from problem
    if not callable(reader):
        raise UnknownFormatError(f"there is no format {name!r}; {known}")
    return reader


# Detectors are asked from top to bottom; Hermes takes any `conversations`, so ShareGPT's come before it.
FORMATS: dict[str, Format] = {
    "sharegpt": Format(read_sharegpt, _is_sharegpt),
    "hermes": Format(read_hermes, lambda row: isinstance(row.get("conversations"), list)),
    "openai": Format(read_openai, lambda row: isinstance(row.get("messages"), list)),
    "columns": Format(read_columns, lambda row: "query" in row and "tool_call" in row),
    "xlam": Format(read_xlam, lambda row: "query" in row and "answers" in row),
    "trl": Format(read_prompt_completion, lambda row: "prompt" in row and "completion" in row),
    "glaive": Format(read_glaive, lambda row: isinstance(row.get("chat"), str)),
}
