"""Files as other people write them, in `tests/data/cases`: the right reading of each, written by hand.

A reading is the messages in order (so results stand in the order of their calls), the tools, and which turns of the
model are training targets.
"""

from pathlib import Path

import pytest

from fc_lightning.chat_template.template import ChatTemplate
from fc_lightning.chat_template.tokens import SpecialToken, load_tokenizer
from fc_lightning.conversation.parsing import dump_json
from fc_lightning.conversation.types import Message, Tool, ToolCall
from fc_lightning.data import DataError, FunctionCallingDataModule, Source

CASES = Path(__file__).parent / "cases"


def user(text):
    return Message("user", text)


def tool(text):
    return Message("tool", text)


def model(text="", *calls, thought=None, supervised=True):
    return Message("assistant", text, thought, calls, supervised)


def tide(place, **more):
    return ToolCall("tide_height", {"place": place, **more})


def weather(city):
    return ToolCall("weather", {"city": city})


def schema(name, kind="object"):
    return {"type": kind, "properties": {name: {"type": "string"}}, "required": [name]}


TIDE, WEATHER = (
    Tool("tide_height", "Height of the tide", schema("place")),
    Tool("weather", "does weather", schema("city")),
)
DICT_TIDE = Tool("tide_height", "Height of the tide", schema("place", "dict"))
W = Tool("weather", "w", schema("city"))
HIGH, BREST, LORIENT = user("How high is the tide in Brest?"), tide("Brest"), tide("Lorient")
BRIEFLY = Message("system", "Answer briefly.")
METRES, DONE = tool('{"metres": 4.1}'), model("4.1 metres.")
TIDE_CALL = [HIGH, model("", BREST)]
TIDE_CHAT = [*TIDE_CALL, METRES, DONE]
OSLO, ROME = weather("Oslo"), weather("Rome")
ASK_OSLO = user("Weather in Oslo?")
OSLO_CALL = [ASK_OSLO, model("", OSLO)]
PORTS = [
    ([user(f"How high is the tide in Port {n}?"), model("", tide(f"Port {n}"))], [TIDE]) for n in range(6)
]  # six rows that several files hold
NO_TOOL_FITS = model("None of the available tools can help with this request.")
NUMBER = Tool(
    "weather", "does weather", {"type": "object", "properties": {"city": {"type": "integer"}}, "required": ["city"]}
)
XLAM_TIDE = Tool(
    "tide_height",
    "Height of the tide",
    {
        "type": "object",
        "properties": {
            "place": {"description": "Where", "type": "str"},
            "day": {"description": "When", "default": "today", "type": "string"},
            "hours": {"description": "h", "type": "array", "items": {"type": "integer"}},
        },
        "required": ["place"],
    },
)
ADD = Tool(
    "add",
    "does add",
    {"type": "object", "properties": {"a": {"type": "integer"}, "b": {"type": "integer"}}, "required": ["a", "b"]},
)
TWO_TYPES = [
    (OSLO_CALL, [WEATHER]),
    ([user("Add 1 and x"), model("", ToolCall("weather", {"city": 3}))], [NUMBER]),
]
VERTEX = [
    *("Brest", "Lorient", "Calais", "Dover", "Hull", "Leith", "Oslo", "Bergen", "Malmo", "Gdansk"),
    *("Riga", "Turku", "Cork", "Vigo", "Porto", "Faro", "Cadiz", "Genoa", "Bari", "Split"),
]

# For each file its conversations: messages and tools.
READINGS = {
    "01_toolace_python_calls.jsonl": [
        (
            [
                Message("system", "Answer with calls."),
                HIGH,
                model("", BREST, LORIENT),
                tool('[{"name":"tide_height","results":{"metres":4.1}}]'),
                DONE,
            ],
            [DICT_TIDE],
        )
    ],
    "02_conversations_with_tool_calls.jsonl": [
        ([HIGH, model("Let me look.", BREST), METRES, DONE], [TIDE]),
        (TIDE_CHAT, [TIDE]),
        (TIDE_CHAT, [TIDE]),
        (TIDE_CALL, [TIDE]),
    ],
    "03_swift_tool_call_role.jsonl": [
        ([HIGH, model("", BREST, LORIENT), METRES, tool('{"metres": 3.9}'), DONE], [TIDE]),
        ([HIGH, model("", BREST, thought="I need the tide."), METRES, DONE], [TIDE]),
    ],
    "05_messages_with_hermes_text.jsonl": [(TIDE_CHAT, [TIDE])],
    "06_anthropic_blocks.jsonl": [
        ([BRIEFLY, HIGH, model("I look.", BREST, thought="I need the tide."), METRES, DONE], [TIDE]),
        (
            [BRIEFLY, user("How high?"), model("Where?")],
            [Tool("tide_height", "Height", schema("place"))],
        ),
    ],
    "07_gemini_contents.jsonl": [([BRIEFLY, *TIDE_CHAT], [TIDE])],
    "09_langchain_messages.jsonl": [(TIDE_CHAT, []), (TIDE_CHAT, [TIDE])],
    "10_openai_functions_legacy.jsonl": [(TIDE_CHAT, [TIDE])],
    "11_double_encoded_arguments.jsonl": [(TIDE_CALL, [TIDE])],
    "13_openai_responses_items.jsonl": [(TIDE_CHAT, [TIDE]), (TIDE_CALL, [TIDE])],
    "14_mcp_input_schema.jsonl": [(TIDE_CALL, [TIDE])] * 2,
    "15_alpaca_tools.jsonl": [(TIDE_CALL, [TIDE])],
    "16_text_function_markers.jsonl": [
        *[(TIDE_CALL, [TIDE])] * 7,
        ([HIGH, model("", BREST, thought="I need the tide.")], [TIDE]),
        (TIDE_CALL, [TIDE]),
    ],
    "17_glm4_tools_in_system.jsonl": [(TIDE_CHAT, [TIDE])],
    "19_messages_as_json_string.jsonl": [(TIDE_CHAT, [TIDE]), ([user("x"), model("y")], [])],
    "20_parameters_for_arguments.jsonl": [
        ([HIGH, model("", BREST, LORIENT, thought="I need it.")], [TIDE]),
        ([HIGH, model("", BREST, LORIENT)], [TIDE]),
        ([HIGH, model("", BREST, LORIENT)], [TIDE]),
        (TIDE_CALL, [TIDE]),
    ],
    "21_xlam_real_types.jsonl": [(TIDE_CALL, [XLAM_TIDE])],
    "23_functiongemma_text.jsonl": [
        (
            TIDE_CALL,
            [Tool("tide_height", "Height", {"properties": {"place": {"type": "string"}}, "type": "object"})],
        )
    ],
    "25_chosen_rejected.jsonl": [([HIGH, model("4 m")], [TIDE]), (TIDE_CALL, [TIDE])],
    "26_bfcl_merged.jsonl": [(TIDE_CALL, [DICT_TIDE])],
    "29_toolbench_style.jsonl": [
        (
            [*TIDE_CALL, METRES, model("4.1 metres")],
            [Tool("tide_height", "Height", {"type": "object", "properties": {"place": {"type": "string"}}})],
        )
    ],
    "31_responses_out_of_order.jsonl": [
        (
            [
                user("Tides in Brest and Lorient?"),
                model("", BREST, LORIENT),
                tool("4.1"),
                tool("3.9"),
                model("Brest 4.1, Lorient 3.9."),
            ],
            [TIDE],
        )
    ],
    "40_bom.jsonl": PORTS,
    "41_bom.json": PORTS,
    "43_crlf.jsonl": PORTS,
    "44_rows.jsonl.gz": PORTS,
    "45_rows.ndjson": PORTS,
    "47_jsonl_called_json.json": PORTS,
    "48_object_with_data.json": PORTS,
    "51_rows.jsonl.zst": PORTS,
    "54_openai.parquet": PORTS,
    "55_struct_args.parquet": [
        (TIDE_CALL, [TIDE]),
        ([HIGH, model("", tide("Brest", day="today"))], [TIDE]),
    ],
    "60_vertex_20.jsonl": [
        ([BRIEFLY, user(f"How high is the tide in {place}?"), model("", tide(place)), METRES, DONE], [TIDE])
        for place in VERTEX
    ],
    "b_anthropic_blocks.jsonl": [
        (
            [user("Weather?"), model("Let me check.", OSLO), tool("5 degrees"), model("5 degrees.")],
            [Tool("weather", "", {"type": "object", "properties": {"city": {"type": "string"}}})],
        )
    ],
    "b_arrow_struct.parquet": [
        (OSLO_CALL, [WEATHER]),
        ([user("Add 1 and 2"), model("", ToolCall("add", {"a": 1, "b": 2}))], [ADD]),
    ],
    "b_bom.json": [(OSLO_CALL, [WEATHER])] * 2,
    "b_bom.jsonl": [(OSLO_CALL, [WEATHER])] * 2,
    "b_content_and_calls.jsonl": [([ASK_OSLO, model("Let me check.", OSLO)], [WEATHER])],
    "b_conversations_text.jsonl": [([user("q"), model("a")], [])],
    "b_dict_tool_content.jsonl": [([*OSLO_CALL, tool('{"temp": 5}'), model("5")], [WEATHER])],
    "b_double_encoded.jsonl": [(OSLO_CALL, [WEATHER])],
    "b_dup_ids.jsonl": [(OSLO_CALL, [WEATHER])] * 2,
    "b_empty_tool_calls.jsonl": [
        ([user("Hi"), model("Hello!")], [WEATHER]),
        ([user("Hi2"), model("Hello!")], [WEATHER]),
        ([user("x"), model("y")], []),
    ],
    "b_input_schema.jsonl": [(OSLO_CALL, [W])] * 2,
    "b_json_type.jsonl": TWO_TYPES,
    "b_json_type.parquet": TWO_TYPES,
    "b_lf_tools_dict.jsonl": [
        (
            OSLO_CALL,
            [
                Tool(
                    "weather",
                    "w",
                    {
                        "type": "object",
                        "properties": {"city": {"type": "string", "description": "c"}},
                        "required": ["city"],
                    },
                )
            ],
        )
    ],
    "b_list_tool_content.jsonl": [([*OSLO_CALL, tool('[{"temp": 5}, {"temp": 6}]'), model("5")], [WEATHER])],
    "b_map_args.parquet": [([user("Weather?"), model("", OSLO)], [WEATHER])],
    "b_messages_text.jsonl": [(OSLO_CALL, [WEATHER])],
    "b_out_of_order.jsonl": [
        (
            [
                user("Weather in Oslo and Rome?"),
                model("", OSLO, ROME),
                tool("5 degrees"),
                tool("30 degrees"),
                model("Oslo 5, Rome 30."),
            ],
            [WEATHER],
        )
    ],
    "b_parameters_text.jsonl": [(OSLO_CALL, [W])],
    "b_responses_api.jsonl": [(OSLO_CALL, [W])],
    "b_sharegpt_gpt_think.jsonl": [
        ([ASK_OSLO, model("", OSLO, thought="need it"), tool("5"), model("It is 5.")], [WEATHER])
    ],
    "b_smoltalk_like.jsonl": [(OSLO_CALL, [WEATHER])],
    "b_think_content.jsonl": [
        ([ASK_OSLO, model("", OSLO, thought="I need weather.")], [WEATHER]),
        ([user("Hi"), model("Hello!", thought="Just greet.")], [WEATHER]),
    ],
    "b_toolace.jsonl": [
        (
            [
                Message("system", "You are an expert in composing functions."),
                user("Market Trends please"),
                model("", ToolCall("newAddress", {"q": "US"})),
                tool('[{"name":"x","results":{}}]'),
                model("Here."),
            ],
            [Tool("newAddress", "x", schema("q", "dict"))],
        )
    ],
    "b_two_assistant.jsonl": [
        (
            [user("Weather in Oslo and Rome?"), model("", OSLO, ROME), tool("5"), tool("30"), model("done")],
            [WEATHER],
        )
    ],
    "b_unicode.jsonl": [
        (
            [
                user("Wetter in Köln?"),
                model(  # the schema does not know `n`, which is null
                    "",
                    ToolCall("weather", {"city": "Köln 😀", "ok": True, "x": 1000.0, "big": 12345678901234567890}),
                ),
            ],
            [WEATHER],
        )
    ],
    "b_weight0.jsonl": [
        (
            [
                user("Weather?"),
                model("BAD ANSWER NOT TO BE LEARNED", supervised=False),
                user("In Oslo!"),
                model("It is 5."),
            ],
            [],
        )
    ],
    "b_xlam_irrelevance.jsonl": [([user("hi there"), NO_TOOL_FITS], [WEATHER])],
    "hub_snapshot": [(OSLO_CALL, [WEATHER])],
    "llamafactory_data": [(OSLO_CALL, [WEATHER])] * 2,
}
# What else is in the folder: refused, or a matter of splitting.
OTHERS = {"42_utf16.jsonl", "52_rows.csv", "62_templated_prompts.jsonl"}


@pytest.fixture(scope="module")
def template():
    return ChatTemplate(load_tokenizer("tests/models/tiny_gemma2", None, tuple(SpecialToken))[0])


def test_every_file_has_a_reading():
    assert {path.name for path in CASES.iterdir()} == {*READINGS, *OTHERS}


@pytest.mark.parametrize("name", READINGS)
def test_a_file_is_read_right(name, template):
    source = Source(str(CASES / name))
    read = [source.read(row, place) for place, row in source.rows()]
    assert [list(one.messages) for one in read] == [messages for messages, _ in READINGS[name]]
    assert [list(one.tools) for one in read] == [tools for _, tools in READINGS[name]]
    assert not [one.defects for one in read if one.defects]
    for conversation, (messages, _) in zip(read, READINGS[name], strict=True):
        rendered = template.render(template.messages(conversation), conversation)
        supervised = [rendered.text[start:end] for start, end in rendered.supervised_spans]
        assert supervised == [text_of(one) for one in messages if one.role == "assistant" and one.supervised]


def text_of(message):
    """What the model is trained to write for a turn."""
    parts = [] if message.reasoning is None else [f"<think>\n{message.reasoning}\n</think>"]
    parts += [message.content] if message.content else []
    for call in message.tool_calls:
        parts.append(f'<tool_call>\n{{"name": "{call.name}", "arguments": {dump_json(call.arguments)}}}\n</tool_call>')
    return "\n".join(parts) + "<end_of_turn>"


def test_the_rest_of_the_readings():
    rejected = [read("25_chosen_rejected.jsonl", n).rejected.content for n in range(2)]
    assert rejected == ["?", "4.1 metres."]
    assert read("26_bfcl_merged.jsonl").gold == ({"tide_height": {"place": ["Brest"]}},)
    assert [read("b_dup_ids.jsonl", n).id for n in range(2)] == ["same", "same"]
    ((_, row),) = Source(str(CASES / "hub_snapshot"), split="test").rows()
    assert row != next(Source(str(CASES / "hub_snapshot")).rows())[1]


def read(name, number=0):
    source = Source(str(CASES / name))
    place, row = list(source.rows())[number]
    return source.read(row, place)


def test_what_is_refused_says_why():
    with pytest.raises(DataError, match=r"42_utf16\.jsonl: encoded as UTF-16"):
        list(Source(str(CASES / "42_utf16.jsonl")).rows())
    assert read("52_rows.csv").defects == (
        "turn 2, call 1: neither JSON nor a Python literal (as JSON: Expecting value: line 1 column 1 (char 0)): y",
    )


def test_templated_prompts_give_a_validation_set(tmp_path):
    source = Source(str(CASES / "62_templated_prompts.jsonl"))
    data = FunctionCallingDataModule(
        "tests/models/tiny_gemma2", [source], 0.1, max_length=4096, cache_dir=str(tmp_path)
    )
    data.setup()
    train, validation = (data.prepared[split].report for split in ("train", "validation"))
    assert (train.rows + validation.rows, train.skipped, validation.skipped) == (40, [], [])
    assert 0 < validation.rows < 20
    assert "near-copies" in train.remarks[0]
