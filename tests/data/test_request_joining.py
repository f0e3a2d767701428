"""Joined requests: the calls of both rows, in one turn, where they are right for both requests."""

import json
import random
from dataclasses import replace
from pathlib import Path

import pytest

from fc_lightning.conversation.json_schema import fits_schema
from fc_lightning.conversation.types import Conversation, Message, Tool, ToolCall
from fc_lightning.data.augmentation import Augmentation, augment
from fc_lightning.data.formats import read_row
from fc_lightning.data.request_joining import is_joinable, join_requests
from fc_lightning.data.tool_pool import ToolPool


def tool(name: str, description: str) -> Tool:
    return Tool(name, description, {"type": "object", "properties": {"of": {"type": "string"}}, "required": ["of"]})


def row(id: str, request: str, call: ToolCall, *tools: Tool, reasoning: str | None = None) -> Conversation:
    messages = (Message("system", "Be brief."), Message("user", request), Message("assistant", "", reasoning, (call,)))
    return Conversation(id, messages, tools, "one", raw_turns=(("user", request),), gold=({call.name: {}},))


WEATHER = tool("get_weather", "Forecast for a city.")
MAIL = tool("send_mail", "Write to a person.")
SHARES = tool("share_price", "Price of a company's stock.")
ROME = row("rome", "Weather in Rome?", ToolCall("get_weather", {"of": "Rome"}), WEATHER, MAIL)
PISA = row("pisa", " Weather in Pisa? ", ToolCall("get_weather", {"of": "Pisa"}), WEATHER)
ACME = row("acme", "What does Acme cost?", ToolCall("share_price", {"of": "Acme"}), tool("play_song", "Music."), SHARES)


def joined(conversation: Conversation, *others: Conversation, seed: int = 0) -> Conversation:
    return join_requests(conversation, random.Random(seed), others)


def test_requests_called_tools_and_calls_are_those_of_both_rows():
    both = [joined(ROME, ACME, seed=seed) for seed in range(40)]
    for one in both:
        system, question, answer = one.messages
        assert system == ROME.messages[0]
        assert question.content.startswith("Weather in Rome?")
        assert question.content.endswith("What does Acme cost?")
        assert answer == Message(
            "assistant", tool_calls=(ToolCall("get_weather", {"of": "Rome"}), ToolCall("share_price", {"of": "Acme"}))
        )
        assert [one for one in one.tools if one != SHARES] == [WEATHER, MAIL]
        assert (one.id, one.category, one.raw_turns, one.gold) == ("rome", "one", (), ())
    assert {one.tools.index(SHARES) for one in both} == {0, 1, 2}
    assert len({one.messages[1].content for one in both}) == 8  # so many ways to join


def test_rows_that_call_an_offered_tool_come_first():
    for seed in range(20):
        one = joined(ROME, *[replace(ACME, id=str(number)) for number in range(9)], PISA, seed=seed)
        assert [call.arguments["of"] for call in one.messages[-1].tool_calls] == ["Rome", "Pisa"]
        assert one.tools == ROME.tools


def test_reasoning_is_joined_too_and_never_missing():
    thinking = replace(ROME, messages=(*ROME.messages[:2], replace(ROME.messages[2], reasoning="Rome first.")))
    other = row("acme", "Acme?", ToolCall("share_price", {"of": "Acme"}), SHARES, reasoning="Then Acme.")
    assert joined(thinking, other).messages[-1].reasoning == "Rome first. Then Acme."
    assert joined(thinking, ACME) is thinking
    assert joined(ROME, other) is ROME


@pytest.mark.parametrize(
    "other",
    [
        ROME,
        replace(ACME, messages=ACME.messages[1:]),
        replace(ACME, messages=(Message("system", "It is May."), *ACME.messages[1:])),
        row("same call", "And in Rome?", ToolCall("get_weather", {"of": "Rome"}), WEATHER),
        row("same request", "Weather in Rome?", ToolCall("share_price", {"of": "Rome"}), SHARES),
        row("other schema", "In Oslo?", ToolCall("get_weather", {"of": "Oslo"}), replace(WEATHER, parameters={})),
        row("like a tool of the row", "In Oslo?", ToolCall("weather_get", {"of": "Oslo"}), tool("weather_get", "")),
        row("mail", "Tell Ann.", ToolCall("send_mail", {"of": "Ann"}), MAIL, tool("write", "Write to a person.")),
    ],
    ids=["itself", "no system", "system", "call", "request", "schema", "similar", "uncalled"],
)
def test_a_row_that_does_not_fit_is_not_joined(other):
    similar = replace(ROME, tools=(*ROME.tools, tool("write", "Write to a person."))) if other.id == "mail" else ROME
    assert joined(similar, other) is similar
    assert joined(similar, other, ACME) is not similar


@pytest.mark.parametrize(
    "changed",
    [
        replace(ROME, messages=(*ROME.messages, Message("tool", "Sunny."), Message("assistant", "Sunny."))),
        replace(ROME, messages=(*ROME.messages[:2], Message("assistant", "No tool fits."))),
        replace(ROME, messages=(*ROME.messages[:2], replace(ROME.messages[2], content="Let me look."))),
        replace(ROME, messages=(*ROME.messages[:2], replace(ROME.messages[2], supervised=False))),
        replace(ROME, messages=ROME.messages[2:]),
        replace(ROME, messages=()),
        replace(ROME, tools=(MAIL,)),
        replace(ROME, rejected=Message("assistant", "No tool fits.")),
        replace(ROME, defects=("broken",)),
    ],
    ids=[
        "several turns",
        "no call",
        "content",
        "context",
        "no request",
        "no turns",
        "not offered",
        "preference",
        "defects",
    ],
)
def test_only_single_requests_answered_by_calls_are_joined(changed):
    assert is_joinable(ROME)
    assert not is_joinable(changed)
    assert joined(changed, ACME) is changed


def test_joined_rows_of_the_shipped_data_are_valid():
    lines = Path("data/quickstart/train.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [read_row(json.loads(line), None, str(number)) for number, line in enumerate(lines)][:300]
    others, pool = list(filter(is_joinable, rows)), ToolPool([], lambda tool: 1)
    calls_of = {one.messages[-2].content.strip(): one.messages[-1].tool_calls for one in others}
    for share in (0.25, 1.0):
        settings = Augmentation(join_requests=share)
        changed = [
            (one, new)
            for one in others
            if (new := augment(one, settings, pool, seed=0, epoch=0, joinable=others)) is not one
        ]
        assert len(changed) / len(others) == pytest.approx(share, abs=0.08)
    for one, new in changed:
        request, calls = new.messages[-2].content, new.messages[-1].tool_calls
        second = [calls for text, calls in calls_of.items() if request.endswith(text) and request != text]
        assert calls[: len(one.messages[-1].tool_calls)] == one.messages[-1].tool_calls
        assert calls[len(one.messages[-1].tool_calls) :] in second
        schemas = {tool.name: tool.parameters for tool in new.tools}
        assert len(schemas) == len(new.tools)
        assert all(fits_schema(call.arguments, schemas[call.name]) for call in calls)
    assert {len({call.name for call in new.messages[-1].tool_calls}) for _, new in changed} >= {1, 2}
