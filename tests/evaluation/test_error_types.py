"""Error types: one turn for each, written by hand, and the marks of a comparison of calls."""

import json

import pytest

from fc_lightning.conversation.types import Tool, ToolCall
from fc_lightning.evaluation.error_types import compare_calls, error_type
from fc_lightning.evaluation.metrics import evaluate_turn

TOOLS = [Tool("clock"), Tool("weather")]
ROME = ToolCall("clock", {"city": "Rome"})


def write(*calls):
    return "".join(f"<tool_call>{json.dumps({'name': name, 'arguments': given})}</tool_call>" for name, given in calls)


@pytest.mark.parametrize(
    ("error", "text", "expected"),
    [
        ("", write(("clock", {"city": "Rome"})), [ROME]),
        ("", "Noon.", []),
        ("unreadable call", "<tool_call>{oops</tool_call>", [ROME]),
        ("missing call", "Noon.", [ROME]),
        ("unnecessary call", write(("clock", {})), []),
        ("tool not offered", write(("radar", {})), [ROME]),
        ("wrong tool", write(("weather", {"city": "Rome"})), [ROME]),
        ("too many calls", write(("clock", {"city": "Rome"}), ("clock", {"city": "Bern"})), [ROME]),
        ("too few calls", write(("clock", {"city": "Rome"})), [ROME, ROME]),
        ("missing argument", write(("clock", {})), [ROME]),
        ("unexpected argument", write(("clock", {"city": "Rome", "zone": 1})), [ROME]),
        ("wrong value", write(("clock", {"city": "Bern"})), [ROME]),
    ],
)
def test_error_types(error, text, expected):
    assert error_type(evaluate_turn(text, expected, tools=TOOLS)) == error
    assert error_type(evaluate_turn(text, expected, tools=TOOLS, finished=False)) == (
        "unreadable call" if error == "unreadable call" else "unterminated turn"
    )


def test_an_accepted_alternative_is_an_error_type_of_its_own():
    turn = evaluate_turn(write(("clock", {"city": "rome"})), [ROME], gold=[{"clock": {"city": ["Rome"]}}])
    assert error_type(turn) == "accepted alternative"


def test_differences_are_marked():
    calls = [ToolCall("clock", {"city": "Bern", "zone": 1}), ROME]
    others = [ROME, ToolCall("clock", {"city": "Oslo", "zone": 1})]
    assert [text for text, differs in compare_calls(calls, others) if differs] == ['city="Bern"']
    assert "".join(text for text, _ in compare_calls(calls, others)) == (
        'clock(city="Bern", zone=1), clock(city="Rome")'
    )
    assert compare_calls([], [ROME]) == [("no call", True)]
    assert compare_calls([], []) == [("no call", False)]
