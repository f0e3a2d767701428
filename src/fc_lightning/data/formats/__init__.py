"""Row formats: reads rows of every known format into conversations; :func:`register_format` adds your own.

Each module that defines a ``FORMAT`` reads one; see `format.py`. :func:`read_row` detects it. A row that cannot be read
raises :class:`RowError`. One that can be read but is partly wrong becomes a conversation with ``defects``, and what is
unusual in it is in its ``notices``.
"""

from __future__ import annotations

import importlib
from collections.abc import Collection, Mapping
from dataclasses import replace

from fc_lightning.conversation.parsing import CallSyntaxError, to_json_value
from fc_lightning.conversation.types import Conversation
from fc_lightning.data.formats import (
    alpaca,
    anthropic,
    api_log,
    bedrock,
    bfcl,
    columns,
    gemini,
    glaive,
    glm,
    hermes,
    langchain,
    mistral,
    openai,
    openai_responses,
    preference,
    react,
    rendered,
    sharegpt,
    swift,
    toolace,
    trl,
    xlam,
)
from fc_lightning.data.formats.builder import turn_defects
from fc_lightning.data.formats.columns import DEFAULT_SYSTEM_PROMPT
from fc_lightning.data.formats.format import Detector, Format, Reader
from fc_lightning.data.formats.values import Row, RowError, is_empty, text_of
from fc_lightning.utils.errors import UserError

__all__ = [
    "DEFAULT_SYSTEM_PROMPT",
    "FORMATS",
    "Format",
    "RowError",
    "UnknownFormatError",
    "detect_format",
    "read_row",
    "register_format",
]


class UnknownFormatError(UserError):
    """A format name that is neither registered nor the import path of a reader."""


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
        name = detect_format(row) if format is None else format
        entry = FORMATS.get(name) or Format(_import_reader(name))
        conversation = entry.reader(row)
    except RecursionError:
        raise RowError("the row is nested too deeply") from None
    except CallSyntaxError as problem:
        raise RowError(str(problem)) from problem
    except (AttributeError, IndexError, KeyError, TypeError) as problem:
        if format is not None and format not in BUILT_IN:
            raise
        raise RowError(
            f"its values do not have the types that its format requires ({type(problem).__name__}: {problem})"
        ) from problem
    if not isinstance(conversation, Conversation):
        raise TypeError(f"the reader of format {name!r} returned {type(conversation).__name__}, not a Conversation")
    if name not in BUILT_IN:
        conversation = _checked(conversation)
    if entry.keys is not None:
        unread = [("unread_key", str(key)[:80]) for key in row if key not in entry.keys and not is_empty(row[key])]
        if unread:
            conversation = replace(conversation, notices=(*conversation.notices, *unread))
    return replace(conversation, id=conversation.id or default_id, format=name)


def _checked(conversation: Conversation) -> Conversation:
    """The conversation of a custom reader, with its defects found."""
    for number, message in enumerate(conversation.messages, 1):
        text_of(message.content, f"turn {number}: its text")
        text_of(message.reasoning or "", f"turn {number}: its reasoning")
        try:
            to_json_value([call.arguments for call in message.tool_calls])
        except CallSyntaxError as problem:
            raise RowError(f"turn {number}: {problem}") from None
    defects = turn_defects(list(enumerate(conversation.messages, 1)), conversation.defects)
    return replace(conversation, defects=(*conversation.defects, *defects)) if defects else conversation


def register_format(
    name: str, reader: Reader, detects: Detector | None = None, keys: Collection[str] | None = None
) -> None:
    """Add or replace a format. The detector of the newest format is asked first.

    Args:
        name: The name that configurations use.
        reader: Converts a row to a conversation.
        detects: Whether a row is of this format; without it the format is used by name only.
        keys: The keys of a row that the reader uses; with them, other keys are reported as unread.
    """
    others = {key: value for key, value in FORMATS.items() if key != name}
    FORMATS.clear()
    FORMATS.update({name: Format(reader, detects, None if keys is None else frozenset(keys)), **others})


def detect_format(row: Row) -> str:
    """The name of the first format whose detector accepts a row.

    Raises:
        RowError: If none does. The message names the nearest format and what the row lacks for it.
    """
    for name, entry in FORMATS.items():
        if entry.detects is not None and entry.detects(row):
            return name
    raise RowError(_no_format_fits(row))


def _no_format_fits(row: Row) -> str:
    keys = ", ".join(str(key)[:40] for key in list(row)[:20]) or "none"
    shares = {
        name: sum(key in row for key in entry.needs) / len(entry.needs)
        for name, entry in FORMATS.items()
        if entry.needs
    }
    nearest = max(shares, key=lambda name: shares[name], default="")
    near = ""
    if nearest and 0 < shares[nearest] < 1:
        missing = ", ".join(f"`{key}`" for key in FORMATS[nearest].needs if key not in row)
        near = f"; the nearest is {nearest}, which also needs {missing}"
    elif nearest and shares[nearest] == 1:
        needs = ", ".join(f"`{key}`" for key in FORMATS[nearest].needs)
        near = f"; the nearest is {nearest}, but {needs} has a different structure"
    return (
        f"no format fits a row with the keys {keys}{near}; known formats: {', '.join(FORMATS)}. To read it, write "
        "`def read(row): return Conversation(str(row['id']), (Message('user', …), Message('assistant', …)))` in "
        "my_module.py and set `format: my_module:read`"
    )


def _import_reader(name: str) -> Reader:
    module, _, attribute = name.partition(":") if ":" in name else name.rpartition(".")
    known = f"known formats: {', '.join(FORMATS)}; add one with register_format(), or write my_module:my_reader"
    try:
        reader = getattr(importlib.import_module(module), attribute) if module and attribute else None
    except (ImportError, AttributeError, TypeError, ValueError) as problem:
        raise UnknownFormatError(f"unknown format {name!r} ({problem}); {known}") from problem
    if not callable(reader):
        raise UnknownFormatError(f"unknown format {name!r}; {known}")
    return reader


# Detectors are asked from top to bottom: formats with a feature of their own come before those that take any turns.
_MODULES = (
    *(preference, bfcl, gemini, api_log, bedrock, anthropic, openai_responses, langchain, swift, glm, react, toolace),
    *(sharegpt, openai, hermes, columns, xlam, trl, glaive, alpaca, rendered, mistral),
)
FORMATS: dict[str, Format] = {module.__name__.rpartition(".")[2]: module.FORMAT for module in _MODULES}
BUILT_IN = frozenset(FORMATS)
