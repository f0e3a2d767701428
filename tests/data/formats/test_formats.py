"""Each source's rows as conversations; nothing here needs a file."""

import json
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fc_lightning.conversation.parsing import parse_turn, render_turn
from fc_lightning.conversation.types import Conversation, Message, Tool, ToolCall
from fc_lightning.data import formats
from fc_lightning.data.formats import (
    DEFAULT_SYSTEM_PROMPT,
    FORMATS,
    RowError,
    UnknownFormatError,
    read_row,
    register_format,
)

SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
FUNCTION = {"name": "weather", "description": "The weather's state.", "parameters": SCHEMA}
OPENAI_TOOL = {"type": "function", "function": FUNCTION}
TOOL = Tool("weather", "The weather's state.", SCHEMA)
CALL = {"name": "weather", "arguments": {"city": "Paris"}}
PARIS = ToolCall("weather", {"city": "Paris"})
OSLO = ToolCall("weather", {"city": "Oslo"})

CARD_SYSTEM = (
    "You are a function calling AI model. You are provided with function signatures within <tools> "
    "</tools> XML tags. You may call one or more functions to assist with the user query. Don't make "
    "assumptions about what values to plug into functions.\n<tools>\n{tools}\n</tools>\nFor each function "
    "call return a json object with function name and arguments within <tool_call> </tool_call> tags with "
    "the following schema:\n<tool_call>\n{'arguments': <args-dict>, 'name': <function-name>}\n"
    "</tool_call>\n"
)
THINKING_SYSTEM = (
    "You are a function calling AI model. You are provided with function signatures within <tools></tools> "
    "XML tags.You may call one or more functions to assist with the user query. Don't make assumptions "
    "about what values to plug into functions.Here are the available tools:<tools> {tools} </tools>Use the "
    "following pydantic model json schema for each tool call you will make: {'title': 'FunctionCall', "
    "'type': 'object', 'properties': {'arguments': {'title': 'Arguments', 'type': 'object'}, 'name': "
    "{'title': 'Name', 'type': 'string'}}, 'required': ['arguments', 'name']}For each function call return "
    "a json object with function name and arguments within <tool_call></tool_call> XML tags as follows:\n"
    "<tool_call>\n{tool_call}\n</tool_call>"
)
GLAIVE_SYSTEM = (
    "You are a function calling AI model. You are provided with function signatures within <tools> "
    "</tools> XML tags. You may call one or more functions to assist with the user query. If available "
    "tools are not relevant in assisting with user query, just respond in natural conversational language. "
    "Don't make assumptions about what values to plug into functions. After calling & executing the "
    "functions, you will be provided with function results within <tool_response> </tool_response> XML "
    "tags.\n<tools>\n{tools}\n</tools>\nFor each function call return a JSON object, with the following "
    "pydantic model json schema:\n{'title': 'FunctionCall', 'type': 'object', 'properties': {'name': "
    "{'title': 'Name', 'type': 'string'}, 'arguments': {'title': 'Arguments', 'type': 'object'}}, "
    "'required': ['arguments', 'name']}\nEach function call should be enclosed within <tool_call> "
    "</tool_call> XML tags. Example:\n<tool_call>\n{'name': <function-name>, 'arguments': <args-dict>}\n"
    "</tool_call>"
)
EXTRACTION_SYSTEM = (
    "You are an expert structured information extraction AI model. You will be provided with documents to "
    "extract information from. You are also provided with the json schema to output extracted information "
    "in the function signatures within XML tags <tools></tools>. Don't make assumptions about what values "
    "to plug into json schema. \n<tools>\n{tools}\n</tools>\nFor each extraction function call return a "
    "json object with function name and arguments followed by a <tool_call> tag with the following "
    "schema:\n<tool_call>\n{'arguments': <args-dict>, 'name': <function-name>}\n</tool_call>"
)


def turns(*pairs):
    return [{"from": role, "value": text} for role, text in pairs]


def hermes(*pairs, **columns):
    return {"conversations": turns(*pairs), **columns}


def test_hermes_row_of_the_card():
    system = CARD_SYSTEM.replace("{tools}", repr([OPENAI_TOOL]))
    texts = [
        ("system", system),
        ("human", " The weather in Paris? "),
        ("gpt", "<tool_call>\n{'arguments': {'city': 'Paris'}, 'name': 'weather'}\n</tool_call>\n"),
        ("tool", '<tool_response>\n{"sky": "blue"}\n</tool_response>\n'),
        ("gpt", "Blue sky.\n"),
    ]
    assert read_row(hermes(*texts, id="a1", category="Travel", task="x")) == Conversation(
        id="a1",
        messages=(
            Message("user", "The weather in Paris?"),
            Message("assistant", "", None, (PARIS,)),
            Message("tool", '{"sky": "blue"}'),
            Message("assistant", "Blue sky."),
        ),
        tools=(TOOL,),
        category="Travel",
        raw_turns=tuple(("model" if role == "gpt" else role, text) for role, text in texts),
    )


def test_hermes_row_with_thinking():
    system = THINKING_SYSTEM.replace("{tools}", repr([OPENAI_TOOL]))
    call = "<tool_call>\n{'name': 'weather', 'arguments': {'city': 'Paris'}}\n</tool_call>"
    model = f"<think>I need Paris.\n</think>{call}"
    pairs = [("system", system), ("human", "Paris?"), ("model", model)]
    row = {"conversations": [{"role": role, "content": text} for role, text in pairs]}
    assert read_row(row, default_id="row 7") == Conversation(
        id="row 7",
        messages=(Message("user", "Paris?"), Message("assistant", "", "I need Paris.", (PARIS,))),
        tools=(TOOL,),
        raw_turns=tuple(pairs),
    )


@pytest.mark.parametrize("system", [CARD_SYSTEM, THINKING_SYSTEM, GLAIVE_SYSTEM])
@pytest.mark.parametrize("write", [json.dumps, repr])
def test_hermes_system_text_is_all_boilerplate(system, write):
    row = hermes(("system", system.replace("{tools}", write([OPENAI_TOOL]))), ("user", "Hi"), ("assistant", "Hello."))
    conversation = read_row(row)
    assert conversation.messages == (Message("user", "Hi"), Message("assistant", "Hello."))
    assert conversation.tools == (TOOL,)
    assert [role for role, _ in conversation.raw_turns] == ["system", "user", "model"]


def test_hermes_keeps_what_a_system_text_says_beside_the_tools():
    tools = json.dumps([FUNCTION])
    extraction = read_row(
        hermes(("system", EXTRACTION_SYSTEM.replace("{tools}", tools)), ("human", "Hi"), ("gpt", "Ho"))
    )
    task = "You are an expert structured information extraction AI model. You will be provided with documents to"
    assert extraction.messages[0] == Message("system", f"{task} extract information from.")
    assert extraction.tools == (TOOL,)
    own = f"You are Ada.\n\n{CARD_SYSTEM.replace('{tools}', tools)}\nAnswer in French.  Always."
    custom = read_row(hermes(("system", own), ("human", "Hi"), ("gpt", "Ho")))
    assert custom.messages[0] == Message("system", "You are Ada.\n\nAnswer in French.  Always.")


@pytest.mark.parametrize(
    "system",
    [
        "You are a helpful assistant that answers in JSON. Here's the json schema you must adhere to:\n"
        "<schema>\n{'type': 'object'}\n</schema>",
        "You may call one or more functions to assist with the user query.",
        "Nothing stands within <tools> </tools> here.",
    ],
)
def test_hermes_system_text_without_tools_stays_whole(system):
    conversation = read_row(hermes(("system", system), ("human", "Hi"), ("gpt", '{"a": 1}'), schema="{}"))
    assert conversation.messages[0] == Message("system", system)
    assert conversation.tools == conversation.defects == ()


@pytest.mark.parametrize(
    "columns", [{}, {"schema": SCHEMA}, {"schema": json.dumps(SCHEMA)}, {"schema": repr(SCHEMA)}, {"schema": ""}]
)
def test_hermes_json_mode_keeps_the_schema_of_the_answer(columns):
    system = (
        "You are a helpful assistant that answers in JSON. Here's the json schema you must adhere to:\n"
        f"<schema>\n{SCHEMA!r}\n</schema>\n"
    )
    answer = '{"city": "Paris"}'
    conversation = read_row(hermes(("system", system), ("human", "Where?"), ("gpt", answer), **columns))
    assert conversation.response_schema == SCHEMA
    assert conversation.messages[0].content == system.strip()
    assert conversation.messages[2] == Message("assistant", answer)
    assert conversation.defects == conversation.tools == ()
    # With tools the answer is a call, whatever the row calls a schema.
    offered = read_row(hermes(("system", system), ("human", "?"), ("gpt", answer), tools=[FUNCTION], **columns))
    assert offered.response_schema is None


@pytest.mark.parametrize(
    ("schema", "defect"), [("{oops", "schema: neither JSON nor"), ("[]", "schema: it must be an object")]
)
def test_a_schema_that_cannot_be_read_is_a_defect(schema, defect):
    (found,) = read_row(hermes(("human", "Where?"), ("gpt", "{}"), schema=schema)).defects
    assert found.startswith(defect)


@pytest.mark.parametrize("write", [json.dumps, repr, lambda value: value])
def test_gold_alternatives_stay_with_the_conversation(write):
    gold = [{"weather": {"city": ["Paris", "Paris, France"], "unit": ["C", ""]}}]
    row = {"query": "Paris?", "tools": [FUNCTION], "answers": [CALL]}
    assert read_row({**row, "gold": write(gold)}).gold == tuple(gold)
    assert read_row({**row, "gold": None}).gold == read_row(row).gold == ()


@pytest.mark.parametrize(
    "gold",
    ["[oops", [1], [{}], [{"f": {"a": 1}}], [{"f": {"a": [1]}, "g": {}}], [{"f": ["a"]}], 7, [{"f": {"a": [{1}]}}]],
)
def test_gold_that_cannot_be_read_is_a_defect(gold):
    conversation = read_row({"query": "Paris?", "tools": [FUNCTION], "answers": [CALL], "gold": gold})
    assert conversation.gold == ()
    assert len(conversation.defects) == 1
    assert conversation.defects[0].startswith("gold: ")


@pytest.mark.parametrize(
    "column",
    [
        json.dumps([OPENAI_TOOL]),
        repr([OPENAI_TOOL]),
        [OPENAI_TOOL],
        [FUNCTION],
        FUNCTION,
        [json.dumps(FUNCTION)],
        f"{json.dumps(OPENAI_TOOL)}\n{FUNCTION!r}\n",
    ],
)
def test_hermes_tools_from_their_column(column):
    system = CARD_SYSTEM.replace("{tools}", '[{"name": "other"}]')
    conversation = read_row(hermes(("system", system), ("human", "Hi"), ("gpt", "Ho"), tools=column))
    assert {tool.name for tool in conversation.tools} == {"weather"}
    assert conversation.tools[0] == TOOL
    assert conversation.messages[0].role == "user"


@pytest.mark.parametrize("column", [None, "", " ", "[]", []])
@pytest.mark.parametrize(
    "block",
    [
        repr([OPENAI_TOOL]),
        json.dumps(FUNCTION),
        f"{json.dumps(FUNCTION)}\n{json.dumps(FUNCTION)}",
        repr(FUNCTION).replace("state.", "state, in <tools></tools>."),
        repr(FUNCTION).replace("state.", "state, as </tools> says."),
    ],
)
def test_hermes_tools_from_the_system_text(column, block):
    system = CARD_SYSTEM.replace("{tools}", block)
    conversation = read_row(hermes(("system", system), ("human", "Hi"), ("gpt", "Ho"), tools=column))
    assert {tool.name for tool in conversation.tools} == {"weather"}
    assert conversation.defects == ()
    assert conversation.messages[0].role == "user"


def test_several_tool_responses_in_one_turn_are_several_messages():
    calls = '<tool_call>{"name": "weather", "arguments": {"city": "Paris"}}</tool_call>' * 2
    response = "<tool_response>\n1\n</tool_response>\n<tool_response>\n2\n</tool_response>"
    conversation = read_row(hermes(("human", "?"), ("gpt", calls), ("tool", response), ("function", "3"), ("gpt", "!")))
    assert conversation.messages[2:5] == (Message("tool", "1"), Message("tool", "2"), Message("tool", "3"))
    assert conversation.defects == ()
    assert [role for role, _ in conversation.raw_turns] == ["human", "model", "tool", "function", "model"]


@pytest.mark.parametrize(
    ("text", "defect"),
    [
        ("<tool_call>\\n{}\\n</tool_call>", "turn 2, call 1: neither JSON nor a Python literal"),
        ("<tool_call>{}</tool_call>", "turn 2, call 1: the call has no `name`: {}"),
        ("<tool_call>{'name': 'f', 'arguments': {}}", "turn 2, call 1: <tool_call> is not closed"),
        ("<think>unfinished", "turn 2: its text contains the tag <think>"),
        ("thought</think>Hi", "turn 2: its text contains the tag </think>"),
        ("<think>a<think>b</think>Hi", "turn 2: its reasoning contains the tag <think>"),
        ("Hi</tool_call>", "turn 2: its text contains the tag </tool_call>"),
        ("<think>only</think>", "turn 2: neither an answer nor a call"),
        (" ", "turn 2: neither an answer nor a call"),
        ("<tool_call>{'name': 'f', 'arguments': {}}</tool_call> Done.", "turn 2: text after a call"),
    ],
)
def test_hermes_turn_with_a_defect_is_still_there_verbatim(text, defect):
    conversation = read_row(hermes(("human", "Hi"), ("gpt", text)))
    assert len(conversation.defects) == 1
    assert conversation.defects[0].startswith(defect)
    assert conversation.raw_turns == (("human", "Hi"), ("model", text))


@pytest.mark.parametrize(
    ("row", "defect"),
    [
        (hermes(("human", "a"), ("gpt", "b"), tools="[oops"), "tools: neither JSON nor a Python literal"),
        (hermes(("human", "a"), ("gpt", "b"), tools=[{"x": 1}]), "tools: a tool is an object with a `name`"),
        (hermes(("human", "a"), ("gpt", "b"), tools=7), "tools: it must be an object or a list, not int"),
        (hermes(("system", "<tools>oops</tools>"), ("gpt", "b")), "tools: neither JSON nor a Python literal"),
        (hermes(("human", "a"), ("gpt", "b"), ("gpt", "c")), "turn 3: an assistant turn directly after"),
        (
            hermes(("human", "a"), ("system", "b"), ("gpt", "c")),
            "turn 2: a system message that is not the first",
        ),
        (hermes(("gpt", "a"), ("tool", "b <tool_response>c</tool_response>")), "turn 2: text outside of"),
    ],
)
def test_other_defects(row, defect):
    conversation = read_row(row)
    assert len(conversation.defects) == 1
    assert conversation.defects[0].startswith(defect)


def test_text_before_a_call_and_empty_thoughts():
    call = '<tool_call>{"name": "weather", "arguments": {"city": "Paris"}}</tool_call>'
    conversation = read_row(hermes(("human", "?"), ("gpt", f"<think>I use <tool_call>.</think>Let me see.\n{call}")))
    assert conversation.messages[1] == Message("assistant", "Let me see.", "I use <tool_call>.", (PARIS,))
    assert conversation.defects == ()
    assert read_row(hermes(("human", "?"), ("gpt", "<think>\n\n</think>Hi"))).messages[1] == Message("assistant", "Hi")


@pytest.mark.parametrize("format", [None, "hermes", "openai"])
def test_hermes_texts_in_messages(format):
    text = '<tool_call>{"name": "weather", "arguments": {"city": "Paris"}}</tool_call>'
    row = {"messages": [{"role": "user", "content": "?"}, {"role": "assistant", "content": text}]}
    conversation = read_row(row, format)
    assert conversation.messages[1] == Message("assistant", "", None, (PARIS,))
    assert conversation.defects == ()


def test_columns():
    row = {
        "query": "Paris?\n",
        "tools": json.dumps([OPENAI_TOOL]),
        "thoughts": "Look it up.\n",
        "tool_call": '{"arguments": {"city": "Paris"}, "name": "weather"}',
    }
    assert read_row(row, default_id="3") == Conversation(
        id="3",
        messages=(Message("user", "Paris?"), Message("assistant", "", "Look it up.", (PARIS,))),
        tools=(TOOL,),
        raw_turns=(
            ("user", f"{DEFAULT_SYSTEM_PROMPT}\n\nAvailable tools:\n{row['tools']}\n\nUser query:\nParis?\n"),
            (
                "model",
                "<think>\nLook it up.\n\n</think>\n<tool_call>\n"
                '{"arguments": {"city": "Paris"}, "name": "weather"}\n</tool_call>',
            ),
        ),
    )
    own = read_row({**row, "system_prompt": "Be brief.", "id": 0})
    assert own.id == "0"
    assert own.messages[0] == Message("system", "Be brief.")
    assert own.raw_turns[0][1].startswith("Be brief.\n\nAvailable tools:\n")


@pytest.mark.parametrize(
    ("tool_call", "calls"),
    [
        (CALL, (PARIS,)),
        ([CALL, OSLO.to_dict()], (PARIS, OSLO)),
        (json.dumps([CALL, OSLO.to_dict()]), (PARIS, OSLO)),
        (repr(CALL), (PARIS,)),
        (f"<tool_call>{CALL!r}</tool_call>\n<tool_call>{OSLO.to_dict()!r}</tool_call>", (PARIS, OSLO)),
    ],
)
@pytest.mark.parametrize("thoughts", [None, "", "  "])
def test_columns_in_other_types(tool_call, calls, thoughts):
    conversation = read_row({"query": "é?", "tools": [FUNCTION], "thoughts": thoughts, "tool_call": tool_call})
    assert conversation.messages[1] == Message("assistant", "", None, calls)
    assert conversation.tools == (TOOL,)
    assert conversation.defects == ()
    assert f"Available tools:\n{json.dumps([FUNCTION])}\n" in conversation.raw_turns[0][1]
    written = tool_call if isinstance(tool_call, str) else json.dumps(tool_call)
    assert written in conversation.raw_turns[1][1]
    assert conversation.raw_turns[1][1].count("<tool_call>") == max(1, str(tool_call).count("<tool_call>"))


def test_sharegpt():
    row = {
        "conversations": turns(
            ("human", "Paris?"),
            ("function_call", json.dumps(CALL)),
            ("observation", '{"sky": "blue"}'),
            ("gpt", "Blue."),
            ("human", "And both?"),
            ("gpt", "I look."),
            ("function_call", json.dumps([CALL])),
            ("function_call", json.dumps(OSLO.to_dict())),
            ("observation", "1"),
            ("observation", "2"),
            ("gpt", "Grey."),
        ),
        "tools": json.dumps([FUNCTION]),
        "system": "Be brief.",
    }
    assert read_row(row, default_id="x") == Conversation(
        id="x",
        messages=(
            Message("system", "Be brief."),
            Message("user", "Paris?"),
            Message("assistant", "", None, (PARIS,)),
            Message("tool", '{"sky": "blue"}'),
            Message("assistant", "Blue."),
            Message("user", "And both?"),
            Message("assistant", "I look.", None, (PARIS, OSLO)),
            Message("tool", "1"),
            Message("tool", "2"),
            Message("assistant", "Grey."),
        ),
        tools=(TOOL,),
    )


def test_sharegpt_defects():
    row = hermes(("human", "a"), ("function_call", "oops"), ("observation", "b"), ("gpt", "<tool_call>"))
    first, second = read_row(row).defects
    assert first.startswith("turn 2, call 1: neither JSON")
    assert second.startswith("turn 4, call 1: <tool_call> is not closed")


@pytest.mark.parametrize("arguments", [CALL["arguments"], json.dumps(CALL["arguments"])])
@pytest.mark.parametrize("tools", [[OPENAI_TOOL], json.dumps([OPENAI_TOOL])])
def test_openai(arguments, tools):
    call = {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": arguments}}
    row = {
        "messages": [
            {"role": "developer", "content": "Be brief."},
            {"role": "user", "content": [{"type": "text", "text": "Paris?"}]},
            {
                "role": "assistant",
                "content": None,
                "tool_calls": [call],
                "reasoning_content": " Look it up.\n",
            },
            {"role": "tool", "content": "blue", "tool_call_id": "c1"},
            {"role": "assistant", "content": "Blue.", "tool_calls": None},
        ],
        "tools": tools,
    }
    assert read_row(row, default_id="x") == Conversation(
        id="x",
        messages=(
            Message("system", "Be brief."),
            Message("user", "Paris?"),
            Message("assistant", "", "Look it up.", (PARIS,)),
            Message("tool", "blue"),
            Message("assistant", "Blue."),
        ),
        tools=(TOOL,),
    )


def test_openai_typed_parts():
    def parts(*pairs):
        return [{"type": kind, "value": value} for kind, value in pairs]

    spelled = {
        "name": "f",
        "description": "F.",
        "parameters": {"type": "dict", "properties": {"a": {"type": "str"}}},
    }
    row = {
        "messages": [
            {"role": "user", "content": parts(("text", "Both?"))},
            {
                "role": "assistant",
                "content": parts(
                    ("reasoning", "Two."),
                    ("tool_call", json.dumps(CALL)),
                    ("tool_call", json.dumps(OSLO.to_dict())),
                ),
            },
            {"role": "tool", "content": parts(("text", "1"))},
            {"role": "tool", "content": parts(("text", "2"))},
            {"role": "assistant", "content": parts(("reasoning", "Done."), ("text", "Grey."))},
        ],
        "tools": json.dumps([{"type": "function", "function": spelled, "required": ["a"]}]),
    }
    assert read_row(row, default_id="x") == Conversation(
        id="x",
        messages=(
            Message("user", "Both?"),
            Message("assistant", "", "Two.", (PARIS, OSLO)),
            Message("tool", "1"),
            Message("tool", "2"),
            Message("assistant", "Grey.", "Done."),
        ),
        tools=(Tool("f", "F.", {"type": "dict", "properties": {"a": {"type": "str"}}, "required": ["a"]}),),
    )


def test_openai_defects_and_calls_without_arguments():
    def row(**message):
        return {"messages": [{"role": "user", "content": "?"}, {"role": "assistant", **message}]}

    assert read_row(row(tool_calls=[{"name": "f", "arguments": ""}])).messages[1].tool_calls == (ToolCall("f", {}),)
    broken = read_row(row(tool_calls=[CALL, {"function": {"name": "f", "arguments": "{"}}])).defects
    assert len(broken) == 1
    assert broken[0].startswith("turn 2, call 2: neither JSON")
    image = read_row(row(content=[{"type": "image_url", "image_url": {"url": "x"}}, {"type": ["odd"]}])).defects
    assert image[0] == "turn 2: a part of type 'image_url' is neither text nor a call"
    assert read_row(row(content=None)).defects == ("turn 2: neither an answer nor a call",)
    crowded = {"name": "f", "arguments": {"text": "</tool_call>" * 20}}
    assert read_row(row(tool_calls=[crowded])).messages[1].tool_calls[0].arguments == crowded["arguments"]


@pytest.mark.parametrize("write", [json.dumps, lambda value: value])
def test_xlam(write):
    bare = {"city": {"type": "str", "description": "A city."}}
    row = {
        "id": 12,
        "query": "Both?",
        "tools": write([{"name": "weather", "description": "W.", "parameters": bare}, FUNCTION]),
        "answers": write([CALL, OSLO.to_dict()]),
    }
    assert read_row(row) == Conversation(
        id="12",
        messages=(Message("user", "Both?"), Message("assistant", "", None, (PARIS, OSLO))),
        tools=(Tool("weather", "W.", {"type": "object", "properties": bare}), TOOL),
    )
    nothing = read_row({**row, "answers": "[]"})
    assert nothing.defects == ()
    assert nothing.messages[1].tool_calls == ()
    assert nothing.messages[1].content
    assert [kind for kind, _ in nothing.notices] == ["no_answer"]


@pytest.mark.parametrize(
    ("written", "read"),
    [
        ({"city": {"type": "str"}}, {"type": "object", "properties": {"city": {"type": "str"}}}),
        ({"type": {"type": "str"}}, {"type": "object", "properties": {"type": {"type": "str"}}}),
        ({"type": "object", "properties": {}}, {"type": "object", "properties": {}}),
        ({"properties": {"city": {}}}, {"properties": {"city": {}}}),
        ({"$ref": "#/$defs/a", "$defs": {"a": {}}}, {"$ref": "#/$defs/a", "$defs": {"a": {}}}),
        ({}, {}),
    ],
)
def test_parameters_without_a_schema_around_them_get_one_in_every_format(written, read):
    tools = [{"type": "function", "function": {"name": "weather", "parameters": written}}]
    row = {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}], "tools": tools}
    assert read_row(row).tools == (Tool("weather", "", read),)


def test_sharegpt_without_a_call_keeps_its_system_column():
    row = {"conversations": turns(("human", "Hi"), ("gpt", "Ho")), "system": "Be brief.", "tools": "[]"}
    assert [message.content for message in read_row(row).messages] == ["Be brief.", "Hi", "Ho"]


@pytest.mark.parametrize("system", [[], [{"role": "system", "content": "Be brief."}]])
def test_trl_prompt_and_completion(system):
    call = {"type": "function", "function": CALL}
    row = {
        "prompt": [*system, {"role": "user", "content": "Paris?"}],
        "completion": [
            {"role": "assistant", "content": "", "tool_calls": [call]},
            {"role": "tool", "content": "blue", "name": "weather"},
            {"role": "assistant", "content": [{"type": "text", "text": "Blue."}]},
        ],
        "tools": [OPENAI_TOOL],
    }
    assert read_row(row, default_id="t") == Conversation(
        id="t",
        messages=(
            *([Message("system", "Be brief.")] if system else []),
            Message("user", "Paris?"),
            Message("assistant", "", None, (PARIS,)),
            Message("tool", "blue"),
            Message("assistant", "Blue."),
        ),
        tools=(TOOL,),
    )


def test_trl_prompt_and_completion_as_texts():
    row = {"prompt": "Paris?", "completion": f"<think>I look.</think><tool_call>{CALL!r}</tool_call>"}
    conversation = read_row({**row, "tools": [FUNCTION]})
    assert conversation.messages == (Message("user", "Paris?"), Message("assistant", "", "I look.", (PARIS,)))
    assert (conversation.tools, conversation.defects) == ((TOOL,), ())
    with pytest.raises(RowError, match="turn 2: its text must be a string, not NoneType"):
        read_row({"prompt": "Paris?", "completion": None})


GLAIVE = (
    "SYSTEM: You are a helpful assistant with access to the following functions. Use them if required -\n"
    f"{json.dumps(FUNCTION, indent=4)}\n\n{json.dumps({'name': 'f'})}\n"
)


def test_glaive():
    quoted = (
        """<functioncall> {"name": "weather", "arguments": '{"city": "L'Aquila", "note": "a\\nb"}'} <|endoftext|>"""
    )
    chat = (
        "USER: Hi.\nUSER: is my name. What's the weather in L'Aquila?\n\n\n"
        f"ASSISTANT: I look.\n\n{quoted}\n\n\n"
        'FUNCTION RESPONSE: {"sky": "blue"}\n\n\nASSISTANT: Blue. <|endoftext|>\n\n\n'
        f"USER: And Paris?\n\n\nASSISTANT: <functioncall> {json.dumps(CALL)} <|endoftext|>"
    )
    assert read_row({"system": GLAIVE, "chat": chat}, default_id="g") == Conversation(
        id="g",
        messages=(
            Message("user", "Hi.\nUSER: is my name. What's the weather in L'Aquila?"),
            Message("assistant", "I look.", None, (ToolCall("weather", {"city": "L'Aquila", "note": "a\nb"}),)),
            Message("tool", '{"sky": "blue"}'),
            Message("assistant", "Blue."),
            Message("user", "And Paris?"),
            Message("assistant", "", None, (PARIS,)),
        ),
        tools=(TOOL, Tool("f")),
    )


def test_glaive_without_functions_and_with_defects():
    system = "SYSTEM: You are a helpful assistant, with no access to external functions.\n"
    plain = read_row({"system": system, "chat": "USER: Hi\n\n\nASSISTANT: Ho <|endoftext|>"})
    assert plain.messages[0] == Message("system", system.removeprefix("SYSTEM: ").strip())
    assert (plain.tools, plain.defects) == ((), ())
    broken_tools = read_row({"system": GLAIVE + "oops", "chat": "USER: Hi\n\n\nASSISTANT: Ho"})
    assert broken_tools.defects[0].startswith("tools: function 3 of the system text is not JSON")
    broken_call = read_row({"system": GLAIVE, "chat": "USER: Hi\n\n\nASSISTANT: <functioncall> {oops <|endoftext|>"})
    assert broken_call.defects[0].startswith("turn 2, call 1: neither JSON")
    with pytest.raises(RowError, match="does not begin with a speaker"):
        read_row({"system": GLAIVE, "chat": "Hi\n\n\nASSISTANT: Ho"})
    with pytest.raises(RowError, match="the row has no `chat`"):
        read_row({"system": GLAIVE, "chat": ""})


@pytest.mark.parametrize(
    ("row", "format", "reason"),
    [
        (
            {},
            None,
            "no format fits a row with the keys none; known formats: preference, bfcl, gemini,",
        ),
        ({"prompt": "a", "answer": "b"}, None, "no format fits a row with the keys prompt, answer;"),
        ([1], None, "a row must be an object, not list"),
        ({"conversations": []}, None, "the row has no turns in `conversations`"),
        ({"messages": []}, None, "the row has no turns in `messages`"),
        ({"messages": "a"}, "openai", "`messages` is not a list of turns"),
        ({"conversations": ["a"]}, None, "turn 1 must be an object, not str"),
        (
            hermes(("human", "a"), ("alien", "b")),
            None,
            "turn 2 has an unknown role, 'alien'; known roles: system,",
        ),
        ({"conversations": [{"value": "a"}]}, None, "turn 1 has an unknown role, None"),
        (hermes(("human", None)), None, "turn 1: its text must be a string, not NoneType"),
        (hermes(("human", "\ud800")), None, "turn 1: its text contains half a surrogate pair"),
        (
            {"messages": [{"role": "user", "content": {}}]},
            None,
            "turn 1: its content must be text, a list of parts or null, not dict",
        ),
        (
            {"messages": [{"role": "user", "content": [{"text": 1}]}]},
            None,
            "turn 1: a part must be a string, not int",
        ),
        ({"tool_call": "{}"}, "columns", "the row has no `query`"),
        ({"query": None, "answers": "[]"}, None, "the row has no `query`"),
    ],
)
def test_unreadable_rows(row, format, reason):
    with pytest.raises(RowError) as caught:
        read_row(row, format)
    assert str(caught.value).startswith(reason)


def test_a_row_nested_too_deep_is_unreadable():
    deep = []
    for _ in range(100_000):
        deep = [deep]
    with pytest.raises(RowError, match="nested too deeply"):
        read_row({"query": "a", "answers": deep, "tools": deep, "system": deep, "tool_call": deep})


def read_pairs(row):
    return Conversation(id="", messages=(Message("user", row["ask"]), Message("assistant", row["say"])))


def read_wrongly(row):
    return row


def test_registered_format_is_asked_first(registry):
    register_format("pairs", read_pairs, lambda row: "ask" in row)
    row = {"ask": "a", "say": "b", "conversations": []}
    assert read_row(row, default_id="5") == replace(read_pairs(row), id="5")
    assert next(iter(FORMATS)) == "pairs"
    register_format("quiet", read_pairs)
    with pytest.raises(RowError, match="known formats: quiet"):
        read_row({"say": "b"})
    assert read_row({"ask": "a", "say": "b"}, "quiet").messages[0].content == "a"


@pytest.mark.parametrize("separator", [":", "."])
def test_reader_by_import_path(separator, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "my_module", __import__("sys").modules[__name__])
    assert read_row({"ask": "a", "say": "b"}, f"my_module{separator}read_pairs").messages[1].content == "b"
    with pytest.raises(TypeError, match="returned dict, not a Conversation"):
        read_row({}, f"my_module{separator}read_wrongly")


@pytest.mark.parametrize(
    "name",
    ["hermez", "", ":", ".", "no_such_module:read", "json:no_such_reader", "json.decoder", ".a:b", "a..b"],
)
def test_unknown_format_says_what_there_is(name):
    with pytest.raises(UnknownFormatError, match=r"known formats: preference, bfcl.*register_format\(\)"):
        read_row({}, name)


def test_every_public_name_is_there():
    assert all(hasattr(formats, name) for name in formats.__all__)


KEYS = """conversations messages from role value content type text tools tool_calls function_call function
name arguments query answers thoughts tool_call system_prompt system id category reasoning_content parameters
required"""
WORDS = """human gpt system tool user assistant function_call observation text reasoning <tool_call> <think>
</tool_call> </think> <tools> </tools> <tool_response> </tool_response> []"""
CALLS = [
    json.dumps(CALL),
    repr([FUNCTION]),
    "<tool_call>{'name': 'f', 'arguments': {}}</tool_call>",
    "\ud800",
]
keys = st.sampled_from(KEYS.split())
words = st.sampled_from([*WORDS.split(), *CALLS])
junk = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | words | st.lists(words, max_size=4).map("".join),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=4),
    max_leaves=12,
)
speakers = st.sampled_from(["human", "gpt", "system", "tool", "user", "assistant", "function_call", "observation"])
turn_lists = st.lists(
    st.fixed_dictionaries(
        {"from": speakers, "role": speakers}, optional=dict.fromkeys(("value", "content", "tool_calls"), junk)
    ),
    max_size=4,
)
rows = st.dictionaries(keys, junk, max_size=6) | st.fixed_dictionaries(
    {},
    optional={
        "conversations": turn_lists,
        "messages": turn_lists,
        "tools": junk,
        "query": words,
        "answers": junk,
    },
)


@settings(max_examples=300, deadline=None)
@given(rows, st.sampled_from([None, *FORMATS]))
def test_any_row_is_read_or_refused_and_what_has_no_defect_reads_back(row, format):
    try:
        conversation = read_row(row, format)
    except RowError:
        return
    for message in conversation.messages if not conversation.defects else ():
        if message.role == "assistant":
            turn = parse_turn(render_turn(message))
            assert Message("assistant", turn.content, turn.reasoning, turn.tool_calls) == message
            assert turn.errors == ()
