"""Rows in the shapes that public datasets have, each with its right reading written by hand."""

import json

import pytest

from fc_lightning.conversation.types import Message, Tool, ToolCall
from fc_lightning.data.formats import RowError, detect_format, read_row

SCHEMA = {"type": "object", "properties": {"port": {"type": "string"}}, "required": ["port"]}
FUNCTION = {"name": "ferry", "description": "The next ferry", "parameters": SCHEMA}
OPENAI_TOOL = {"type": "function", "function": FUNCTION}
TOOL = Tool("ferry", "The next ferry", SCHEMA)
SKYE, MULL = ToolCall("ferry", {"port": "Skye"}), ToolCall("ferry", {"port": "Mull"})
ASK = Message("user", "When does the ferry to Skye leave?")
CALL = Message("assistant", "", None, (SKYE,))
RESULT = Message("tool", '{"time": "9:40"}')
ANSWER = Message("assistant", "At 9:40.")
EXCHANGE = (ASK, CALL, RESULT, ANSWER)


def call(port="Skye", id=None, **function):
    function = {"name": "ferry", "arguments": json.dumps({"port": port}), **function}
    return {**({"id": id} if id else {}), "type": "function", "function": function}


def message(role, content, **keys):
    return {"role": role, "content": content, **keys}


def openai(*messages, tools=(OPENAI_TOOL,), **columns):
    return {"messages": list(messages), "tools": list(tools), **columns}


USER = message("user", ASK.content)
REPLY = message("assistant", ANSWER.content)
ROWS = {
    "toolace": (
        "toolace",
        {
            "system": f"Answer with calls. These are the functions:\n{json.dumps([FUNCTION])}\n"
            'Write calls as [name(key="value")].',
            "conversations": [
                {"from": "user", "value": ASK.content},
                {"from": "assistant", "value": '[ferry(port="Skye"), ferry(port="Mull")]'},
                {"from": "tool", "value": '[{"name": "ferry", "results": 1}, {"name": "ferry", "results": 2}]'},
                {"from": "assistant", "value": ANSWER.content},
            ],
        },
        (
            Message("system", "Answer with calls."),
            ASK,
            Message("assistant", "", None, (SKYE, MULL)),
            Message("tool", '[{"name": "ferry", "results": 1}, {"name": "ferry", "results": 2}]'),
            ANSWER,
        ),
    ),
    "openai messages under conversations": (
        "openai",
        {
            "conversations": [
                USER,
                message("assistant", "I look.", tool_calls=[call(id="a")]),
                message("tool", RESULT.content, tool_call_id="a"),
                REPLY,
            ],
            "tools": [OPENAI_TOOL],
        },
        (ASK, Message("assistant", "I look.", None, (SKYE,)), RESULT, ANSWER),
    ),
    "swift": (
        "swift",
        {
            "tools": json.dumps([OPENAI_TOOL]),
            "messages": [
                USER,
                message("assistant", "<think>\nTwo ports.\n</think>\n"),
                message("tool_call", json.dumps(SKYE.to_dict())),
                message("tool_call", json.dumps(MULL.to_dict())),
                message("tool_response", "9:40"),
                message("tool_response", "11:00"),
                REPLY,
            ],
        },
        (
            ASK,
            Message("assistant", "", "Two ports.", (SKYE, MULL)),
            Message("tool", "9:40"),
            Message("tool", "11:00"),
            ANSWER,
        ),
    ),
    "hermes texts in messages": (
        "openai",
        {
            "messages": [
                message("system", f"You are a function calling AI model. <tools>{json.dumps(OPENAI_TOOL)}</tools>"),
                USER,
                message("assistant", f"<tool_call>\n{json.dumps(SKYE.to_dict())}\n</tool_call>"),
                message("tool", f"<tool_response>\n{RESULT.content}\n</tool_response>"),
                REPLY,
            ]
        },
        EXCHANGE,
    ),
    "reasoning beside calls": (
        "openai",
        openai(USER, message("assistant", "<think>\nI look it up.\n</think>\n\n", tool_calls=[call()])),
        (ASK, Message("assistant", "", "I look it up.", (SKYE,))),
    ),
    "reasoning before an answer": (
        "openai",
        openai(USER, message("assistant", "<think>\nI know.\n</think>\n\nAt 9:40.")),
        (ASK, Message("assistant", "At 9:40.", "I know.")),
    ),
    "anthropic": (
        "anthropic",
        {
            "system": [{"type": "text", "text": "Be brief."}],
            "tools": [{"name": "ferry", "description": "The next ferry", "input_schema": SCHEMA}],
            "messages": [
                USER,
                message(
                    "assistant",
                    [
                        {"type": "thinking", "thinking": "A port.", "signature": "x"},
                        {"type": "text", "text": "I look."},
                        {"type": "tool_use", "id": "t1", "name": "ferry", "input": {"port": "Skye"}},
                    ],
                ),
                message(
                    "user",
                    [
                        {"type": "tool_result", "tool_use_id": "t1", "content": [{"type": "text", "text": "9:40"}]},
                        {"type": "text", "text": "Quick!"},
                    ],
                ),
                message("assistant", [{"type": "text", "text": "At 9:40."}]),
            ],
        },
        (
            Message("system", "Be brief."),
            ASK,
            Message("assistant", "I look.", "A port.", (SKYE,)),
            Message("tool", "9:40"),
            Message("user", "Quick!"),
            ANSWER,
        ),
    ),
    "mcp tools": (
        "openai",
        openai(
            USER,
            message("assistant", None, tool_calls=[call()]),
            tools=[{"name": "ferry", "description": "The next ferry", "inputSchema": SCHEMA}],
        ),
        (ASK, CALL),
    ),
    "gemini": (
        "gemini",
        {
            "systemInstruction": {"parts": [{"text": "Be brief."}]},
            "contents": [
                {"role": "user", "parts": [{"text": ASK.content}]},
                {
                    "role": "model",
                    "parts": [
                        {"text": "A port.", "thought": True},
                        {"functionCall": {"name": "ferry", "args": {"port": "Skye"}}},
                        {"functionCall": {"name": "ferry", "args": {"port": "Mull"}}},
                    ],
                },
                {
                    "role": "user",
                    "parts": [
                        {"functionResponse": {"name": "ferry", "response": {"time": "9:40"}}},
                        {"functionResponse": {"name": "ferry", "response": {"time": "11:00"}}},
                    ],
                },
                {"role": "model", "parts": [{"text": "At 9:40."}]},
            ],
            "tools": [
                {
                    "functionDeclarations": [
                        {
                            "name": "ferry",
                            "description": "The next ferry",
                            "parameters": {
                                "type": "OBJECT",
                                "properties": {"port": {"type": "STRING"}},
                                "required": ["port"],
                            },
                        }
                    ]
                }
            ],
        },
        (
            Message("system", "Be brief."),
            ASK,
            Message("assistant", "", "A port.", (SKYE, MULL)),
            RESULT,
            Message("tool", '{"time": "11:00"}'),
            ANSWER,
        ),
    ),
    "langchain": (
        "langchain",
        {
            "messages": [
                {"type": "human", "content": ASK.content},
                {"type": "ai", "content": "", "tool_calls": [{"name": "ferry", "args": {"port": "Skye"}, "id": "a"}]},
                {"type": "tool", "content": RESULT.content, "tool_call_id": "a"},
                {"type": "ai", "content": "At 9:40."},
            ],
            "tools": [FUNCTION],
        },
        EXCHANGE,
    ),
    "langchain, serialized": (
        "langchain",
        {
            "messages": [
                {"type": "human", "data": {"content": ASK.content}},
                {
                    "lc": 1,
                    "type": "constructor",
                    "id": ["langchain", "schema", "messages", "AIMessage"],
                    "kwargs": {"content": "", "additional_kwargs": {"tool_calls": [call()]}},
                },
            ],
            "tools": [FUNCTION],
        },
        (ASK, CALL),
    ),
    "openai's former functions": (
        "openai",
        {
            "messages": [
                USER,
                message("assistant", None, function_call={"name": "ferry", "arguments": '{"port": "Skye"}'}),
                message("function", RESULT.content, name="ferry"),
                REPLY,
            ],
            "functions": [FUNCTION],
        },
        EXCHANGE,
    ),
    "arguments encoded twice": (
        "openai",
        openai(USER, message("assistant", "", tool_calls=[call(arguments=json.dumps(json.dumps({"port": "Skye"})))])),
        (ASK, CALL),
    ),
    "responses items": (
        "openai_responses",
        {
            "instructions": "Be brief.",
            "input": [
                {"type": "message", "role": "user", "content": [{"type": "input_text", "text": ASK.content}]},
                {"type": "reasoning", "summary": [{"type": "summary_text", "text": "A port."}]},
                {"type": "function_call", "call_id": "a", "name": "ferry", "arguments": '{"port": "Skye"}'},
                {"type": "function_call_output", "call_id": "a", "output": RESULT.content},
            ],
            "output": [
                {
                    "type": "message",
                    "role": "assistant",
                    "content": [{"type": "output_text", "text": "At 9:40.", "annotations": []}],
                }
            ],
            "tools": [{"type": "function", **FUNCTION}],
        },
        (Message("system", "Be brief."), ASK, Message("assistant", "", "A port.", (SKYE,)), RESULT, ANSWER),
    ),
    "responses items without a summary": (
        "openai_responses",
        {
            "input": ASK.content,
            "output": [
                {"type": "reasoning", "summary": []},
                {"type": "function_call", "call_id": "a", "name": "ferry", "arguments": '{"port": "Skye"}'},
                {"type": "function_call_output", "call_id": "a", "output": RESULT.content},
                {"type": "reasoning", "summary": []},
                {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "At 9:40."}]},
            ],
            "tools": [{"type": "function", **FUNCTION}],
        },
        EXCHANGE,
    ),
    "alpaca": (
        "alpaca",
        {
            "instruction": "When does the ferry leave?",
            "input": "To Skye.",
            "output": json.dumps([SKYE.to_dict()]),
            "tools": json.dumps([FUNCTION]),
            "history": [["Hi", "Hello."]],
        },
        (
            Message("user", "Hi"),
            Message("assistant", "Hello."),
            Message("user", "When does the ferry leave?\nTo Skye."),
            CALL,
        ),
    ),
    "glm, tools in the system message": (
        "glm",
        {
            "messages": [
                {"role": "system", "content": "", "tools": [OPENAI_TOOL]},
                USER,
                message("assistant", 'ferry\n{"port": "Skye"}'),
                message("observation", RESULT.content),
                REPLY,
            ]
        },
        EXCHANGE,
    ),
    "glm, metadata": (
        "glm",
        {
            "messages": [
                {"role": "system", "content": "", "tools": [OPENAI_TOOL]},
                USER,
                message("assistant", '{"port": "Skye"}', metadata="ferry"),
                message("observation", RESULT.content),
                REPLY,
            ]
        },
        EXCHANGE,
    ),
    "messages as text": (
        "openai",
        {
            "messages": json.dumps([USER, message("assistant", None, tool_calls=[call()])]),
            "tools": json.dumps([FUNCTION]),
        },
        (ASK, CALL),
    ),
    "conversations as text": (
        "hermes",
        {"conversations": json.dumps([{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Ho"}])},
        (Message("user", "Hi"), Message("assistant", "Ho")),
    ),
    "each message as text": (
        "openai",
        openai(json.dumps(USER), json.dumps(message("assistant", None, tool_calls=[call()]))),
        (ASK, CALL),
    ),
    "xlam without a call": (
        "xlam",
        {"query": ASK.content, "tools": json.dumps([FUNCTION]), "answers": "[]"},
        (ASK, Message("assistant", "None of the available tools can help with this request.")),
    ),
    "functiongemma": (
        "rendered",
        {
            "text": "<bos><start_of_turn>developer\nBe brief.<start_function_declaration>declaration:ferry{description:"
            "<escape>The next ferry<escape>,parameters:{type:<escape>OBJECT<escape>,properties:{port:{type:<escape>"
            "STRING<escape>}},required:[<escape>port<escape>]}}<end_function_declaration><end_of_turn>\n"
            f"<start_of_turn>user\n{ASK.content}<end_of_turn>\n<start_of_turn>model\n<start_function_call>call:ferry"
            "{port:<escape>Skye<escape>}<end_function_call><start_function_response>response:ferry{time:<escape>9:40"
            "<escape>}<end_function_response>At 9:40.<end_of_turn>\n"
        },
        (Message("system", "Be brief."), *EXCHANGE),
    ),
    "rendered with two end markers": (
        "rendered",
        {
            "text": f"<start_of_turn>human\n{ASK.content}<end_of_turn><eos>\n<start_of_turn>model\n<tool_call>\n"
            f"{json.dumps(SKYE.to_dict())}\n</tool_call><end_of_turn><eos>\n<start_of_turn>tool\n<tool_response>\n"
            f"{RESULT.content}\n</tool_response><end_of_turn><eos>\n<start_of_turn>model\nAt 9:40.<end_of_turn><eos>\n",
            "tools": [FUNCTION],
        },
        EXCHANGE,
    ),
    "rendered ChatML": (
        "rendered",
        {
            "text": f"<|im_start|>user\n{ASK.content}<|im_end|>\n<|im_start|>assistant\n<tool_call>\n"
            f"{json.dumps(SKYE.to_dict())}\n</tool_call><|im_end|>\n",
            "tools": [FUNCTION],
        },
        (ASK, CALL),
    ),
    "preference, messages": (
        "preference",
        {
            "prompt": [USER],
            "chosen": [message("assistant", None, tool_calls=[call()])],
            "rejected": [REPLY],
            "tools": [FUNCTION],
        },
        (ASK, CALL),
    ),
    "preference, whole conversations": (
        "preference",
        {
            "messages": [USER],
            "chosen": [USER, REPLY],
            "rejected": [USER, message("assistant", "?")],
            "tools": [FUNCTION],
        },
        (ASK, ANSWER),
    ),
    "bfcl": (
        "bfcl",
        {
            "id": "simple_0",
            "question": [[USER]],
            "function": [FUNCTION],
            "ground_truth": [{"ferry": {"port": ["Skye", "Isle of Skye"], "day": ["", "today"]}}],
        },
        (ASK, CALL),
    ),
    "react": (
        "react",
        {
            "conversations": [
                {"from": "system", "value": f"Work step by step.\nThe tools are: {[FUNCTION]!r}"},
                {"from": "user", "value": f"{ASK.content}\nBegin!\n"},
                {
                    "from": "assistant",
                    "value": '\nThought: A port.\nAction: ferry\nAction Input: {\n "port": "Skye"\n}',
                },
                {"from": "function", "value": RESULT.content},
                {
                    "from": "assistant",
                    "value": "\nThought: \nAction: Finish\nAction Input: "
                    '{"return_type": "give_answer", "final_answer": "At 9:40."}',
                },
            ]
        },
        (
            Message("system", "Work step by step."),
            ASK,
            Message("assistant", "", "A port.", (SKYE,)),
            RESULT,
            ANSWER,
        ),
    ),
    "react with a final answer": (
        "react",
        openai(
            USER,
            message("assistant", "Thought: A port.\nAction: ferry\nAction Input: Skye"),
            message("user", "Observation: 9:40"),
            message("assistant", "Thought: I know now.\nFinal Answer: At 9:40."),
        ),
        (
            ASK,
            Message("assistant", "", "A port.", (SKYE,)),
            Message("user", "Observation: 9:40"),
            Message("assistant", "At 9:40.", "I know now."),
        ),
    ),
    "results out of order": (
        "openai",
        openai(
            USER,
            message("assistant", None, tool_calls=[call(id="a"), call("Mull", id="b")]),
            message("tool", "11:00", tool_call_id="b"),
            message("tool", "9:40", tool_call_id="a"),
            REPLY,
        ),
        (
            ASK,
            Message("assistant", "", None, (SKYE, MULL)),
            Message("tool", "9:40"),
            Message("tool", "11:00"),
            ANSWER,
        ),
    ),
    "results that are objects and lists": (
        "openai",
        openai(
            USER,
            message("assistant", None, tool_calls=[call(), call("Mull")]),
            message("tool", {"time": "9:40"}),
            message("tool", [{"time": "11:00"}, {"time": None}]),
            REPLY,
        ),
        (
            ASK,
            Message("assistant", "", None, (SKYE, MULL)),
            RESULT,
            Message("tool", '[{"time": "11:00"}, {"time": null}]'),
            ANSWER,
        ),
    ),
    "two turns of calls": (
        "openai",
        openai(
            USER,
            message("assistant", "I look.", tool_calls=[call(id="a")]),
            message("assistant", None, tool_calls=[call("Mull", id="b")]),
            message("tool", "11:00", tool_call_id="b"),
            message("tool", "9:40", tool_call_id="a"),
            REPLY,
        ),
        (
            ASK,
            Message("assistant", "I look.", None, (SKYE, MULL)),
            Message("tool", "9:40"),
            Message("tool", "11:00"),
            ANSWER,
        ),
    ),
    "tools in the arguments of a chat template": (
        "openai",
        {
            "messages": [USER, message("assistant", f"<tool_call>\n{json.dumps(SKYE.to_dict())}\n</tool_call>")],
            "chat_template_kwargs": {"xml_tools": [json.dumps(FUNCTION)]},
        },
        (ASK, CALL),
    ),
    "a schema as text": (
        "openai",
        openai(
            USER,
            message("assistant", None, tool_calls=[call()]),
            tools=[{"type": "function", "function": {**FUNCTION, "parameters": json.dumps(SCHEMA)}}],
        ),
        (ASK, CALL),
    ),
    "properties that say whether they are required": (
        "openai",
        openai(
            USER,
            message("assistant", None, tool_calls=[call()]),
            tools=[{**FUNCTION, "parameters": {"port": {"type": "string", "required": True}}}],
        ),
        (ASK, CALL),
    ),
    "bedrock": (
        "bedrock",
        {
            "system": [{"text": "Be brief."}],
            "toolConfig": {
                "tools": [
                    {
                        "toolSpec": {
                            "name": "ferry",
                            "description": "The next ferry",
                            "inputSchema": {"json": SCHEMA},
                        }
                    }
                ]
            },
            "messages": [
                message("user", [{"text": ASK.content}]),
                message("assistant", [{"toolUse": {"toolUseId": "a", "name": "ferry", "input": {"port": "Skye"}}}]),
                message("user", [{"toolResult": {"toolUseId": "a", "content": [{"json": {"time": "9:40"}}]}}]),
                message("assistant", [{"text": "At 9:40."}]),
            ],
        },
        (Message("system", "Be brief."), *EXCHANGE),
    ),
    "a logged request": (
        "api_log",
        {
            "request": {"messages": [USER], "tools": [OPENAI_TOOL]},
            "response": {"choices": [{"message": message("assistant", None, tool_calls=[call()])}]},
        },
        (ASK, CALL),
    ),
    "results in a user's turn, capital roles": (
        "openai",
        {
            "messages": [
                message("USER", ASK.content),
                message("Assistant", f"<tool_call>{json.dumps(SKYE.to_dict())}</tool_call>"),
                message("User", f"<tool_response>\n{RESULT.content}\n</tool_response>"),
                {"role": "Assistant", "content": {"type": "text", "text": "At 9:40."}},
            ],
            "tools": [FUNCTION],
        },
        EXCHANGE,
    ),
    "tools between other tags": (
        "openai",
        {
            "messages": [
                message("system", f"Be brief. Use these: <AVAILABLE_TOOLS>{json.dumps([FUNCTION])}</AVAILABLE_TOOLS>"),
                USER,
                message("assistant", f"<TOOLCALL>{json.dumps([SKYE.to_dict()])}</TOOLCALL>"),
            ]
        },
        (Message("system", "Be brief."), ASK, CALL),
    ),
    "nulls where a table has them": (
        "openai",
        openai(
            USER,
            message("assistant", None, tool_calls=[call(arguments={"port": "Skye", "day": None})], refusal=None),
            message("tool", RESULT.content, tool_calls=None),
            message("assistant", "At 9:40.", tool_calls=[], function_call=None),
        ),
        EXCHANGE,
    ),
}


def test_accepted_values_inside_of_objects():
    question = [[{"role": "user", "content": "Enter John Doe."}]]
    accepted = {"info": [{"name": ["John Doe", "J. Doe"], "mail": ["", "j@x.y"]}], "tags": [[{"n": ["a", "b"]}], ""]}
    row = {"question": question, "function": [{"name": "enter"}], "ground_truth": [{"enter": accepted}]}
    (call,) = read_row(row).messages[-1].tool_calls
    assert call.arguments == {"info": {"name": "John Doe"}, "tags": [{"n": "a"}]}


@pytest.mark.parametrize(
    "products", ['[{"name": "Mug", "description": "Blue"}]', '{"name": "Mug", "description": "Blue"}']
)
def test_names_and_descriptions_without_a_schema_are_no_tools(products):
    system = f"You sell these products:\n{products}"
    conversation = read_row({"messages": [message("system", system), USER, REPLY]})
    assert conversation.messages[0].content == system
    assert conversation.tools == ()


@pytest.mark.parametrize("name", ROWS)
def test_a_row_of_each_shape(name):
    format, row, messages = ROWS[name]
    conversation = read_row(row)
    assert conversation.format == detect_format(row) == format
    assert conversation.messages == messages
    assert conversation.tools == (() if name == "conversations as text" else (TOOL,)) or name == "rendered ChatML"
    assert conversation.defects == ()
    assert not [notice for notice in conversation.notices if notice[0] == "unread_key"]
    assert all(message.supervised for message in conversation.messages)


def test_the_rows_say_what_is_unusual_in_them():
    kinds = {name: {kind for kind, _ in read_row(row).notices} for name, (_, row, _) in ROWS.items()}
    assert {name: found for name, found in kinds.items() if found} == {
        "xlam without a call": {"no_answer"},
        "preference, messages": {"chosen_side"},
        "preference, whole conversations": {"chosen_side"},
        "react with a final answer": {"unanswered_call"},
        "results out of order": {"reordered_results"},
        "two turns of calls": {"reordered_results"},
    }


def test_the_gold_of_bfcl_has_every_accepted_value():
    _, row, _ = ROWS["bfcl"]
    assert read_row(row).gold == tuple(row["ground_truth"])
    with pytest.raises(RowError, match="no `ground_truth`"):
        read_row({**row, "ground_truth": []})
    with pytest.raises(RowError, match="not one conversation"):
        read_row({**row, "question": [[USER], [USER]]})


@pytest.mark.parametrize("key", ["weight", "train", "train_on_turn", "loss"])
@pytest.mark.parametrize("no", [0, 0.0, False, "false", "0"])
def test_flags_of_turns_decide_what_is_supervised(key, no):
    row = openai(USER, {**REPLY, "content": "Never.", key: no}, USER, {**REPLY, key: 1}, USER, REPLY)
    conversation = read_row(row)
    assert [message.supervised for message in conversation.messages] == [True, False, True, True, True, True]
    assert conversation.notices == ()
    half = read_row(openai(USER, {**REPLY, "weight": 0.5}))
    assert half.messages[1].supervised
    assert [kind for kind, _ in half.notices] == ["turn_weight"]


def test_what_is_not_wanted_or_not_text_is_refused():
    undesired = {"prompt": [USER], "completion": [REPLY], "label": False}
    with pytest.raises(RowError, match="undesirable"):
        read_row(undesired)
    assert read_row({**undesired, "label": True}).messages == (ASK, ANSWER)
    odd = read_row(openai(message("user", [{"file": "a"}]), REPLY))
    assert odd.defects == ("turn 1: a part with the keys file is not text",)
    with pytest.raises(RowError, match="without a response"):
        read_row({"body": {"messages": [USER]}})


def test_keys_that_nothing_reads_are_noted():
    row = openai({**USER, "lang": "en"}, {**REPLY, "score": 5, "refusal": None}, source="web", empty="", id="x")
    assert set(read_row(row).notices) == {
        ("unread_key", "source"),
        ("unread_key", "turn.lang"),
        ("unread_key", "turn.score"),
    }


@pytest.mark.parametrize(
    ("messages", "kind"),
    [
        ([USER, message("tool", "9:40"), REPLY], "result_without_call"),
        ([message("tool", "9:40"), REPLY], "result_without_call"),
        (
            [USER, message("assistant", "", tool_calls=[call(id="a")]), message("tool", "1", tool_call_id="z"), REPLY],
            "result_without_call",
        ),
        ([USER, message("assistant", "", tool_calls=[call()]), USER, REPLY], "unanswered_call"),
        ([USER, message("assistant", "", tool_calls=[call(), call("Mull")]), message("tool", "1")], "unanswered_call"),
        ([USER, message("assistant", "", tool_calls=[call()]), *[message("tool", "1")] * 2], "result_without_call"),
    ],
)
def test_calls_and_results_without_a_counterpart_are_noted(messages, kind):
    assert kind in {found for found, _ in read_row(openai(*messages)).notices}


@pytest.mark.parametrize(
    ("schema", "kept"),
    [
        ({"type": "object", "properties": {"port": {"type": "string"}}}, {"port": "Skye"}),
        ({"type": "object", "properties": {"day": {"type": "string"}}}, {"port": "Skye"}),
        ({"type": "object", "properties": {"day": {"type": ["string", "null"]}}}, {"port": "Skye", "day": None}),
        (
            {"type": "object", "properties": {"day": {"type": "string", "nullable": True}}},
            {"port": "Skye", "day": None},
        ),
        (
            {"type": "object", "properties": {"day": {"anyOf": [{"type": "string"}, {"type": "null"}]}}},
            {"port": "Skye", "day": None},
        ),
        ({"type": "object", "properties": {"day": {"enum": ["today", None]}}}, {"port": "Skye", "day": None}),
    ],
)
def test_a_null_argument_stays_only_where_the_schema_allows_it(schema, kept):
    row = openai(
        USER,
        message("assistant", None, tool_calls=[call(arguments={"port": "Skye", "day": None})]),
        tools=[{**FUNCTION, "parameters": schema}],
    )
    assert read_row(row).messages[1].tool_calls == (ToolCall("ferry", kept),)


def test_python_types_of_xlam_become_a_schema():
    parameters = {
        "port": {"type": "str", "description": "Where"},
        "day": {"type": "str, optional", "default": "today"},
        "hours": {"type": "List[int], optional"},
        "limits": {"type": "Dict[str, int]"},
    }
    row = {"query": "?", "answers": [SKYE.to_dict()], "tools": [{"name": "ferry", "parameters": parameters}]}
    assert read_row(row).tools[0].parameters == {
        "type": "object",
        "properties": {
            "port": {"type": "str", "description": "Where"},
            "day": {"default": "today", "type": "string"},
            "hours": {"type": "array", "items": {"type": "integer"}},
            "limits": {"type": "object"},
        },
        "required": ["port", "limits"],
    }


def test_a_row_that_fits_no_format_names_the_nearest_one():
    with pytest.raises(RowError, match=r"keys query, reply; the nearest is \w+, which also needs `\w+`; known formats"):
        read_row({"query": "?", "reply": "!"})
    with pytest.raises(RowError, match=r"`messages` has a different structure.*format: my_module:read"):
        read_row({"messages": 7})
