"""The parts of a turn: they cover it without gaps, and put together again they are what the parser reads."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fc_lightning.conversation.parsing import parse_turn, render_turn
from fc_lightning.conversation.turn_parts import TURN_PARTS, split_turn
from fc_lightning.conversation.types import Message, ToolCall


def texts_of(text: str, part: str) -> list[str]:
    return [text[first:last] for first, last, kind in split_turn(text) if kind == part]


TURN = (
    "<think>\nThe name is Rome.\n</think>\n"
    '<tool_call>\n{"name": "get", "arguments": {"name": "a, \\"b\\": {", "n": -1.5e3, "deep": [{"x": null}, "}"]}}\n'
    "</tool_call>\n<tool_call>\n{'arguments': {'flag': True}, 'name': 'set'}\n</tool_call>"
)


def test_each_part_of_a_turn_is_found():
    assert texts_of(TURN, "reasoning") == ["\nThe name is Rome.\n"]
    assert texts_of(TURN, "function_name") == ["get", "set"]
    assert texts_of(TURN, "argument_name") == ["name", "n", "deep", "flag"]
    assert texts_of(TURN, "argument_value") == ['"a, \\"b\\": {"', "-1.5e3", '[{"x": null}, "}"]', "True"]
    assert texts_of(TURN, "answer") == []
    assert {part for _, _, part in split_turn(TURN)} == set(TURN_PARTS) - {"answer"}


@pytest.mark.parametrize(
    ("text", "answers"),
    [
        ("It is noon.", ["It is noon."]),
        ("  It is\nnoon. \n", ["It is\nnoon."]),
        ("<think>So.</think>\nIt is noon.", ["It is noon."]),
        ("<think>So.", ["<think>So."]),
        ("", []),
        ('Wait.\n<tool_call>{"name": "f", "arguments": {}}</tool_call>', ["Wait."]),
        ("<tool_call>{oops</tool_call>", []),
        ("<tool_call>{oops", []),
    ],
)
def test_what_is_said_outside_of_the_blocks_is_the_answer(text, answers):
    assert texts_of(text, "answer") == answers


def test_a_tag_in_a_value_belongs_to_the_value():
    message = Message("assistant", "", None, (ToolCall("f", {"text": "</tool_call> and <tool_call>"}),))
    (value,) = texts_of(render_turn(message), "argument_value")
    assert json.loads(value) == "</tool_call> and <tool_call>"


NAMES = st.sampled_from(["a", "name", "arguments", 'quo"ted', "back\\slash", "ü", "with space"])
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=3),
    max_leaves=6,
)
CALLS = st.builds(ToolCall, NAMES, st.dictionaries(NAMES, VALUES, max_size=4))


@settings(max_examples=80, deadline=None)
@given(st.lists(CALLS, max_size=3), st.sampled_from([None, "Because.", 'It "says" {so}.']))
def test_the_parts_are_what_the_parser_reads(calls, reasoning):
    text = render_turn(Message("assistant", "" if calls else "Hello.", reasoning, tuple(calls)))
    spans = split_turn(text)
    assert "".join(text[first:last] for first, last, _ in spans) == text
    assert all(first < last for first, last, _ in spans)
    assert [json.loads(f'"{name}"') for name in texts_of(text, "function_name")] == [call.name for call in calls]
    names = [json.loads(f'"{name}"') for name in texts_of(text, "argument_name")]
    values = [json.loads(value) for value in texts_of(text, "argument_value")]
    assert names == [name for call in calls for name in call.arguments]
    assert values == [value for call in calls for value in call.arguments.values()]
    assert len(parse_turn(text).tool_calls) == len(calls)
