"""xLAM: ``query``, ``tools`` and ``answers``, one exchange per row."""

from __future__ import annotations

from fc_lightning.conversation.types import Conversation
from fc_lightning.data.formats.builder import ConversationBuilder, Row, column_text


def is_xlam(row: Row) -> bool:
    """Whether the row has ``query`` and ``answers``."""
    return "query" in row and "answers" in row


def read_xlam(row: Row) -> Conversation:
    """Read an xLAM row."""
    builder = ConversationBuilder()
    builder.add(1, "user", column_text(row, "query", needed=True))
    builder.add(2, "assistant", "", None, builder.read_calls(2, row.get("answers")))
    return builder.build(row, builder.read_tools(row.get("tools")))
