"""Row formats: reads rows of every known format into conversations; :func:`register_format` adds your own.

:func:`read_row` detects the format. A row that cannot be read raises :class:`RowError`; a row that can be read but is
partly wrong becomes a conversation with ``defects``.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import NamedTuple

from fc_lightning.conversation.types import Conversation
from fc_lightning.data.formats.builder import Row, RowError
from fc_lightning.data.formats.columns import DEFAULT_SYSTEM_PROMPT, is_columns, read_columns
from fc_lightning.data.formats.glaive import is_glaive, read_glaive
from fc_lightning.data.formats.hermes import is_hermes, read_hermes
from fc_lightning.data.formats.openai import is_openai, read_openai
from fc_lightning.data.formats.preference import is_preference, read_preference
from fc_lightning.data.formats.sharegpt import is_sharegpt, read_sharegpt
from fc_lightning.data.formats.trl import is_trl, read_trl
from fc_lightning.data.formats.xlam import is_xlam, read_xlam

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
    """A row format.

    Attributes:
        reader: Converts a row to a conversation, or raises :class:`RowError`.
        detects: Whether a row has this format; ``None`` for a format that is used by name only.
    """

    reader: Reader
    detects: Detector | None = None


def read_row(row: Row, format: str | None = None, default_id: str = "") -> Conversation:
    """Read one row of any known format.

    Args:
        row: The row, as a dataset or a JSON file gives it.
        format: A name in :data:`FORMATS`, or the import path of a reader (``my_module:my_reader``). By
            default the first format whose detector accepts the row.
        default_id: The conversation's id if the row has none.

    Returns:
        The conversation; what is wrong inside the row is in its ``defects``.

    Raises:
        RowError: If the row cannot be read.
        UnknownFormatError: If there is no such format.
    """
    if not isinstance(row, Mapping):
        raise RowError(f"a row must be an object, not {type(row).__name__}")
    try:
        conversation = (_detect(row) if format is None else _find_reader(format))(row)
    except RecursionError:
        raise RowError("the row is nested too deeply") from None
    if not isinstance(conversation, Conversation):
        kind = type(conversation).__name__
        raise TypeError(f"the reader of format {format!r} returned {kind}, not a Conversation")
    return conversation if conversation.id else replace(conversation, id=default_id)


def register_format(name: str, reader: Reader, detects: Detector | None = None) -> None:
    """Add or replace a format. The detector of the newest format is asked first.

    Args:
        name: The name that configurations use.
        reader: Converts a row to a conversation.
        detects: Whether a row is of this format; without it the format is used by name only.
    """
    others = {key: value for key, value in FORMATS.items() if key != name}
    FORMATS.clear()
    FORMATS.update({name: Format(reader, detects), **others})


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
        raise UnknownFormatError(f"unknown format {name!r} ({problem}); {known}") from problem
    if not callable(reader):
        raise UnknownFormatError(f"unknown format {name!r}; {known}")
    return reader


# Detectors are asked from top to bottom. A preference may carry its history as another format does, so it comes first;
# Hermes accepts any `conversations`, so ShareGPT comes before it.
FORMATS: dict[str, Format] = {
    "preference": Format(read_preference, is_preference),
    "sharegpt": Format(read_sharegpt, is_sharegpt),
    "hermes": Format(read_hermes, is_hermes),
    "openai": Format(read_openai, is_openai),
    "columns": Format(read_columns, is_columns),
    "xlam": Format(read_xlam, is_xlam),
    "trl": Format(read_trl, is_trl),
    "glaive": Format(read_glaive, is_glaive),
}
