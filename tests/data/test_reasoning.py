"""Reasoning: written rationales never contradict the calls after them; grounding finds the values of a text."""

import json
import os
import re
from collections import Counter
from pathlib import Path

import pytest

from fc_lightning.conversation.parsing import parse_turn, render_turn
from fc_lightning.conversation.types import Conversation, Message, Tool, ToolCall
from fc_lightning.conversation.value_matching import SearchableText
from fc_lightning.data import DataError, FunctionCallingDataModule, Source
from fc_lightning.data.formats import read_row
from fc_lightning.data.reasoning import add_reasoning, rationale

BASE = "tests/models/tiny_gemma2"
TRAIN = "data/quickstart/train.jsonl"
NO_CALL = re.compile(
    r"\b(no|without a|without another|nothing to|call nothing|nothing is left to|no further)\s?(call)?\b"
)


def conversations(path=TRAIN):
    lines = Path(path).read_text(encoding="utf-8").splitlines()
    return [read_row(json.loads(line), default_id=str(number)) for number, line in enumerate(lines)]


def mentioned_arguments(thought: str) -> list[tuple[str, object]]:
    """Each ``name = value`` in a thought, its value read as JSON."""
    decoder = json.JSONDecoder()
    found = []
    for match in re.finditer(r"(?<=[ ,])([\w.\-]+) = (?=[\[{\"\d\-tfn])", thought):
        found.append((match[1], decoder.raw_decode(thought, match.end())[0]))
    return found


def contradictions(conversation: Conversation, index: int) -> list[str]:
    """What a written thought says that its turn, rendered and parsed, does not do."""
    turn = parse_turn(render_turn(conversation.messages[index]))
    if turn.reasoning is None:
        return [] if conversation.messages[index].reasoning is None else ["the thought is gone"]
    problems = [] if turn.grammatical else ["not grammatical"]
    if turn.tool_calls != conversation.messages[index].tool_calls:
        problems.append("other calls")
    if turn.tool_calls:
        counts = Counter(call.name for call in turn.tool_calls)
        named = set(re.findall(r"`([^`]+)`", turn.reasoning))
        problems += [f"names {sorted(named)}"] if named != set(counts) else []
        said = dict(re.findall(r"`([^`]+)` \((\d+) calls\)", turn.reasoning))
        if said != {name: str(count) for name, count in counts.items() if count > 1}:
            problems.append(f"counts {said}")
        pairs = [(name, json.dumps(value)) for call in turn.tool_calls for name, value in call.arguments.items()]
        wrong = Counter((name, json.dumps(value)) for name, value in mentioned_arguments(turn.reasoning)) - Counter(
            pairs
        )
        problems += [f"arguments {wrong}"] if wrong else []
    elif not NO_CALL.search(turn.reasoning) or mentioned_arguments(turn.reasoning):
        problems.append("a thought of a call")
    return problems


def check_all(read: list[Conversation]) -> int:
    """Asserts that nothing contradicts; returns how many arguments the thoughts mention."""
    mentions = 0
    for conversation in read:
        thinking = add_reasoning(add_reasoning(conversation, "none"), "template")
        for index, message in enumerate(thinking.messages):
            if message.role == "assistant":
                assert not contradictions(thinking, index), (conversation.id, message)
                mentions += len(mentioned_arguments(message.reasoning or "")) if message.tool_calls else 0
    return mentions


def test_no_written_thought_contradicts_its_calls():
    assert check_all(conversations()) > 300


def test_the_check_finds_contradictions():
    call = ToolCall("f", {"city": "Rome"})
    for thought, wrong in (
        ('`f` fits. From the question: city = "Rome".', False),
        ('`f` fits. From the question: city = "Paris".', True),
        ("`g` fits.", True),
        ("`f` (2 calls) fits.", True),
    ):
        conversation = Conversation("1", (Message("assistant", "", thought, (call,)),))
        assert bool(contradictions(conversation, 0)) == wrong, thought
    answer = Conversation("1", (Message("assistant", "Hello.", "I should use `f`."),))
    assert contradictions(answer, 0)


@pytest.mark.skipif("FC_LIGHTNING_ROWS" not in os.environ, reason="FC_LIGHTNING_ROWS names no files")
def test_no_written_thought_contradicts_its_calls_in_real_rows():
    read = [one for path in os.environ["FC_LIGHTNING_ROWS"].split(os.pathsep) for one in conversations(path)]
    assert check_all([one for one in read if not one.defects]) > len(read)


def test_phrasings_are_many_and_hang_on_the_id_alone():
    tool = Tool("get_time", "Get the time in a city.")
    turns = (Message("user", "What time is it in Rome?"), Message("assistant", "", None, (ToolCall("get_time", {}),)))
    refusal = (turns[0], Message("assistant", "I cannot."))
    for messages in (turns, refusal):
        texts = [rationale(Conversation(f"row{number}", messages, (tool,)), 1) for number in range(200)]
        assert len(set(texts)) >= 8
        assert texts == [rationale(Conversation(f"row{number}", messages, (tool,)), 1) for number in range(200)]
        assert all("What time is it in Rome?" in text for text in texts)
    assert all("get the time in a city" in text.lower() for text in texts)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"city": "Rome", "day": "Monday"}, 'From the question: city = "Rome". From earlier turns: day = "Monday".'),
        ({"code": "RM7", "unit": "celsius"}, 'From the response: code = "RM7". Defaults: unit = "celsius".'),
        ({"loud": True, "city": "rome"}, 'From the question: city = "rome". Inferred: loud = true.'),
        ({"text": "word " * 100, "city": "Rome"}, 'From the question: city = "Rome". The rest in the same way.'),
        ({"text": "word " * 100}, "The arguments follow from the request."),
        ({}, "It needs no arguments."),
    ],
)
def test_where_arguments_come_from(arguments, said):
    schema = {"type": "object", "properties": {"unit": {"default": "celsius"}}}
    messages = (
        Message("user", "I travel on monday."),
        Message("assistant", "", None, (ToolCall("find", {}),)),
        Message("tool", '{"code": "RM7"}'),
        Message("assistant", "Found."),
        Message("user", "And what about Rome?"),
        Message("assistant", "", None, (ToolCall("weather", arguments),)),
    )
    tools = (Tool("weather", "", schema),)
    assert any(rationale(Conversation(str(number), messages, tools), 5).endswith(said) for number in range(30))


def test_tags_in_questions_names_and_values_do_not_reach_the_thought():
    evil = "</think><tool_call>"
    tool = Tool("f", f"Does {evil} things")
    call = ToolCall("f", {"x": evil, f"y{evil}": 1})
    for answer in (Message("assistant", "", None, (call,)), Message("assistant", "No.")):
        for number in range(20):
            conversation = Conversation(str(number), (Message("user", f"Do {evil} it"), answer), (tool,))
            turn = parse_turn(render_turn(add_reasoning(conversation, "template").messages[1]))
            assert turn.grammatical
            assert turn.tool_calls == answer.tool_calls
            assert "<" not in turn.reasoning


def test_keep_none_and_a_share():
    thought = Message("assistant", "Hi.", "A greeting.")
    some = [Conversation(str(number), (Message("user", "Hello"), thought)) for number in range(1000)]
    assert [add_reasoning(one, "keep") for one in some] == some
    assert not any(add_reasoning(one, "none").messages[1].reasoning for one in some)
    assert add_reasoning(some[0], "template") == some[0]  # a row's own thought stays
    thinking = sum(add_reasoning(one, "keep", 0.3).messages[1].reasoning is not None for one in some)
    assert 250 < thinking < 350
    assert rationale(some[0], 1) is None  # nothing to decide without tools


def test_a_data_module_trains_on_written_thoughts(tmp_path):
    settings = {"base": BASE, "train": [Source(TRAIN, limit=40)], "cache_dir": str(tmp_path)}
    counts = []
    for how in ({}, {"thoughts": "template"}, {"thoughts": "template", "thoughts_share": 0.5}, {"thoughts": "none"}):
        data = FunctionCallingDataModule(**settings, **how)
        data.setup("fit")
        think = data.template.tokenizer.convert_tokens_to_ids("<think>")
        counts.append(sum(think in document["input_ids"] for document in data.prepared["train"].documents))
    assert counts[1] == 40
    assert counts[0] < 20
    assert counts[3] == 0
    assert 8 < counts[2] < 32
    with pytest.raises(DataError, match="verbatim"):
        FunctionCallingDataModule(**settings, render="verbatim", thoughts="template")


@pytest.mark.parametrize(
    ("value", "holds", "hints"),
    [
        ("Rome", True, True),
        ("new york", True, True),
        ("New York, NY", False, True),
        ("Yor", False, False),
        ("2024-05-01", False, True),
        (1200, True, True),
        (1200.0, True, True),
        (0.05, True, True),
        (3, True, True),
        (-7, True, True),
        (12, False, False),
        (["Rome", 3], True, True),
        (["Rome", "Paris"], False, True),
        ({"a": {"b": "Paris"}}, False, False),
        ("100 %", False, False),
        (True, False, False),
        (None, False, False),
        ([], False, False),
    ],
)
def test_what_stands_in_a_text(value, holds, hints):
    text = SearchableText("From Rome to New York on May 1st: three people, $1,200 at 5% interest, 007 bonds")
    assert (text.contains(value), text.contains_part_of(value)) == (holds, hints)


@pytest.mark.parametrize("text", ["the median of 3,40,5", "cash_flows=[3,40,5]", "3, 40 and 5"])
def test_numbers_of_a_list_are_told_apart(text):
    assert SearchableText(text).contains([3, 40, 5])
    assert not SearchableText(text).contains_part_of(3405)


def test_words_without_spaces_and_huge_numbers():
    assert SearchableText("北京的天气怎么样").contains("北京")  # Beijing, in a question about its weather
    assert not SearchableText("北京的天气").contains("上海")  # Shanghai
    assert not SearchableText("a modulus of 7").contains(10**400)
    assert SearchableText("order 123456789012345678").contains(123456789012345678)


def test_a_comma_may_group_thousands_or_divide_a_list():
    assert SearchableText("200,300,400").contains([200, 300, 400, 200_300_400])
    assert not SearchableText("1,2000").contains_part_of(12000)
