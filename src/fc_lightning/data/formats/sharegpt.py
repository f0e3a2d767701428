"""ShareGPT as LLaMA-Factory writes it: ``function_call`` and ``observation`` turns, ``system`` column."""

from __future__ import annotations

from fc_lightning.conversation.types import Conversation, Role
from fc_lightning.data.formats.builder import ROLES, ConversationBuilder, Row, column_text, turn_text, turns_of


def is_sharegpt(row: Row) -> bool:
    """Whether a turn is a call, or the system text has its own column: Hermes rows have neither."""
    turns = row.get("conversations")
    turns = [turn for turn in turns if isinstance(turn, dict)] if isinstance(turns, list) else []
    calls = any("function_call" in (turn.get("from"), turn.get("role")) for turn in turns)
    return calls or bool(turns and row.get("system"))


def read_sharegpt(row: Row) -> Conversation:
    """Read a ShareGPT row."""
    builder = ConversationBuilder()
    builder.add(0, "system", column_text(row, "system"))
    roles: dict[str, Role] = {**ROLES, "function_call": "assistant"}
    for number, (name, role, turn) in enumerate(turns_of(row, ("conversations",), roles), 1):
        text = turn_text(turn, number)
        if name == "function_call":
            # Consecutive text and calls are one model turn: nothing would open a second one after the end token.
            before = builder.pop_assistant()
            calls = before.tool_calls + builder.read_calls(number, text)
            builder.add(number, role, before.content, None, calls)
        else:
            builder.add(number, role, text)
    return builder.build(row, builder.read_tools(row.get("tools")))
