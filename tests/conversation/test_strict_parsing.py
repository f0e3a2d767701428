"""The strict reading against what servers deliver: transformers' parser with our template, and vLLM's rules."""

import json
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.helpers.chat import TOKENIZER, filled, texts, values
from tests.helpers.hermes import hermes

from fc_lightning.chat_template.response_template import response_template
from fc_lightning.chat_template.tool_formats import CHAT_FORMATS
from fc_lightning.conversation.parsing import CallSyntaxError, parse_call, parse_turn, render_turn
from fc_lightning.conversation.types import Message, ToolCall
from fc_lightning.evaluation.turns import evaluate_turn

TEMPLATE = response_template()
CALL = '<tool_call>\n{"name": "f", "arguments": {"a": 1}}\n</tool_call>'


def delivered(text: str) -> list[dict]:
    """The calls that a client of `transformers serve` gets."""
    parsed = TOKENIZER.parse_response(f"{text}<end_of_turn>\n", TEMPLATE, prefix=TEMPLATE["start_anchor"])
    functions = [call["function"] for call in parsed.get("tool_calls", [])]
    return [{"name": each["name"], "arguments": json.loads(each["arguments"])} for each in functions]


def check(text: str) -> bool:
    """Without errors, both servers deliver exactly the calls of the strict reading; returns whether it has none."""
    turn = parse_turn(text, strict=True)
    if turn.errors:
        return False
    calls = [call.to_dict() for call in turn.tool_calls]
    assert delivered(text) == calls, text
    assert hermes(text) == calls, text
    return True


@pytest.mark.parametrize(
    ("text", "calls"),
    [
        (CALL, 1),
        (CALL * 3, 3),
        ('Well. <tool_call>{"arguments":{},\n"name"\t:"f"}</tool_call> Done.', 1),
        (f"<think>\nWhy?\n</think>\n{CALL}", 1),
        ("<think>Why?</think>An answer.", 0),
        ("An answer.", 0),
        ("", 0),
        ("a < b, <think> or </think>", 0),
        ("stray </tool_call>", 0),
        ('<tool_call>{"name": "f", "arguments": {"a": "<\\/tool_call><tool_call>"}}</tool_call>', 1),
        ('<tool_call>{"name": "f", "arguments": {"a": "\\ud83d\\ude42 <think>"}}</tool_call>', 1),
        ('<tool_call>{"name": "f", "arguments": {"a": 1, "a": 2}}</tool_call>', 1),
    ],
)
def test_what_servers_deliver_counts(text, calls):
    assert check(text)
    assert len(parse_turn(text, strict=True).tool_calls) == calls


@pytest.mark.parametrize(
    "text",
    [
        "<tool_call>{'name': 'f', 'arguments': {'a': 1}}</tool_call>",  # a Python literal
        '<tool_call>{"name": "f", "arguments": {"a": True}}</tool_call>',
        '<tool_call>{"name": "f", "arguments": "{\\"a\\": 1}"}</tool_call>',  # arguments as a string
        '<tool_call>{"name": "f", "arguments": [1]}</tool_call>',
        '<tool_call>{"name": "f", "arguments": null}</tool_call>',
        '<tool_call>{"name": "f", "arguments": {}, "id": 1}</tool_call>',  # another key
        '<tool_call>{"name": "f", "name": "g", "arguments": {}}</tool_call>',  # a key twice
        '<tool_call>{"name": "\\u0066", "arguments": {}}</tool_call>',  # an escape in the name
        '<tool_call>{"name": "", "arguments": {}}</tool_call>',
        '<tool_call>{"name": 1, "arguments": {}}</tool_call>',
        '<tool_call>{"name": "f"}</tool_call>',
        '<tool_call>[{"name": "f", "arguments": {}}]</tool_call>',
        '<tool_call>{"name": "f", "arguments": {"a": NaN}}</tool_call>',
        '<tool_call>{"name": "f", "arguments": {"a": 1e999}}</tool_call>',
        '<tool_call>{"name": "f", "arguments": {"a": "\\ud800"}}</tool_call>',
        '<tool_call>{"name": "f", "arguments": {"a": "\n"}}</tool_call>',
        '<tool_call>{"name": "f", "arguments": {"a": "</tool_call>"}}</tool_call>',  # cut by vLLM's parser
        '<tool_call>\xa0{"name": "f", "arguments": {}}</tool_call>',  # not whitespace in JSON
        '<tool_call>{"name": "f", "arguments": {}}',  # not closed
        '<tool_call>{"name": "f", "arguments": {}',
        "<tool_call></tool_call>",
        f"<tool_call>{CALL}",
        f"<think>{CALL}",  # not closed: transformers' parser takes it all for reasoning
        f"<think>{CALL}</think>An answer.",  # vLLM's parser delivers the call
        f"<think>{CALL}</think>{CALL}",
        f"{CALL}<tool_call>oops</tool_call>",  # vLLM's parser discards both
    ],
)
def test_what_some_server_does_not_deliver_is_an_error(text):
    turn = parse_turn(text, strict=True)
    assert turn.errors
    calls = delivered(text)
    try:
        json.dumps(calls, allow_nan=False, ensure_ascii=False).encode()
    except ValueError:
        return  # no server can write such a response
    assert not calls or calls != hermes(text)


@pytest.mark.parametrize("chat_format", CHAT_FORMATS, ids=lambda chat_format: chat_format.name)
def test_the_verdict_is_the_servers(chat_format):
    """A turn is an exact match exactly if both servers deliver the reference calls, in every chat format."""
    template = response_template(chat_format, "<eos>")
    call = ToolCall("f", {"a": 1})
    bodies = ['{"name": "f", "arguments": {"a": 1}}', "{'name': 'f', 'arguments': {'a': 1}}",
              '{"name": "f", "arguments": "{\\"a\\": 1}"}', '{"arguments": {"a": 1.0}, "name": "f"}',
              '{"name": "f", "arguments": {"a": "1"}}', '{"name": "f", "arguments": {"a": 1}', '{"name": "f"}',
              '{"name": "f", "arguments": {"a": 1}, "id": 2}', '{"name": "f", "arguments": {"a": 2, "a": 1}}',
              ]  # fmt: skip
    shapes = ["<tool_call>{}</tool_call>", "Fine. <tool_call>\n{}\n</tool_call>", "<tool_call>{}", "{}",
              "<think>Hm.</think><tool_call>{}</tool_call>", "<think>Hm.<tool_call>{}</tool_call>",
              "<tool_call>{}</tool_call><tool_call>oops</tool_call>", "<think><tool_call>{}</tool_call></think>",
              ]  # fmt: skip
    verdicts = []
    for text in (shape.replace("{}", body) for shape in shapes for body in bodies):
        ended = f"{text}{chat_format.turn_end}\n"
        parsed = TOKENIZER.parse_response(ended, template, prefix=chat_format.generation_prompt)
        functions = [each["function"] for each in parsed.get("tool_calls", [])]
        served = [ToolCall(each["name"], json.loads(each["arguments"])) for each in functions]
        by_vllm = [ToolCall(each["name"], each["arguments"]) for each in hermes(text) or []]
        turn = evaluate_turn(text, [call])
        assert turn.exact_match == (served == by_vllm == [call]), text
        assert not evaluate_turn(text, [call], finished=False).exact_match
        verdicts.append(turn.exact_match)
    assert 0 < sum(verdicts) < len(verdicts) / 3


def test_the_lenient_reading_accepts_what_datasets_contain():
    for text in (
        "{'name': 'f', 'arguments': {'a': True}}",
        '{"name": "f", "arguments": "{\\"a\\": true}"}',
        '{"id": 1, "name": "f", "arguments": {"a": true}}',
    ):
        assert parse_call(text) == ToolCall("f", {"a": True})
        with pytest.raises(CallSyntaxError, match="as servers require"):
            parse_call(text, strict=True)


pieces = [*'{}[]":,\\/', " ", "\n", "\xa0", "1", "1e999", "true", "True", "'f'", '"f"', '"name"', '"arguments"', "é"]
pieces += [
    "<tool_call>",
    "</tool_call>",
    "<think>",
    "</think>",
    "<",
    "\\ud800",
    "\\u0041",
    '"name": "f"',
    '"arguments": {',
]
pieces += [
    CALL,
    '<tool_call>{"name": "f", "arguments": {',
    "}}</tool_call>",
    '"a": 1',
    '"a": {"b": []}',
    "<end_of_turn>x",
]
fragments = st.lists(st.sampled_from(pieces), max_size=10).map("".join)


@settings(max_examples=400, deadline=None)
@given(fragments)
def test_no_text_is_read_otherwise_than_by_servers(text):
    check(text.split("<end_of_turn>")[0])


@settings(max_examples=200, deadline=None)
@given(fragments, fragments, st.sampled_from(["name", "arguments", "id"]), st.booleans())
def test_no_object_is_read_otherwise_than_by_servers(name, arguments, key, swap):
    members = [f'"name": "{name}"', f'"{key}": {{"a": "{arguments}"}}']
    check(f"<tool_call>{{{', '.join(reversed(members) if swap else members)}}}</tool_call>".split("<end_of_turn>")[0])


hostile = texts | st.sampled_from(
    ["</tool_call>", "<\\/tool_call>", "}</tool_call>", '<tool_call>{"name"', "\\", '"', "/"]
)
arguments = st.dictionaries(hostile, values | hostile | st.lists(hostile, max_size=2), max_size=3)
calls = st.builds(ToolCall, st.from_regex(r"[\w.-]{1,8}", fullmatch=True), arguments)
messages = st.builds(Message, st.just("assistant"), texts, st.none() | filled, st.lists(calls, max_size=3).map(tuple))


@settings(max_examples=100, deadline=None)
@given(messages)
def test_rendered_turns_are_delivered_by_every_server(message):
    text = render_turn(message)
    assert check(text)
    assert parse_turn(text, strict=True).tool_calls == message.tool_calls


@pytest.mark.parametrize(
    "text",
    [
        " " * 200_000,
        "\n" * 200_000 + "<tool_call>",
        "<tool_call>" * 20_000,
        "</tool_call>" * 20_000,
        "<think>" * 20_000,
        "<tool_call>" + "[" * 100_000,
        '<tool_call>{"name": "f", "arguments": ' + '{"a": ' * 20_000,
        '<tool_call>{"name": "f", "arguments": {' + '"a": 1, ' * 20_000,
        '<tool_call>{"name": "' + "\\\\" * 100_000,
        '<tool_call>{"arguments": {"a": "' + "<" * 100_000 + '"}, "name": 1}</tool_call>',
        ('<tool_call>{"name": "f", "arguments": {"a": 1' + " " * 1_000) * 100,
        "<end_of_turn" * 20_000,
    ],
    ids=range(12),
)
def test_hostile_texts_take_linear_time(text):
    """Each takes a few milliseconds to a few hundred; quadratic time would be minutes."""
    start = time.process_time()
    parse_turn(text, strict=True)
    parse_turn(text)
    TOKENIZER.parse_response(text, TEMPLATE, prefix=TEMPLATE["start_anchor"])
    assert time.process_time() - start < 5
