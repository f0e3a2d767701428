"""Calls in text: each model's syntax, read by hand; nothing is evaluated, and what is unclear stays text."""

import json
import time

import pytest

from fc_lightning.conversation.types import Tool, ToolCall
from fc_lightning.data.formats import read_row
from fc_lightning.data.formats.call_syntax import looks_like_call, parse_text

PROPERTIES = {"port": {"type": "string"}, "day": {"type": "integer"}}
TOOLS = {"ferry": Tool("ferry", "", {"type": "object", "properties": PROPERTIES}), "Sea State": Tool("Sea State")}
SKYE = ToolCall("ferry", {"port": "Skye"})
BOTH = (SKYE, ToolCall("ferry", {"port": "Mull", "day": 2}))
OBJECT = '{"name": "ferry", "arguments": {"port": "Skye"}}'
SECOND = '{"name": "ferry", "arguments": {"port": "Mull", "day": 2}}'


@pytest.mark.parametrize(
    ("text", "calls"),
    [
        (f"<tool_call>\n{OBJECT}\n</tool_call>", (SKYE,)),
        (f"<tool_call>{OBJECT}\n{SECOND}</tool_call>", BOTH),
        (f"<tool_call>[{OBJECT}, {SECOND}]</tool_call>", BOTH),
        (f"<tool_call>{OBJECT}</tool_call><tool_call>{SECOND}</tool_call>", BOTH),
        ("<tool_call>{'name': 'ferry', 'parameters': {'port': 'Skye'}}</tool_call>", (SKYE,)),
        ('<tool_call>{"tool_name": "ferry", "args": {"port": "Skye"}}</tool_call>', (SKYE,)),
        ("<tool_call>ferry\n<arg_key>port</arg_key>\n<arg_value>Skye</arg_value>\n</tool_call>", (SKYE,)),
        (
            "<tool_call>\n<function=ferry>\n<parameter=port>\nMull\n</parameter>\n<parameter=day>\n2\n</parameter>\n"
            "</function>\n</tool_call>",
            BOTH[1:],
        ),
        (f"<TOOLCALL>[{OBJECT}, {SECOND}]</TOOLCALL>", BOTH),
        (f"<tool_calls>\n{OBJECT}\n{SECOND}\n</tool_calls>", BOTH),
        ('<function_calls>\nferry(port="Skye")\nferry(port="Mull", day=2)\n</function_calls>', BOTH),
        (
            '<function_calls><invoke name="ferry"><parameter name="port">Skye</parameter></invoke></function_calls>',
            (SKYE,),
        ),
        (f"[TOOL_CALLS] [{OBJECT}, {SECOND}]", BOTH),
        (f"[TOOL_CALLS][{OBJECT}]</s>", (SKYE,)),
        ('[TOOL_CALLS]ferry[ARGS]{"port": "Skye"}', (SKYE,)),
        ('[TOOL_CALLS]ferry{"port": "Skye"}[TOOL_CALLS]ferry{"port": "Mull", "day": 2}', BOTH),
        ('<|python_tag|>{"name": "ferry", "parameters": {"port": "Skye"}}', (SKYE,)),
        (f"<|python_tag|>{OBJECT}; {SECOND}<|eom_id|>", BOTH),
        ('<|python_tag|>ferry(port="Skye")', (SKYE,)),
        ("<functioncall> {\"name\": \"ferry\", \"arguments\": '{\"port\": \"Skye\"}'} <|endoftext|>", (SKYE,)),
        ('<function=ferry>{"port": "Skye"}</function>', (SKYE,)),
        (f"<|tool_call|>[{OBJECT}]<|/tool_call|>", (SKYE,)),
        (f"<|action_start|><|plugin|>\n{OBJECT}<|action_end|>", (SKYE,)),
        ("<start_function_call>call:ferry{port:<escape>Mull<escape>,day:2}<end_function_call>", BOTH[1:]),
        ('<|tool_call>call:ferry{port:<|"|>Mull<|"|>,day:2}<tool_call|>', BOTH[1:]),
        (
            "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>ferry\n```json\n"
            '{"port": "Skye"}\n```<｜tool▁call▁end｜><｜tool▁calls▁end｜>',
            (SKYE,),
        ),
        (
            '<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>ferry<｜tool▁sep｜>{"port": "Skye"}<｜tool▁call▁end｜>'
            "<｜tool▁calls▁end｜>",
            (SKYE,),
        ),
        (
            "<|tool_calls_section_begin|><|tool_call_begin|>functions.ferry:0<|tool_call_argument_begin|>"
            '{"port": "Skye"}<|tool_call_end|><|tool_calls_section_end|>',
            (SKYE,),
        ),
        ('```tool_code\nprint(ferry(port="Skye"))\n```', (SKYE,)),
        # Without markers, only calls of available tools.
        ('[ferry(port="Skye"), ferry(day=2, port="Mull")]', BOTH),
        ("[ferry('Mull', 2)]", BOTH[1:]),
        ("[Sea State(area='Hebrides, \"west\")')]", (ToolCall("Sea State", {"area": 'Hebrides, "west")'}),)),
        ("[ferry(port='Skye', via=[1, {'a': -2.5}], direct=true, back=None)]", (
            ToolCall("ferry", {"port": "Skye", "via": [1, {"a": -2.5}], "direct": True, "back": None}),
        )),
        (OBJECT, (SKYE,)),
        (f"[{OBJECT}, {SECOND}]", BOTH),
        (f"```json\n{OBJECT}\n```", (SKYE,)),
        ('ferry\n{"port": "Skye"}', (SKYE,)),
        ('Action: ferry\nAction Input: {"port": "Skye"}', (SKYE,)),
    ],
)  # fmt: skip
def test_a_call_in_each_syntax(text, calls):
    parsed = parse_text(text, TOOLS)
    assert (parsed.content, parsed.calls, parsed.errors, parsed.reasoning) == ("", calls, (), None)
    with_reasoning = parse_text(f"<think>\nA port.\n</think>\n{text}", TOOLS)
    assert (with_reasoning.calls, with_reasoning.reasoning) == (calls, "A port.")


@pytest.mark.parametrize(
    "text",
    [
        "[unknown(port='Skye')]",
        '{"name": "unknown", "arguments": {}}',
        '{"name": "ferry"}',
        '{"port": "Skye", "times": ["9:40"]}',
        "[1, 2, 3]",
        "ferry times: (1) 9:40, (2) 11:00",
        "Call ferry(port='Skye') for the time.",
        "ferry(port=__import__('os').getcwd())",
        "[ferry(port=open('x').read())]",
        "[ferry(**{'port': 'Skye'})]",
        "Thought: I wonder.",
        "def f():\n    return 1",
    ],
)
def test_other_texts_stay_text(text):
    parsed = parse_text(text, TOOLS)
    assert (parsed.content, parsed.calls, parsed.errors) == (text, (), ())


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("<tool_call>{oops</tool_call>", "call 1: neither JSON nor a Python literal"),
        ("<tool_call>ferry(port=open('x'))</tool_call>", "call 1: "),
        ("<tool_call>{}", "call 1: <tool_call> is not closed"),
        ("[TOOL_CALLS] soon", "call 1: neither JSON"),
        ("<|python_tag|>import os; os.system('x')", "call 1: "),
        ("<start_function_call>call:ferry{port:<escape>Skye}<end_function_call>", "call 1: "),
        (f"<tool_call>{OBJECT}</tool_call><tool_call>oops</tool_call>", "call 2: neither JSON"),
        ("<function=ferry>{} <function=ferry>{}</function>", "call 1: <function=ferry> is not closed"),
        ("<tool_call><function=ferry>{}</function><function=ferry>{}</tool_call>", "call 1: "),
        (
            "<tool_call><function=ferry><parameter=day>1</parameter><parameter=port>Skye</function></tool_call>",
            "call 1: ",
        ),
        (
            "<tool_call>ferry<arg_key>port</arg_key><arg_key>day</arg_key><arg_value>2</arg_value></tool_call>",
            "call 1: 2 <arg_key>, but 1 <arg_value>",
        ),
    ],
)
def test_a_broken_call_between_markers_is_an_error(text, error):
    parsed = parse_text(text, TOOLS)
    assert len(parsed.errors) == 1
    assert parsed.errors[0].startswith(error)


def test_a_broken_call_does_not_swallow_the_next_one():
    broken = "<tool_call><function=ferry><parameter=day>1</parameter></tool_call>"
    sound = "<tool_call><function=ferry><parameter=port>Skye</parameter></function></tool_call>"
    parsed = parse_text(broken + sound, TOOLS)
    assert parsed.calls == (SKYE,)
    assert len(parsed.errors) == 1


@pytest.mark.parametrize(
    ("schema", "text", "value"),
    [
        ({"type": "string"}, "10115", "10115"),
        ({"type": ["string", "null"]}, "10115", "10115"),
        ({"type": ["string", "null"]}, "null", None),
        ({"anyOf": [{"type": "string"}, {"type": "null"}]}, "10115", "10115"),
        ({"type": ["integer", "string"]}, "10115", 10115),
        ({"enum": ["1", "2"]}, "2", "2"),
        ({"type": "integer"}, "soon", "soon"),
        ({}, "10115", 10115),
    ],
)
def test_an_unquoted_argument_has_the_type_of_its_schema(schema, text, value):
    tools = {"post": Tool("post", "", {"type": "object", "properties": {"code": schema}})}
    call = f"<tool_call><function=post><parameter=code>{text}</parameter></function></tool_call>"
    assert parse_text(call, tools).calls == (ToolCall("post", {"code": value}),)


def test_text_around_calls():
    parsed = parse_text(f"I look.\n<tool_call>{OBJECT}</tool_call>", TOOLS)
    assert (parsed.content, parsed.calls, parsed.has_text_after_call) == ("I look.", (SKYE,), False)
    assert parse_text(f"<tool_call>{OBJECT}</tool_call> Done.", TOOLS).has_text_after_call
    assert parse_text(f"A<tool_call>{OBJECT}</tool_call>B<tool_call>{OBJECT}</tool_call>", TOOLS).has_text_after_call


@pytest.mark.parametrize(
    ("text", "suspicious"),
    [
        ('{"name": "f", "arguments": {}}', True),
        ("[f(a=1)]", True),
        ("Observation\nAction Input: {}", True),
        ("<toolcall>x", True),
        ("The function call f() returns 1.", False),
        ("See [the page](https://example.com) [1].", False),
        ("Hello.", False),
    ],
)
def test_texts_that_look_like_calls_are_noticed(text, suspicious):
    assert looks_like_call(text) is suspicious


@pytest.mark.parametrize(
    "text",
    [
        "<tool_call>" * 20_000 + "</tool_call>" * 20,
        "<function=" * 50_000,
        "<function=f><parameter=" * 20_000 + "</function>",
        "[TOOL_CALLS]" * 20_000,
        "[f(" + "(" * 100_000,
        "[f(a=" + "[" * 50_000 + ")]",
        "Action: x\n" * 20_000 + "Action Input: {",
        "Final Answer: " * 20_000,
        "<｜tool▁calls▁begin｜>" + "<｜tool▁call▁begin｜>" * 20_000 + "<｜tool▁calls▁end｜>",
        "<tool_call>" + "<arg_key>a</arg_key>" * 20_000 + "</tool_call>",
        json.dumps({"name": "ferry", "arguments": {"a": "x" * 500_000}}),
        "ferry" + " " * 500_000 + "(",
        '<invoke name="' * 30_000,
        "</s>" * 200_000 + "x",
        "</s>" * 200_000,
    ],
    ids=range(15),
)
def test_hostile_texts_cost_little(text):
    start = time.process_time()
    parse_text(text, TOOLS)
    looks_like_call(text)
    read_row({"text": f"<start_of_turn>user\nHi<end_of_turn>\n<start_of_turn>model\n{text}"})
    assert time.process_time() - start < 3
