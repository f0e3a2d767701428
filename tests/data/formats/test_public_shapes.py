"""Rows in the shapes of public datasets and chat templates, contents made up, each with the reading that is right."""

import json

import pytest

from fc_lightning.conversation.types import Message, Tool, ToolCall
from fc_lightning.data.formats import RowError, read_row

SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
WEATHER = {"name": "get_weather", "description": "Weather of a city", "parameters": SCHEMA}
CLOCK = {"name": "clock", "description": "The time", "parameters": {"type": "object", "properties": {}}}
TOOL, CLOCK_TOOL = Tool("get_weather", "Weather of a city", SCHEMA), Tool("clock", "The time", CLOCK["parameters"])
ROME = ToolCall("get_weather", {"city": "Rome"})
ASK, CALLS, RESULT, ANSWER = (
    Message("user", "Rome?"),
    Message("assistant", "", None, (ROME,)),
    Message("tool", '{"t": 30}'),
    Message("assistant", "It is 30."),
)


def openai(*turns, tools=(WEATHER,)):
    return {"messages": [{"role": "user", "content": "Rome?"}, *turns], "tools": list(tools)}


def notices(conversation):
    return [": ".join(notice) for notice in conversation.notices]


@pytest.mark.parametrize("separator", ["\n", "\n\n", ",\n"])
@pytest.mark.parametrize("indent", [None, 4])
def test_functions_are_objects_one_after_the_other_in_a_system_text(separator, indent):
    functions = separator.join(json.dumps(one, indent=indent) for one in (WEATHER, CLOCK))
    prose = "You are a helpful assistant with access to the following functions. Use them if required -"
    row = {
        "system": f"{prose}\n{functions}",
        "conversations": [
            {"from": "human", "value": "Rome?"},
            {"from": "gpt", "value": """<functioncall> {"name": "get_weather", "arguments": '{"city": "Rome"}'} """},
            {"from": "tool", "value": '{"t": 30}'},
            {"from": "gpt", "value": "It is 30. <|endoftext|>"},
        ],
    }
    read = read_row(row)
    assert read.messages == (ASK, CALLS, RESULT, ANSWER)
    assert read.tools == (TOOL, CLOCK_TOOL)
    assert not read.defects


def test_functions_of_a_system_text_may_have_introductions_of_their_own():
    functions = [f"Use the function '{one['name']}' to:\n{json.dumps(one)}" for one in (WEATHER, CLOCK)]
    example = 'Reply with {"name": "example", "parameters": {"key": "value"}}.'
    row = openai(tools=[])
    system = "\n\n".join(["Be brief.", *functions, example])
    read = read_row({**row, "messages": [{"role": "system", "content": system}, *row["messages"]]})
    assert read.tools == (TOOL, CLOCK_TOOL)
    assert read.messages[0] == Message("system", f"Be brief.\n{example}")


@pytest.mark.parametrize(
    "text",
    [
        'Answer with\n{"name": "a name", "parameters": {"key": "value"}}',  # no schema, no description
        'Answer by this schema:\n{"type": "object", "properties": {"name": {"type": "string"}}}',
        '{"name": broken',
    ],
)
def test_other_objects_of_a_system_text_are_no_tools(text):
    row = openai({"role": "assistant", "content": "Yes."}, tools=[])
    read = read_row({**row, "messages": [{"role": "system", "content": text}, *row["messages"]]})
    assert read.tools == ()
    assert read.messages[0].content == text


def test_llama_3_text_with_tools_in_the_system_turn():
    def turn(role, text, end="<|eot_id|>"):
        return f"<|start_header_id|>{role}<|end_header_id|>\n\n{text}{end}"

    call = '<|python_tag|>{"type": "function", "name": "get_weather", "parameters": {"city": "Rome"}}'
    text = "<|begin_of_text|>" + turn("system", f"Be brief.\n\n{json.dumps({'type': 'function', 'function': WEATHER})}")
    text += turn("user", "Rome?") + turn("assistant", call, "<|eom_id|>") + turn("ipython", '{"t": 30}')
    read = read_row({"text": text + turn("assistant", "It is 30.")})
    assert read.messages == (Message("system", "Be brief."), ASK, CALLS, RESULT, ANSWER)
    assert read.tools == (TOOL,)


@pytest.mark.parametrize(
    "results", ['{"content": {"t": 30}, "call_id": "abc"}', '[{"content": {"t": 30}, "call_id": "abc"}]']
)
def test_mistral_text(results):
    calls = json.dumps([{"name": "get_weather", "arguments": {"city": "Rome"}, "id": "abc"}])
    tools = json.dumps([{"type": "function", "function": WEATHER}])
    text = f"<s>[AVAILABLE_TOOLS] {tools}[/AVAILABLE_TOOLS][INST] Rome? [/INST][TOOL_CALLS] {calls}</s>"
    read = read_row({"text": f"{text}[TOOL_RESULTS] {results}[/TOOL_RESULTS] It is 30.</s>"})
    assert read.format == "mistral"
    assert read.messages == (ASK, CALLS, RESULT, ANSWER)
    assert read.tools == (TOOL,)
    assert not read.notices


def test_later_mistral_text():
    text = (
        "<s>[SYSTEM_PROMPT]Be brief.[/SYSTEM_PROMPT][AVAILABLE_TOOLS]%s[/AVAILABLE_TOOLS][INST]Rome?[/INST][TOOL_CALLS]"
        'get_weather[ARGS]{"city": "Rome"}</s>[TOOL_RESULTS]abc[TOOL_CONTENT]{"t": 30}[/TOOL_RESULTS]It is 30.</s>'
    )
    read = read_row({"text": text % json.dumps([{"type": "function", "function": WEATHER}])})
    assert read.messages == (Message("system", "Be brief."), ASK, CALLS, RESULT, ANSWER)


def test_llama_2_text():
    text = "<s>[INST] <<SYS>>\nBe brief.\n<</SYS>>\n\nRome? [/INST] Which? </s><s>[INST] Rome! [/INST] It is 30. </s>"
    texts = [("system", "Be brief."), ("user", "Rome?"), ("assistant", "Which?"), ("user", "Rome!")]
    assert read_row({"text": text}).messages == (*(Message(*one) for one in texts), ANSWER)


def test_a_scratch_pad_is_reasoning():
    call = '<tool_call>{"name": "get_weather", "arguments": {"city": "Rome"}}</tool_call>'
    read = read_row(openai({"role": "assistant", "content": f"<scratch_pad>\nGoal: one call\n</scratch_pad>\n{call}"}))
    assert read.messages[1] == Message("assistant", "", "Goal: one call", (ROME,))


@pytest.mark.parametrize(("key", "name"), [("recipient", "get_weather"), ("to", "functions.get_weather")])
def test_a_turn_that_is_addressed_to_a_tool_is_a_call(key, name):
    read = read_row(openai({"role": "assistant", key: name, "content": '{"city": "Rome"}'}))
    assert read.messages == (ASK, CALLS)
    assert not read.notices
    other = read_row(openai({"role": "assistant", key: "nobody", "content": "Yes."}))
    assert notices(other) == [f"unread_key: turn.{key}"]


CALL = {"id": "1", "type": "function", "function": {"name": "get_weather", "arguments": '{"city": "Rome"}'}}
TOOL_TURN = {"role": "tool", "tool_call_id": "1", "content": '{"t": 30}'}
ASSISTANT = {"role": "assistant", "content": None, "tool_calls": [CALL]}
BLOCKS = [
    {"role": "user", "content": "Rome?"},
    {"role": "assistant", "content": [{"type": "tool_use", "id": "1", "name": "f", "input": {"a": 1}}]},
    {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "1", "content": "x", "is_error": True}]},
]
LANGCHAIN = [
    {"type": "human", "content": "Rome?"},
    {"type": "ai", "content": "Yes.", "invalid_tool_calls": [{"name": "f", "args": "{"}]},
]


@pytest.mark.parametrize(
    ("row", "key"),
    [
        (openai({**ASSISTANT, "tool_calls": [{**CALL, "approved": False}]}), "call.approved"),
        (openai({**ASSISTANT, "tool_calls": [{**CALL, "function": {**CALL["function"], "v": 2}}]}), "call.v"),
        (openai(ASSISTANT, {**TOOL_TURN, "is_error": True}), "turn.is_error"),
        (openai({**ASSISTANT, "reasoning": {"text": "I look."}}), "turn.reasoning"),
        (openai({"role": "user", "content": "And?", "tool_calls": [CALL]}), "turn.tool_calls"),
        (openai({"role": "user", "content": "And?", "reasoning": "I look."}), "turn.reasoning"),
        (openai({**ASSISTANT, "value": "text", "content": "other"}), "turn.content"),
        (openai(ASSISTANT, tools=[{**WEATHER, "returns": {"type": "string"}}]), "tool.returns"),
        (openai(ASSISTANT, tools=[{"type": "function", "function": {**WEATHER, "strict": True}}]), "tool.strict"),
        (openai({"role": "user", "content": [{"type": "text", "text": "And?", "language": "en"}]}), "part.language"),
        ({"messages": BLOCKS}, "turn.is_error"),
        ({"messages": LANGCHAIN}, "turn.invalid_tool_calls"),
    ],
)
def test_what_no_reader_uses_is_noted_at_every_level(row, key):
    assert f"unread_key: {key}" in notices(read_row(row))


@pytest.mark.parametrize("arguments", ['{"city": "Rome", "city": "Oslo"}', "{'city': 'Rome', 'city': 'Oslo'}"])
def test_arguments_with_a_key_twice_are_a_defect(arguments):
    call = {"function": {"name": "get_weather", "arguments": arguments}}
    read = read_row(openai({"role": "assistant", "content": None, "tool_calls": [call]}))
    assert read.defects == ("turn 2, call 1: an object has the key 'city' twice",)
    text = f'<tool_call>{{"name": "get_weather", "arguments": {arguments}}}</tool_call>'
    assert "twice" in read_row(openai({"role": "assistant", "content": text})).defects[0]


@pytest.mark.parametrize(
    "text", ["Sure: [get_weather(city='Rome')]", 'Calling [clock(), get_weather(city="Rome")] now']
)
def test_calls_inside_of_an_answer_are_noted(text):
    read = read_row(openai({"role": "assistant", "content": text}))
    assert read.messages[1] == Message("assistant", text)
    assert [kind for kind, _ in read.notices] == ["possible_call"]


@pytest.mark.parametrize("text", ["See [the docs](https://x.y).", "f(x) = [a(b)]", "Use [1, 2] (or more)."])
def test_other_brackets_are_not_noted(text):
    assert not read_row(openai({"role": "assistant", "content": text})).notices


def test_an_item_of_the_responses_api_that_cannot_be_read_is_named():
    items = [{"role": "user", "content": "Rome?"}, {"type": "web_search_call", "id": "1"}, {"type": "reasoning"}]
    with pytest.raises(RowError, match="an item of type 'web_search_call'"):
        read_row({"input": items})
