"""Reasoning before an action: kept, removed, or written from the row itself.

Most rows with tool calls have no reasoning. ``template`` writes a short rationale for each model turn that has none:
what is asked, which tool fits and why, and where the arguments come from; or why no tool is called.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal

from fc_lightning.conversation.parsing import dump_json
from fc_lightning.conversation.types import Conversation, Message, Tool, ToolCall
from fc_lightning.conversation.value_matching import SearchableText

Thoughts = Literal["keep", "none", "template"]

# Approximate number of tokens of a rationale; what does not fit is abbreviated.
_BUDGET = 72
_ASK_WORDS, _ASK_CHARS, _PURPOSE_WORDS = 8, 50, 7
# Words that an abbreviated phrase must not end with.
_DANGLING = re.compile(
    r"(?: (?:an?|and|as|at|based|by|for|from|given|in|is|its|of|on|or|that|the|this|to|using|with|within))+$"
)
_TAG = re.compile(r"</?(?:think|tool_call|tool_response|tools)>")
_CALLS = (
    'The user asks: "{ask}" {tools} fits: {purpose}. {arguments}',
    'Asked: "{ask}" The tool for that is {tools} ({purpose}). {arguments}',
    'Request: "{ask}" I can use {tools}: {purpose}. {arguments}',
    'The request "{ask}" matches {tools} ({purpose}). {arguments}',
    'I need {tools} here ({purpose}), because the user says "{ask}" {arguments}',
    '"{ask}" is a case for {tools}: {purpose}. {arguments}',
    'The user wants this: "{ask}" Of the tools, {tools} can do it ({purpose}). {arguments}',
    '{tools} is what I should use: {purpose}. The user said: "{ask}" {arguments}',
)
_NOTHING_FITS = (
    'The user asks: "{ask}" There is {tools}. That does not fit, so I call nothing.',
    'Asked: "{ask}" On offer: {tools}. No tool fits, so there is nothing to call.',
    'Request: "{ask}" I have {tools}. This is another task, so no call.',
    '"{ask}" is not what the tools are for, I see {tools}. I make no call.',
    'On offer: {tools}. None of this is for "{ask}" I answer without a call.',
    'The user says "{ask}" I could use {tools}, but that does not help, so no call.',
    'Does a tool do this: "{ask}" No, there is only {tools}. I answer without a call.',
    'For "{ask}" I would need another tool than {tools}. So I call nothing.',
)
_ASK_BACK = (
    "Before I can call a tool I need to know more, so I make no call and ask.",
    "What I have is not enough for a call. I ask the user first.",
    "Something is still open, so no call yet: I ask.",
    "I should not guess. No call for now; I ask the user.",
)
_ANSWER = (
    "The response is here. I answer from it, no further call is needed.",
    "I have the tool's response, so I tell the user and make no call.",
    "With this response nothing is left to call; I answer.",
    "The tool has responded. Now I answer the user without another call.",
)
# Origins of arguments: the question, earlier turns, a tool response, the tool's default, inference.
_ORIGINS = (
    ("From the question", "From earlier turns", "From the response", "Defaults", "Inferred"),
    ("The question says", "Said before", "The response says", "By default", "I infer"),
    ("Given now", "Given before", "The tool returned", "Left at its default", "It follows that"),
)


def add_reasoning(conversation: Conversation, thoughts: Thoughts, share: float = 1.0) -> Conversation:
    """Keep, remove or add reasoning.

    Args:
        conversation: Any conversation.
        thoughts: ``keep`` leaves the conversation unchanged, ``none`` removes reasoning, ``template`` adds a rationale
            to each model turn that has none.
        share: Fraction of conversations, selected by ID, that have reasoning; it is removed from the others.
    """
    if thoughts == "none" or _draw(conversation.id, "share") >= share:
        return replace(conversation, messages=tuple(replace(one, reasoning=None) for one in conversation.messages))
    if thoughts == "keep":
        return conversation
    messages = list(conversation.messages)
    for index, message in enumerate(messages):
        if message.role == "assistant" and message.reasoning is None:
            messages[index] = replace(message, reasoning=rationale(conversation, index))
    return replace(conversation, messages=tuple(messages))


def rationale(conversation: Conversation, index: int) -> str | None:
    """Write a short reason for a model turn; the same row always gives the same text.

    Tool names are in backticks, arguments are written as ``name = value`` with the value in JSON.

    Returns:
        The rationale; ``None`` if no tools are available, so that there is nothing to decide.
    """
    message, before = conversation.messages[index], conversation.messages[:index]
    draw = int(_draw(conversation.id, str(index)) * 2**32)
    question = next((one.content for one in reversed(before) if one.role == "user"), "")
    asked = _excerpt(question)
    if message.tool_calls:
        return _reason_to_call(message.tool_calls, conversation.tools, before, asked, draw)
    if not conversation.tools:
        return None
    if before and before[-1].role == "tool":
        return _ANSWER[draw % len(_ANSWER)]
    if message.content.rstrip().endswith(("?", "？")):
        return _ASK_BACK[draw % len(_ASK_BACK)]
    return _NOTHING_FITS[draw % len(_NOTHING_FITS)].format(ask=asked, tools=_offer(conversation.tools))


def _reason_to_call(
    calls: Sequence[ToolCall], tools: Sequence[Tool], before: Sequence[Message], asked: str, draw: int
) -> str:
    counts = Counter(call.name for call in calls)
    by_name = {tool.name: tool for tool in tools}
    named = " and ".join(f"`{name}`" + (f" ({count} calls)" if count > 1 else "") for name, count in counts.items())
    purposes = [_purpose(by_name[name]) for name in counts if name in by_name]
    purpose = (
        purposes[0] if len(counts) == 1 and purposes else "each a part of it" if len(counts) > 1 else "it does this"
    )
    form = _CALLS[draw % len(_CALLS)]
    start = form.format(ask=asked, tools=named, purpose=purpose, arguments="")
    if len(counts) > 1:
        start = (
            start.replace(" fits:", " fit:").replace(" is what", " are what").replace("The tool for that is", "I take")
        )
    origins = _ORIGINS[draw // len(_CALLS) % len(_ORIGINS)]
    places = _places(before)
    arguments = _arguments(calls, by_name, places, origins, _BUDGET - _cost(start))
    return re.sub(r"\s+", " ", f"{start} {arguments}").strip()


def _places(before: Sequence[Message]) -> list[tuple[int, SearchableText]]:
    """The texts that a value may come from, the likeliest first, each with the index of its origin."""
    last = max((index for index, message in enumerate(before) if message.role == "user"), default=-1)
    texts: list[list[str]] = [[], [], []]
    for index, message in enumerate(before):
        texts[0 if index == last else 2 if message.role == "tool" else 1].append(message.content)
    return [(origin, SearchableText("\n".join(texts[origin]))) for origin in (0, 2, 1) if texts[origin]]


def _arguments(
    calls: Sequence[ToolCall],
    tools: dict[str, Tool],
    places: Sequence[tuple[int, SearchableText]],
    origins: Sequence[str],
    budget: int,
) -> str:
    """Name the origins of as many arguments as the budget allows, call by call."""
    found: list[tuple[int, int, int, str]] = []  # origin, call, position, text
    for number, call in enumerate(calls):
        for place, (name, value) in enumerate(call.arguments.items()):
            text = f"{_TAG.sub('', name)} = {dump_json(value)}"
            if not _TAG.search(text):
                found.append((_origin(call, name, value, tools, places), number, place, text))
    said: list[tuple[int, int, int, str]] = []
    for one in sorted(found):
        cost = _cost(one[3]) + (2 if any(one[:2] == other[:2] for other in said) else 7)
        if cost <= budget:
            said.append(one)
            budget -= cost
    parts: list[str] = []
    for number in range(len(calls)):
        groups: dict[int, list[str]] = {}
        for origin, _, _, text in sorted(one for one in said if one[1] == number):
            groups.setdefault(origin, []).append(text)
        part = ". ".join(f"{origins[origin]}: {', '.join(texts)}" for origin, texts in groups.items())
        if part:
            parts.append(f"Call {number + 1}: {_lower(part)}." if len(calls) > 1 else f"{part}.")
    total = sum(len(call.arguments) for call in calls)
    if len(said) < total:
        parts.append("The rest in the same way." if said else "The arguments follow from the request.")
    return " ".join(parts) or "It needs no arguments."


def _origin(
    call: ToolCall, name: str, value: Any, tools: dict[str, Tool], places: Sequence[tuple[int, SearchableText]]
) -> int:
    for origin, text in places:
        if text.contains(value):
            return origin
    properties = tools[call.name].parameters.get("properties") if call.name in tools else None
    schema = properties.get(name) if isinstance(properties, dict) else None
    is_default = isinstance(schema, dict) and "default" in schema and dump_json(schema["default"]) == dump_json(value)
    return 3 if is_default else 4


def _offer(tools: Sequence[Tool]) -> str:
    """Name tools with their purposes, briefly."""
    if len(tools) > 2:
        return f"{len(tools)} tools such as `{tools[0].name}` ({_purpose(tools[0])})"
    return " and ".join(f"`{tool.name}` ({_purpose(tool)})" for tool in tools)


def _purpose(tool: Tool) -> str:
    """The purpose of a tool: the beginning of its description."""
    sentence = re.split(r"(?<=[^\W\d_]{3})[.:;!\n]", _TAG.sub("", tool.description).strip())[0].replace("`", "")
    if not sentence:
        return "it does this by its name"
    short = " ".join(sentence.split()[:_PURPOSE_WORDS])[:60].rstrip(",.;:( ")
    return _lower(_DANGLING.sub("", short))


def _excerpt(text: str) -> str:
    """The beginning of a question, on one line, ending with punctuation."""
    clean = _TAG.sub("", text).replace("`", "'").replace('"', "'")
    words = clean.split()
    short = " ".join(words[:_ASK_WORDS])[:_ASK_CHARS].rstrip()
    if short != " ".join(words):
        return short + "…"
    return short if short.endswith((".", "?", "!", "。", "？")) else short + "."


def _lower(text: str) -> str:
    return text[:1].lower() + text[1:] if text[1:2].islower() or text[1:2] == " " else text


def _cost(text: str) -> int:
    """Approximate number of tokens of a text; digits and non-Latin letters count one each."""
    return len(re.findall(r"[a-zA-Z]{1,5}|\d|[^\sa-zA-Z\d]", text))


def _draw(*key: str) -> float:
    """A number in [0, 1) that depends only on the key."""
    return int.from_bytes(hashlib.sha256(repr(key).encode()).digest()[:8]) / 2**64
