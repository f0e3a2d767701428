"""What a row format consists of.

Each module of this package that reads one defines it as ``FORMAT``, and is listed in ``_MODULES`` of `__init__.py`:
formats are detected in that order. Users add theirs with ``register_format``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from fc_lightning.conversation.types import Conversation
from fc_lightning.data.formats.values import Row

Reader = Callable[[Row], Conversation]
Detector = Callable[[Row], bool]


class Format(NamedTuple):
    """A row format."""

    reader: Reader  # converts a row to a conversation, or raises `RowError`
    detects: Detector | None = None  # whether a row has this format; None for a format that is used by name only
    keys: frozenset[str] | None = None  # of a row that the reader uses; others are reported; None if not known
    needs: tuple[str, ...] = ()  # keys that every row of the format has, to name the nearest format when none fits
