"""Columns ``query``, ``tools``, ``thoughts`` and ``tool_call``: one exchange per row."""

from __future__ import annotations

from fc_lightning.conversation.parsing import CALL_CLOSE, CALL_OPEN, THINK_CLOSE, THINK_OPEN
from fc_lightning.conversation.types import Conversation
from fc_lightning.data.formats.builder import ConversationBuilder
from fc_lightning.data.formats.chat import COMMON_KEYS
from fc_lightning.data.formats.format import Format
from fc_lightning.data.formats.values import Row, column_text

DEFAULT_SYSTEM_PROMPT = """\
You are a helpful assistant with access to the following tools.

Before calling a tool, think carefully about which tool to use.
Write your reasoning between <think> and </think>."""


def _detect(row: Row) -> bool:
    return "query" in row and "tool_call" in row


def _read(row: Row) -> Conversation:
    query = column_text(row, "query", needed=True)
    tools, thoughts = column_text(row, "tools"), column_text(row, "thoughts")
    call, prompt = column_text(row, "tool_call"), column_text(row, "system_prompt")
    builder = ConversationBuilder()
    builder.read_tools(row.get("tools"))
    builder.add(1, "system", prompt)
    builder.add(1, "user", query)
    raw_call = f"{CALL_OPEN}\n{call}\n{CALL_CLOSE}"
    if call.lstrip().startswith(CALL_OPEN):
        raw_call = call
        builder.add_assistant(2, call, thoughts)
    else:
        builder.add_assistant(2, "", thoughts, *builder.read_calls(2, row.get("tool_call")))
    prompt = prompt or DEFAULT_SYSTEM_PROMPT
    raw_turns = [
        ("user", f"{prompt}\n\nAvailable tools:\n{tools}\n\nUser query:\n{query}"),
        ("model", f"{THINK_OPEN}\n{thoughts}\n{THINK_CLOSE}\n{raw_call}"),
    ]
    return builder.build(row, raw_turns)


FORMAT = Format(
    _read, _detect, COMMON_KEYS | {"query", "thoughts", "tool_call", "system_prompt"}, ("query", "tool_call")
)
