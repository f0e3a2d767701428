"""Preference rows: each shape gives a conversation that ends with the chosen turn and carries the rejected one."""

import pytest

from fc_lightning.conversation.types import Message, ToolCall
from fc_lightning.data.formats import RowError, read_row

ASK = {"role": "user", "content": "Time in Rome?"}
CALL = {"type": "function", "function": {"name": "clock", "arguments": {"city": "Rome"}}}
GOOD = {"role": "assistant", "content": None, "tool_calls": [CALL]}
BAD = {"role": "assistant", "content": "I do not know."}
TOOLS = [{"type": "function", "function": {"name": "clock", "description": "Time.", "parameters": {"type": "object"}}}]
TEXT = '<tool_call>\n{"name": "clock", "arguments": {"city": "Rome"}}\n</tool_call>'


@pytest.mark.parametrize(
    "row",
    [
        {"messages": [ASK], "chosen": GOOD, "rejected": BAD},
        {"prompt": [ASK], "chosen": [GOOD], "rejected": [BAD]},
        {"prompt": "Time in Rome?", "chosen": TEXT, "rejected": "I do not know."},
        {"chosen": [ASK, GOOD], "rejected": [ASK, BAD]},
    ],
)
def test_every_shape_gives_the_same_conversation(row):
    read = read_row({**row, "tools": TOOLS, "id": "x"})
    call = Message("assistant", "", None, (ToolCall("clock", {"city": "Rome"}),))
    assert read.messages == (Message("user", "Time in Rome?"), call)
    assert read.rejected == Message("assistant", "I do not know.")
    assert [tool.name for tool in read.tools] == ["clock"]
    assert not read.defects


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"chosen": [ASK, GOOD], "rejected": [{**ASK, "content": "?"}, BAD]}, "same history"),
        ({"prompt": [ASK], "chosen": [GOOD, ASK], "rejected": [GOOD, ASK]}, "end with a turn of the assistant"),
        ({"prompt": [ASK], "chosen": [GOOD], "rejected": [GOOD]}, "the same turn"),
    ],
)
def test_rows_that_are_no_preference(row, reason):
    with pytest.raises(RowError, match=reason):
        read_row(row)


def test_a_flaw_of_either_turn_is_a_defect():
    broken = "<tool_call>{oops</tool_call>"
    for chosen, rejected in ((broken, "No."), ("No.", broken)):
        assert read_row({"prompt": "Time?", "chosen": chosen, "rejected": rejected, "tools": TOOLS}).defects
