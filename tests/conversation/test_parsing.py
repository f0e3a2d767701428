"""The grammar of acting: what parses, what does not, and that writing and reading are inverse."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fc_lightning.conversation.parsing import (
    CallSyntaxError,
    call_from_value,
    parse_call,
    parse_literal,
    parse_turn,
    render_turn,
    same_calls,
    same_names,
    tool_from_value,
)
from fc_lightning.conversation.types import Message, Tool, ToolCall

ADD = ToolCall("add", {"a": 1, "b": [2, None, True]})


@pytest.mark.parametrize(
    "text",
    [
        '{"name": "add", "arguments": {"a": 1, "b": [2, null, true]}}',
        '{"arguments": {"b": [2, null, true], "a": 1}, "name": "add"}',
        "{'name': 'add', 'arguments': {'a': 1, 'b': [2, None, True]}}",
        "{'arguments': {'a': 1, 'b': (2, None, True)}, 'name': 'add'}",
        '\n\t {"name": "add", "arguments": "{\\"a\\": 1, \\"b\\": [2, null, true]}"} \n',
    ],
)
def test_one_call_in_every_spelling(text):
    assert parse_call(text) == ADD


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "neither JSON nor a Python literal"),
        ('{"name": "add"', "neither JSON"),
        ('\\n{"name": "add"}\\n', "neither JSON"),
        ("add(a=1)", "neither JSON"),
        ("__import__('os').getcwd()", "neither JSON"),
        ('{"name": "add", "arguments": {"a": NaN}}', "neither JSON"),
        ('{"name": "add", "arguments": {"a": 1e999}}', "JSON cannot represent inf"),
        ("{'name': 'add', 'arguments': {'a': {1, 2}}}", "JSON cannot represent {1, 2}"),
        ("{'name': 'add', 'arguments': {'a': b'x'}}", "JSON cannot represent"),
        ("{'name': 'add', 'arguments': {1: 2}}", "a key that is not a string: 1"),
        ('{"name": "add", "arguments": {"a": "\\ud800"}}', "a lone surrogate"),
        ('{"name": "\\ud800", "arguments": {}}', "a lone surrogate"),
        ('[{"name": "add", "arguments": {}}]', "a call is an object"),
        ('{"arguments": {}}', "no `name`"),
        ('{"name": "", "arguments": {}}', "no `name`"),
        ('{"name": 3, "arguments": {}}', "no `name`"),
        ('{"name": "add"}', "no `arguments`"),
        ('{"name": "add", "arguments": [1]}', "are not an object"),
        ('{"name": "add", "arguments": null}', "are not an object"),
    ],
)
def test_broken_call_says_what_is_wrong_with_it(text, reason):
    with pytest.raises(CallSyntaxError, match=r".") as caught:
        parse_call(text)
    assert reason in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "text",
    [
        "[" * 100_000,
        "[" * 900 + "]" * 900,
        "{'a':" * 70 + "1" + "}" * 70,
        "-" * 100_000 + "1",
        "(" * 500 + ")" * 500,
        "'a'" + "[0]" * 10_000,
        "'" + "x" * 1_000_001 + "'",
        "9" * 5_000,
        "0x" + "f" * 5_000,
        "{0x" + "f" * 5_000 + ": 1}",
        "'a\0'",
    ],
)
def test_hostile_values_are_refused_like_any_other(text):
    with pytest.raises(CallSyntaxError, match=r"."):
        parse_literal(text)


def test_turn_with_thought_and_calls():
    turn = parse_turn(
        "<think>\nTwo calls.\n</think>\n"
        '<tool_call>\n{"name": "f", "arguments": {}}\n</tool_call>\n'
        "<tool_call>\n{'arguments': {'x': 'é'}, 'name': 'g'}\n</tool_call>\n"
    )
    assert turn.reasoning == "Two calls."
    assert turn.content == ""
    assert turn.tool_calls == (ToolCall("f", {}), ToolCall("g", {"x": "é"}))
    assert turn.errors == ()
    assert turn.grammatical


@pytest.mark.parametrize(
    "text",
    [
        "say </tool_call> and <tool_call>",
        "</tool_call>" * 7,
        "<think>no</think>",
        'quoted "</tool_call>" and \\ and \'',
        "line\nbreak\t</tool_call>\u2028",
    ],
)
@pytest.mark.parametrize("write", [json.dumps, repr])
def test_tags_inside_strings_belong_to_the_strings(text, write):
    call = ToolCall("write", {"text": text, "n": [{"deep": text}]})
    turn = parse_turn(
        f"<tool_call>\n{write(call.to_dict())}\n</tool_call><tool_call>{write(ADD.to_dict())}</tool_call>"
    )
    assert turn.tool_calls == (call, ADD)
    assert turn.grammatical


def test_broken_call_counts_and_the_next_is_still_read():
    turn = parse_turn(
        '<tool_call>{"name": "f", "arguments": {}}</tool_call><tool_call>oops</tool_call>'
        '<tool_call>{"name": "g", "arguments": {}}</tool_call>'
    )
    assert turn.tool_calls == (ToolCall("f", {}), ToolCall("g", {}))
    assert len(turn.errors) == 1
    assert turn.errors[0].startswith("call 2: neither JSON nor a Python literal")
    assert turn.errors[0].endswith(": oops")
    assert turn.grammatical


def test_call_that_is_not_closed():
    turn = parse_turn('<tool_call>\n{"name": "f", "arguments": {}}')
    assert turn.tool_calls == ()
    assert turn.errors == ('call 1: <tool_call> is not closed: \n{"name": "f", "arguments": {}}',)


@pytest.mark.parametrize(
    ("text", "thought", "content", "grammatical"),
    [
        ("Hello.", None, "Hello.", True),
        ("  <think> hm </think> Hello. ", "hm", "Hello.", True),
        ("<think></think>Hello.", "", "Hello.", True),
        ("", None, "", False),
        ("<think>only thinking</think>", "only thinking", "", False),
        ("<think>never closed", None, "<think>never closed", False),
        ("never opened</think>Hello.", None, "never opened</think>Hello.", False),
        ("<think>a<think>b</think>Hello.", "a<think>b", "Hello.", False),
        ("Hello. <think>late</think>", None, "Hello. <think>late</think>", False),
        ("stray </tool_call>", None, "stray </tool_call>", False),
    ],
)
def test_turns_without_calls(text, thought, content, grammatical):
    turn = parse_turn(text)
    assert (turn.reasoning, turn.content, turn.grammatical) == (thought, content, grammatical)
    assert turn.tool_calls == turn.errors == ()


def test_call_before_the_thought_and_text_around_calls_break_the_grammar():
    call = '<tool_call>{"name": "f", "arguments": {}}</tool_call>'
    late = parse_turn(f"{call}<think>why</think>")
    assert (late.reasoning, late.content, late.grammatical) == (None, "<think>why</think>", False)
    assert late.tool_calls == (ToolCall("f", {}),)
    around = parse_turn(f"Wait. {call} Done.")
    assert (around.content, around.tool_calls, around.grammatical) == (
        "Wait.  Done.",
        (ToolCall("f", {}),),
        False,
    )


@pytest.mark.parametrize(
    ("first", "second", "equal"),
    [
        ({"a": 1, "b": 2}, {"b": 2, "a": 1}, True),
        ({"a": 1}, {"a": 1.0}, True),
        ({"a": "1"}, {"a": 1}, False),
        ({"a": True}, {"a": 1}, False),
        ({"a": False}, {"a": 0.0}, False),
        ({"a": None}, {}, False),
        ({"a": [1, 2]}, {"a": [2, 1]}, False),
        ({"a": [{"x": 1, "y": [True]}]}, {"a": [{"y": [True], "x": 1.0}]}, True),
        ({"a": {"x": 1}}, {"a": [["x", 1]]}, False),
        ({"a": "Paris"}, {"a": "paris"}, False),
    ],
)
def test_when_two_calls_are_the_same(first, second, equal):
    one, two = ToolCall("f", first), ToolCall("f", second)
    assert (one == two) is equal
    assert (hash(one) == hash(two)) >= equal
    assert same_calls([one], [two]) is equal
    assert one != ToolCall("g", first)


def test_calls_of_two_turns_compare_as_multisets():
    f, g = ToolCall("f", {}), ToolCall("g", {"x": 1})
    assert same_calls([f, g, f], [f, f, g])
    assert not same_calls([f, g], [f, f, g])
    assert not same_calls([f, g], [f, ToolCall("g", {"x": 2})])
    assert same_names([f, g], [ToolCall("g", {}), f])
    assert not same_names([f], [f, f])
    assert same_calls([], [])


def test_tools_with_and_without_the_openai_wrapping():
    inner = {"name": "f", "description": "Does f.", "parameters": {"type": "object", "properties": {}}}
    tool = Tool("f", "Does f.", {"type": "object", "properties": {}})
    assert tool_from_value(inner) == tool_from_value({"type": "function", "function": inner}) == tool
    assert tool.to_openai() == {"type": "function", "function": inner}
    assert tool_from_value({"name": "g", "description": None, "parameters": None}) == Tool("g")


@pytest.mark.parametrize(
    "value",
    ["f", None, [], {}, {"name": 1}, {"function": "f"}, {"name": "f", "parameters": [1]}, {"name": "\ud800"}],
)
def test_what_is_no_tool(value):
    with pytest.raises(CallSyntaxError, match=r"."):
        tool_from_value(value)


def test_a_turn_is_written_in_one_way():
    message = Message("assistant", "", "Add.", (ADD,))
    assert render_turn(message) == (
        "<think>\nAdd.\n</think>\n"
        '<tool_call>\n{"name": "add", "arguments": {"a": 1, "b": [2, null, true]}}\n</tool_call>'
    )
    assert render_turn(Message("assistant", "Hi.")) == "Hi."


# Texts that are likely to confuse a parser, beside any other.
pieces = st.sampled_from(
    [
        "<tool_call>",
        "</tool_call>",
        "<think>",
        "</think>",
        '"',
        "'",
        "\\",
        "{",
        "}",
        "\n",
        "#",
        "é",
        "名",
        "🙂",
        " ",
    ]
)
texts = st.lists(pieces | st.text(st.characters(exclude_categories=["Cs"]), max_size=5), max_size=6).map("".join)
scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | texts
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=8,
)
calls = st.builds(ToolCall, texts.filter(bool), st.dictionaries(texts, values, max_size=3))
plain = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="<"), max_size=20).map(str.strip)
messages = st.builds(
    Message,
    role=st.just("assistant"),
    content=plain,
    reasoning=st.none() | plain,
    tool_calls=st.lists(calls, max_size=3).map(tuple),
)


@settings(max_examples=150, deadline=None)
@given(messages)
def test_what_is_written_reads_the_same(message):
    turn = parse_turn(render_turn(message))
    assert turn.errors == ()
    assert Message("assistant", turn.content, turn.reasoning, turn.tool_calls) == message
    assert turn.grammatical == (bool(message.content) != bool(message.tool_calls))


@settings(max_examples=100, deadline=None)
@given(calls)
def test_python_literals_read_as_json_does(call):
    assert parse_call(repr(call.to_dict())) == parse_call(json.dumps(call.to_dict())) == call


@settings(max_examples=100, deadline=None)
@given(st.lists(pieces | st.sampled_from(["name", "arguments", ":", ","]) | st.text(max_size=3), max_size=15))
def test_no_text_crashes_the_parser(parts):
    turn = parse_turn("<tool_call>".join(["", *parts]))
    for call in turn.tool_calls:
        assert call_from_value(call.to_dict()) == call
