"""Augmentation: a varied row is valid by its own schema, keeps its meaning, and is the same whenever it is drawn."""

import json
import random
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fc_lightning.conversation.json_schema import fits_schema
from fc_lightning.conversation.parsing import render_turn, same_calls
from fc_lightning.conversation.types import Conversation, Message, Tool, ToolCall
from fc_lightning.data import DataError
from fc_lightning.data.augmentation import (
    PERTURBATION_LABELS,
    Augmentation,
    add_distractors,
    augment,
    drop_tool,
    perturb,
    shuffle_tools,
)
from fc_lightning.data.formats import read_row
from fc_lightning.data.name_masking import mask_names
from fc_lightning.data.tool_pool import ToolPool, similarity
from fc_lightning.evaluation.alternatives import matches_alternatives

ALL = Augmentation(shuffle_tools=1.0, distractors=1.0, drop_tool=0.3, mask_names=1.0)


def quickstart() -> list[Conversation]:
    lines = Path("data/quickstart/train.jsonl").read_text(encoding="utf-8").splitlines()
    return [read_row(json.loads(line), None, str(number)) for number, line in enumerate(lines)]


def count_words(tool: Tool) -> int:
    return len(json.dumps(tool.to_openai()).split())


@pytest.fixture(scope="module")
def rows() -> list[Conversation]:
    return quickstart()[:160]


@pytest.fixture(scope="module")
def pool(rows) -> ToolPool:
    return ToolPool(rows, count_words)


def validity(conversation: Conversation) -> list[bool | None]:
    """For each call, whether its tool is on offer and its arguments fit the tool's schema."""
    schemas = {tool.name: tool.parameters for tool in conversation.tools}
    calls = [call for message in conversation.messages for call in message.tool_calls]
    return [call.name in schemas and fits_schema(call.arguments, schemas[call.name]) for call in calls]


WEATHER = Tool(
    "get_weather",
    "Weather of a city; get_weather takes `city`.",
    {
        "type": "object",
        "properties": {
            "city": {"type": "string", "description": "Its name."},
            "days_ahead": {"type": "integer", "description": "With days_ahead 0, today."},
            "place": {
                "type": "object",
                "properties": {"lat": {"type": "number"}, "lon": {"type": "number"}},
                "required": ["lat"],
                "additionalProperties": False,
                "default": {"lat": 1.0},
            },
            "stops": {"type": "array", "items": {"type": "object", "properties": {"city": {"type": "string"}}}},
        },
        "required": ["city"],
        "additionalProperties": False,
    },
)
CALL = ToolCall("get_weather", {"place": {"lon": 2.0, "lat": 1.0}, "city": "Rome", "stops": [{"city": "Pisa"}]})
WEATHER_TALK = Conversation(
    "weather",
    (
        Message("system", "Use get_weather when asked for the weather in a city."),
        Message("user", "How is the weather in the city of Rome? Ask get_weather."),
        Message("assistant", "", 'I need `get_weather`. From the question: city = "Rome"', (CALL,)),
        Message("tool", '{"name": "get_weather", "content": {"city": "Rome", "kind": "city", "sky": "blue"}}'),
        Message("assistant", "It is sunny in the city."),
    ),
    (WEATHER, Tool("mail", "Send mail.", {"type": "object", "properties": {"city": {"type": "string"}}})),
    gold=({"get_weather": {"city": ["Rome", "ROME"], "place": [{"lat": [1.0], "lon": [2.0, 2.5]}]}},),
)


def test_masked_names_are_the_same_in_schema_call_response_and_accepted_answers():
    masked = mask_names(WEATHER_TALK, random.Random(0))
    (tool, mail), call = masked.tools, masked.messages[2].tool_calls[0]
    city, days, place, stops = tool.parameters["properties"]
    lat, lon = tool.parameters["properties"][place]["properties"]
    assert len({tool.name, mail.name, city, days, place, stops, lat, lon}) == 8
    assert call == ToolCall(tool.name, {place: {lon: 2.0, lat: 1.0}, city: "Rome", stops: [{city: "Pisa"}]})
    assert list(mail.parameters["properties"]) == [city]
    assert tool.parameters["required"] == [city]
    assert tool.parameters["properties"][place]["required"] == [lat]
    assert tool.parameters["properties"][place]["default"] == {lat: 1.0}
    assert tool.parameters["properties"][days]["description"] == f"With {days} 0, today."
    assert tool.description == f"Weather of a city; {tool.name} takes `city`."
    assert masked.messages[0].content == f"Use {tool.name} when asked for the weather in a city."
    assert masked.messages[1] == WEATHER_TALK.messages[1]
    assert masked.messages[2].reasoning == f'I need `{tool.name}`. From the question: {city} = "Rome"'
    response = {"name": tool.name, "content": {city: "Rome", "kind": "city", "sky": "blue"}}
    assert json.loads(masked.messages[3].content) == response
    assert masked.gold == ({tool.name: {city: ["Rome", "ROME"], place: [{lat: [1.0], lon: [2.0, 2.5]}]}},)
    assert masked.messages[4] == WEATHER_TALK.messages[4]
    assert validity(masked) == validity(WEATHER_TALK) == [True]


@pytest.mark.parametrize(
    "parameters",
    [
        {"properties": {"a": {"type": "integer"}, "b": {"$ref": "#/properties/a"}}},
        {"properties": {"a": {}, "b": {}}, "anyOf": [{"required": ["a"]}, {"required": ["b"]}]},
        {"properties": {"a": {}, "b": {}}, "dependentRequired": {"b": ["a"]}},
        {"properties": {"b": {}}, "patternProperties": {"^a$": {"type": "integer"}}, "additionalProperties": False},
        {"properties": {"b": {}}, "propertyNames": {"enum": ["a", "b"]}},
    ],
)
def test_parameters_that_a_schema_names_elsewhere_keep_their_names(parameters):
    call = ToolCall("f", {"a": 1, "b": 2})
    row = Conversation(
        "x", (Message("user", "?"), Message("assistant", "", None, (call,))), (Tool("f", "", parameters),)
    )
    masked = mask_names(row, random.Random(0))
    assert validity(masked) == validity(row) == [True]
    assert masked.messages[1].tool_calls[0].arguments == call.arguments


def test_names_that_cannot_be_masked_consistently_leave_the_row_as_it_is():
    twice = replace(WEATHER_TALK, tools=(WEATHER, WEATHER))
    unknown = replace(WEATHER_TALK, tools=WEATHER_TALK.tools[1:])
    for row in (twice, unknown, replace(WEATHER_TALK, tools=(), messages=WEATHER_TALK.messages[:2])):
        assert mask_names(row, random.Random(0)) is row


def test_shuffled_rows_make_the_same_calls_with_arguments_in_the_order_of_the_schema():
    orders = set()
    for seed in range(20):
        shuffled = shuffle_tools(WEATHER_TALK, random.Random(seed))
        call = shuffled.messages[2].tool_calls[0]
        assert call == CALL  # equality does not see order
        tool = next(tool for tool in shuffled.tools if tool.name == "get_weather")
        assert tool.parameters == WEATHER.parameters
        properties = tool.parameters["properties"]
        assert list(call.arguments) == [name for name in properties if name in call.arguments]
        assert list(call.arguments["place"]) == list(properties["place"]["properties"])
        orders.add((tuple(tool.name for tool in shuffled.tools), tuple(call.arguments)))
    assert len(orders) > 6


def test_distractors_stay_within_the_budget_and_never_do_the_job_of_a_tool_on_offer(rows, pool):
    added = 0
    for row in rows:
        out = add_distractors(row, random.Random(row.id), pool, 60)
        new = [tool for tool in out.tools if tool not in row.tools]
        assert [tool for tool in out.tools if tool in row.tools] == list(row.tools)
        assert sum(map(count_words, new)) <= 60
        assert len({tool.name for tool in out.tools}) == len(out.tools)
        assert all(similarity(tool, other) < 0.5 for tool in new for other in row.tools)
        assert out.messages == row.messages
        added += len(new)
    assert added > len(rows)


def test_near_tools_come_first():
    names = ("get_train_times", "get_flight_prices", "play_music", "bake_bread")
    descriptions = ("Train departures", "Flight prices", "Plays a song", "Bakes a loaf")
    tools = [Tool(name, text) for name, text in zip(names, descriptions, strict=True)]
    pool = ToolPool([Conversation("", (), tuple(tools))], lambda tool: 1)
    asked = [Tool("buy_flight_ticket", "Buys flight tickets at given prices")]
    firsts = [tool.name for seed in range(200) for tool in pool.draw(asked, random.Random(seed), 1)]
    assert firsts.count("get_flight_prices") == pytest.approx(100, abs=25)  # it is passed over half of the time
    assert 100 < len(firsts) < 200


def test_a_row_that_calls_nothing_gets_no_distractor_that_may_fit():
    weather = Tool("current_weather", "Weather now")
    mail = Tool("send_mail", "Sends mail")
    pool = ToolPool([Conversation("", (), (weather, mail))], lambda tool: 1)
    turns = (Message("user", "What is the weather in Oslo?"), Message("assistant", "I have no tool for this."))
    row = Conversation("x", turns, (Tool("play_music", "Plays a song"),))
    drawn = {tool.name for seed in range(30) for tool in add_distractors(row, random.Random(seed), pool, 9).tools}
    assert drawn == {"play_music", "send_mail"}


def test_a_dropped_tool_is_gone_and_the_turn_calls_nothing(rows, pool):
    changed = 0
    for row in rows:
        out = drop_tool(row, random.Random(row.id), pool, 0.5)
        first = next((index for index, message in enumerate(row.messages) if message.tool_calls), None)
        if out is row:
            assert first is None or len(row.tools) > 1  # another tool may do the same job
            continue
        changed += 1
        called = {call.name for call in row.messages[first].tool_calls}
        assert out.tools
        assert called.isdisjoint(tool.name for tool in out.tools)
        assert out.messages[:-1] == row.messages[:first]
        assert out.messages[-1].role == "assistant"
        assert out.messages[-1].content
        assert not out.messages[-1].tool_calls
        assert not out.gold
    assert changed > 80


def test_dropping_replaces_a_written_thought_and_leaves_ambiguous_rows():
    pool = ToolPool([WEATHER_TALK], lambda tool: 1)
    dropped = drop_tool(WEATHER_TALK, random.Random(0), pool, 0.5)
    assert "get_weather" not in (dropped.messages[-1].reasoning or "get_weather")
    twin = replace(WEATHER_TALK, tools=(WEATHER, Tool("weather_get", "Another one.")))
    assert drop_tool(twin, random.Random(0), pool, 0.5) is twin
    json_mode = replace(WEATHER_TALK, response_schema={})
    assert drop_tool(json_mode, random.Random(0), pool, 0.5) is json_mode
    alone = replace(WEATHER_TALK, tools=(WEATHER,))
    assert drop_tool(alone, random.Random(0), ToolPool([], lambda tool: 1), 0.5) is alone


def test_the_limit_decides_how_near_the_remaining_tools_may_be():
    near = Tool("get_weather_history", "Climate records of a year.")  # shares two of three words of its name
    assert similarity(WEATHER, near) == pytest.approx(2 / 3)
    row = replace(WEATHER_TALK, tools=(WEATHER, near))
    pool = ToolPool([row], lambda tool: 1)
    assert drop_tool(row, random.Random(0), pool, 0.6) is row
    assert drop_tool(row, random.Random(0), pool, 0.7).tools == (near,)
    assert augment(row, Augmentation(drop_tool=1.0), pool, 0, 0) is row
    assert augment(row, Augmentation(drop_tool=1.0, drop_tool_similarity=0.7), pool, 0, 0).tools == (near,)
    assert perturb(row, "drop_tool", pool) is None  # its measure does not depend on the setting


def test_a_tool_of_another_row_may_be_half_as_near():
    other = Tool("get_trams", "Lists departures.")  # shares one word of three
    assert similarity(WEATHER, other) == pytest.approx(1 / 3)
    row = replace(WEATHER_TALK, tools=(WEATHER,))
    pool = ToolPool([replace(row, tools=(other,))], lambda tool: 1)
    seeds = range(20)  # a tool is skipped half of the time
    assert all(drop_tool(row, random.Random(seed), pool, 0.6) is row for seed in seeds)
    assert any(drop_tool(row, random.Random(seed), pool, 0.7).tools == (other,) for seed in seeds)


def test_draws_depend_on_seed_row_and_epoch_alone(rows, pool):
    def drawn(seed: int, epoch: int, of: list[Conversation]) -> dict[str, Conversation]:
        return {row.id: augment(row, ALL, pool, seed, epoch) for row in of}

    first = drawn(0, 0, rows)
    assert drawn(0, 0, rows[::-1]) == first
    for other in (drawn(1, 0, rows), drawn(0, 1, rows)):
        assert sum(other[id] != one for id, one in first.items()) > 0.9 * len(rows)


def test_one_augmentation_does_not_change_the_draws_of_another(rows, pool):
    alone = [augment(row, Augmentation(drop_tool=0.5), pool, 0, 0) for row in rows]
    with_masks = [augment(row, Augmentation(drop_tool=0.5, mask_names=1.0), pool, 0, 0) for row in rows]
    assert [len(one.tools) for one in alone] == [len(one.tools) for one in with_masks]
    assert [bool(one.messages[-1].tool_calls) for one in alone] == [
        bool(one.messages[-1].tool_calls) for one in with_masks
    ]


def test_shares_are_kept(rows, pool):
    for share in (0.0, 0.25, 1.0):
        masked = [augment(row, Augmentation(mask_names=share), pool, 0, 0) is not row for row in rows]
        assert sum(masked) / len(rows) == pytest.approx(share, abs=0.08)
    for wrong in ({"mask_names": 1.5}, {"drop_tool": -0.1}, {"drop_tool_similarity": 2}, {"distractor_tokens": -1}):
        with pytest.raises(DataError, match=r"data\.augmentation"):
            Augmentation(**wrong)


def test_a_row_with_defects_stays(pool):
    flawed = replace(WEATHER_TALK, defects=("broken",))
    assert augment(flawed, ALL, pool, 0, 0) is flawed
    assert all(perturb(flawed, name, pool) is None for name in PERTURBATION_LABELS)


@pytest.mark.parametrize("name", PERTURBATION_LABELS)
def test_perturbations_are_fixed(rows, pool, name):
    first = [perturb(row, name, pool) for row in rows[:60]]
    assert first == [perturb(row, name, pool) for row in rows[:60]]
    assert sum(one is not None for one in first) > 30


# Any schema of objects, lists and plain values, with a value that fits it.
SCALARS = st.sampled_from([("string", "x"), ("integer", 3), ("boolean", True)])
KEYS = st.sampled_from(["a", "city", "get_it", "properties", "default", "items", "x.y", "required"])


def schemas(depth: int) -> st.SearchStrategy[tuple[dict, object]]:
    scalar = SCALARS.map(lambda pair: ({"type": pair[0]}, pair[1]))
    if depth == 0:
        return scalar
    inner = schemas(depth - 1)
    return st.one_of(scalar, inner.map(list_of), st.dictionaries(KEYS, inner, max_size=4).map(object_of))


def list_of(pair):
    return {"type": "array", "items": pair[0]}, [pair[1], pair[1]]


def object_of(pairs):
    schema = {"type": "object", "properties": {name: one for name, (one, _) in pairs.items()}}
    schema |= {"required": sorted(pairs), "additionalProperties": False}
    return schema, {name: value for name, (_, value) in pairs.items()}


@st.composite
def talks(draw) -> Conversation:
    pairs = draw(st.lists(st.dictionaries(KEYS, schemas(2), max_size=4).map(object_of), min_size=1, max_size=3))
    tools = tuple(Tool(f"tool_{number}", "Does city things.", schema) for number, (schema, _) in enumerate(pairs))
    calls = tuple(ToolCall(tool.name, value) for tool, (_, value) in zip(tools, pairs, strict=True))
    number = draw(st.integers(0, len(calls)))
    turns = (Message("user", "Do it."), Message("assistant", "" if number else "No.", None, calls[:number]))
    return Conversation(draw(st.text("abc", max_size=3)), turns, tools)


@settings(max_examples=60, deadline=None)
@given(talks(), st.integers(0, 5))
def test_what_is_augmented_stays_valid_by_its_own_schema(conversation, epoch):
    pool = ToolPool([WEATHER_TALK, conversation], lambda tool: 1)
    out = augment(conversation, ALL, pool, 0, epoch)
    assert all(validity(conversation))
    assert all(validity(out))
    for message in out.messages:
        if message.role == "assistant":
            assert render_turn(message)


def accepted_variants() -> Iterator[tuple[ToolCall, bool]]:
    yield CALL, False  # `stops` is no accepted argument
    yield ToolCall("get_weather", {"city": "ROME", "place": {"lat": 1.0, "lon": 2.5}}), True
    yield ToolCall("get_weather", {"city": "Paris", "place": {"lat": 1.0, "lon": 2.5}}), False


def test_accepted_answers_judge_masked_calls_as_they_judge_plain_ones():
    for call, is_right in accepted_variants():
        message = replace(WEATHER_TALK.messages[2], tool_calls=(call,))
        row = replace(WEATHER_TALK, messages=(*WEATHER_TALK.messages[:2], message))
        masked = mask_names(row, random.Random(1))
        assert matches_alternatives([call], row.gold, row.tools) is is_right
        assert matches_alternatives(masked.messages[2].tool_calls, masked.gold, masked.tools) is is_right
        assert not same_calls(masked.messages[2].tool_calls, [call])


def test_a_rejected_turn_is_varied_like_the_chosen_one(pool):
    wrong = Message("assistant", "", None, (ToolCall("get_weather", {"city": "Oslo"}), ToolCall("made_up", {"a": 1})))
    row = replace(WEATHER_TALK, messages=WEATHER_TALK.messages[:3], rejected=wrong)
    masked = mask_names(row, random.Random(0))
    (known, made_up), right = masked.rejected.tool_calls, masked.messages[2].tool_calls[0]
    assert known.name == right.name
    assert set(known.arguments) < set(right.arguments)
    assert made_up == ToolCall("made_up", {"a": 1})
    assert shuffle_tools(row, random.Random(0)).rejected == wrong
    assert drop_tool(row, random.Random(0), pool, 0.5).rejected is None
