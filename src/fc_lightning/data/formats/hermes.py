"""The readers: one function a source, from its row to a conversation."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from functools import lru_cache
from typing import Any

from fc_lightning.conversation.parsing import CALL_CLOSE, CALL_OPEN, THINK_CLOSE, THINK_OPEN, CallSyntaxError
from fc_lightning.conversation.types import Conversation, Role, Tool
from fc_lightning.data.formats.builder import (
    ROLES,
    ConversationBuilder,
    Row,
    RowError,
    column_text,
    read_tools,
    turn_text,
    turns_of,
)

DEFAULT_SYSTEM_PROMPT = """\
You are a helpful assistant with access to the following tools.

Before calling a tool, think carefully about which tool to use.
Write your reasoning between <think> and </think>."""

_TOOLS_OPEN, _TOOLS_CLOSE = "<tools>", "</tools>"
# So many tags are tried as the ends of a block of tools: prose and descriptions may hold some too.
_MAX_TOOLS_TAGS = 8
# The schema of a call, with two levels of objects inside, as Hermes rows print it.
_OBJECT = r"\{(?:[^{}]|\{(?:[^{}]|\{[^{}]{0,300}\}){0,300}\}){0,300}\}"
# All of them look ahead only so far: a hostile text costs linear time.
_BOILERPLATE = tuple(
    re.compile(pattern + r"[^\S\n]{0,9}", re.IGNORECASE)
    for pattern in (
        # Any sentence about the tags in which the tools stood: they no longer stand there.
        r"(?:^|(?<=[.!?\n]))[^.!?\n]{0,300}<tools>\s{0,9}</tools>[^.!?\n]{0,300}[.!?]",
        r"You are a function calling AI model\.",
        r"You may call one or more functions to assist with the user query\.",
        r"If available tools are not relevant in assisting with (?:the )?user query, just respond in natural "
        r"conversational language\.",
        r"Don['’]t make assumptions about what values to plug into (?:the )?(?:functions|json schema)\.",
        r"After calling (?:&|and) executing the functions, you will be provided with function results within "
        r"<tool_response>\s{0,9}</tool_response> XML tags\.",
        r"Here are the available tools:",
        rf"Use the following pydantic model json schema for each tool call you will make:\s{{0,9}}(?:{_OBJECT})?",
        rf"For each (?:extraction )?function call,? return a json object[^.:\n]{{0,300}}:\s{{0,9}}(?:{_OBJECT})?",
        r"Each function call should be enclosed within <tool_call>\s{0,9}</tool_call> XML tags"
        r"(?: as follows)?[.:]?",
        r"(?:Example:\s{0,9})?<tool_call>\s{0,9}\{[^{}]{0,300}\}\s{0,9}</tool_call>",
    )
)

_INK = re.compile(r"\S")
_GLAIVE_TURN = re.compile(r"^(USER|ASSISTANT|FUNCTION RESPONSE):", re.MULTILINE)
_GLAIVE_ROLES: dict[str, Role] = {"USER": "user", "ASSISTANT": "assistant", "FUNCTION RESPONSE": "tool"}
_GLAIVE_TOOLS, _GLAIVE_CALL, _GLAIVE_END = "Use them if required -", "<functioncall>", "<|endoftext|>"
_GLAIVE_INTRODUCTION = "You are a helpful assistant with access to the following functions. "
_GLAIVE_ARGUMENTS = re.compile(r"""\{\s*"name":\s*"([^"]*)",\s*"arguments":\s*'(.*)'\s*\}""", re.DOTALL)


def read_hermes(row: Row) -> Conversation:
    """Hermes: ``conversations`` whose texts hold the tools, thoughts, calls and responses between tags.

    JSON-mode rows offer no tools: their answer is JSON of a ``schema``, a column or a block in the system text.
    """
    draft = ConversationBuilder()
    tools, schema = draft.read_tools(row.get("tools")), row.get("schema")
    raw_turns: list[tuple[str, str]] = []
    # `messages` with such texts are taken for OpenAI's unless this format is named.
    for number, (name, role, turn) in enumerate(turns_of(row, ("conversations", "messages")), 1):
        text = turn_text(turn, number)
        raw_turns.append(("model" if name in ("gpt", "assistant") else name, text))
        if role == "system":
            schema = schema or next(iter(_blocks(text, "schema")[0]), None)
            text, offered, problem = _split_system(text, read=not tools)
            tools = tools or offered
            draft.defects += [f"tools: {problem}"] if problem and not tools else []
            draft.add(number, role, text)
        elif role == "assistant":
            draft.add_text_turn(number, text)
        elif role == "tool" and (responses := _blocks(text, "tool_response")[0]):
            if _blocks(text, "tool_response")[1].strip():
                draft.defects.append(f"turn {number}: text outside of <tool_response>")
            for response in responses:
                draft.add(number, role, response)
        else:
            draft.add(number, role, text)
    if schema and not tools:
        draft.read_schema(schema)
    return draft.finish(row, tools, raw_turns)


def read_columns(row: Row) -> Conversation:
    """Columns: ``query``, ``tools``, ``thoughts`` and ``tool_call``, one exchange a row."""
    query = column_text(row, "query", needed=True)
    tools, thoughts = column_text(row, "tools"), column_text(row, "thoughts")
    call, prompt = column_text(row, "tool_call"), column_text(row, "system_prompt")
    draft = ConversationBuilder()
    draft.add(1, "system", prompt)
    draft.add(1, "user", query)
    raw_call = f"{CALL_OPEN}\n{call}\n{CALL_CLOSE}"
    if call.lstrip().startswith(CALL_OPEN):
        raw_call = call
        draft.add_text_turn(2, call, thoughts)
    else:
        draft.add(2, "assistant", "", thoughts, draft.read_calls(2, row.get("tool_call")))
    prompt = prompt or DEFAULT_SYSTEM_PROMPT
    raw_turns = [
        ("user", f"{prompt}\n\nAvailable tools:\n{tools}\n\nUser query:\n{query}"),
        ("model", f"{THINK_OPEN}\n{thoughts}\n{THINK_CLOSE}\n{raw_call}"),
    ]
    return draft.finish(row, draft.read_tools(row.get("tools")), raw_turns)


def read_sharegpt(row: Row) -> Conversation:
    """ShareGPT as LLaMA-Factory writes it: ``function_call`` and ``observation`` turns, ``system`` column."""
    draft = ConversationBuilder()
    draft.add(0, "system", column_text(row, "system"))
    roles: dict[str, Role] = {**ROLES, "function_call": "assistant"}
    for number, (name, role, turn) in enumerate(turns_of(row, ("conversations",), roles), 1):
        text = turn_text(turn, number)
        if name == "function_call":
            # Whatever the assistant says and calls without a break is one turn of the model: after the end
            # token of a first turn nobody would open a second. (LLaMA-Factory's own rows always alternate.)
            before = draft.take_back_assistant()
            calls = before.tool_calls + draft.read_calls(number, text)
            draft.add(number, role, before.content, None, calls)
        else:
            draft.add(number, role, text)
    return draft.finish(row, draft.read_tools(row.get("tools")))


def read_openai(row: Row) -> Conversation:
    """OpenAI's ``messages`` with ``tool_calls``, or with typed parts for text, reasoning and calls."""
    draft = ConversationBuilder()
    for number, (_, role, turn) in enumerate(turns_of(row, ("messages", "conversations")), 1):
        text, thought, part_calls = draft.read_parts(number, turn.get("content"))
        if role != "assistant":
            draft.add(number, role, text)
            continue
        for key in ("reasoning_content", "reasoning", "thinking"):
            thought = thought or (turn[key] if isinstance(turn.get(key), str) else "")
        calls = [draft.read_calls(number, turn.get(key)) for key in ("tool_calls", "function_call")]
        draft.add(number, role, text, thought, draft.read_calls(number, part_calls) + calls[0] + calls[1])
    return draft.finish(row, draft.read_tools(row.get("tools") or row.get("functions")))


def read_xlam(row: Row) -> Conversation:
    """xLAM: ``query``, ``tools`` and ``answers``, one exchange a row."""
    draft = ConversationBuilder()
    draft.add(1, "user", column_text(row, "query", needed=True))
    draft.add(2, "assistant", "", None, draft.read_calls(2, row.get("answers")))
    return draft.finish(row, draft.read_tools(row.get("tools")))


def read_prompt_completion(row: Row) -> Conversation:
    """TRL: ``prompt`` and ``completion`` with ``tools``; each of the two a list of messages or a text."""
    messages: list[Any] = []
    for key, role in (("prompt", "user"), ("completion", "assistant")):
        value = row.get(key)
        messages += value if isinstance(value, list) else [{"role": role, "content": value}]
    # Calls that a text makes stand between tags in it.
    reader = read_openai if isinstance(row.get("completion"), list) else read_hermes
    return reader({**row, "messages": messages, "conversations": None})


def read_glaive(row: Row) -> Conversation:
    """Glaive v2: ``system`` with the functions, and ``chat``, a text that names each speaker at the start of a line."""
    draft = ConversationBuilder()
    prompt, tools = _split_glaive_system(column_text(row, "system"), draft)
    draft.add(0, "system", prompt)
    chat = column_text(row, "chat", needed=True).strip()
    # A blank line stands before each turn: "USER:" on a line of its own inside of a text is text.
    marks = [m for m in _GLAIVE_TURN.finditer(chat) if not m.start() or chat[m.start() - 2 : m.start()] == "\n\n"]
    if not marks or marks[0].start():
        raise RowError("`chat` does not begin with a speaker, as `USER:`")
    for number, (mark, end) in enumerate(zip(marks, [*(m.start() for m in marks[1:]), len(chat)], strict=True), 1):
        text = chat[mark.end() : end].strip()
        role = _GLAIVE_ROLES[mark[1]]
        if role != "assistant":
            draft.add(number, role, text)
            continue
        said, *calls = text.replace(_GLAIVE_END, "").split(_GLAIVE_CALL)
        draft.add(number, role, said, None, draft.read_calls(number, [_glaive_call(call) for call in calls]))
    return draft.finish(row, tools)


def _split_glaive_system(text: str, draft: ConversationBuilder) -> tuple[str, tuple[Tool, ...]]:
    """What a Glaive system text says beside the functions, and these: JSON objects, one behind the other."""
    prompt, marker, written = text.strip().removeprefix("SYSTEM:").partition(_GLAIVE_TOOLS)
    values, decoder, end = [], json.JSONDecoder(), 0
    try:
        while following := _INK.search(written, end):
            value, end = decoder.raw_decode(written, following.start())
            values.append(value)
    except ValueError as problem:
        draft.defects.append(f"tools: function {len(values) + 1} of the system text is no JSON ({problem})")
        return text, ()
    return prompt.removesuffix(_GLAIVE_INTRODUCTION) if marker else prompt, draft.read_tools(values)


def _glaive_call(text: str) -> Any:
    """A call of Glaive's: its arguments are JSON between single quotes, in which quotes may stand as they are."""
    quoted = _GLAIVE_ARGUMENTS.fullmatch(text.strip())
    return {"name": quoted[1], "arguments": quoted[2].replace("\\'", "'")} if quoted else text


def _blocks(text: str, tag: str) -> tuple[list[str], str]:
    """What stands between each pair of a tag's marks, and the text outside of them all."""
    opening, closing = f"<{tag}>", f"</{tag}>"
    inside: list[str] = []
    outside: list[str] = []
    position = 0
    while (start := text.find(opening, position)) >= 0 and (end := text.find(closing, start)) >= 0:
        outside.append(text[position:start])
        inside.append(text[start + len(opening) : end])
        position = end + len(closing)
    return inside, "".join([*outside, text[position:]])


def _split_system(text: str, read: bool = True) -> tuple[str, tuple[Tool, ...], str]:
    """Take a system text apart: what is left of it, the tools that it offers, and what is wrong with them.

    The chat template writes the tools, so nothing stays that only introduces them. A text that offers none
    between tags (the schema of a JSON-mode row is no tool) is somebody's own and stays whole. Unless the tools
    themselves are wanted (``read``), they are only read to find out where they stand, if that is in doubt.
    """
    spans: list[tuple[int, int]] = []
    problems: list[str] = []
    tools: tuple[Tool, ...] = ()
    places = list(_tools_spans(text))
    if len(places) == 1 and not read:
        spans, places = places, []
    for start, end in places:
        spans.append((start, end))
        try:
            tools = read_tools(text[start:end])
        except CallSyntaxError as problem:
            problems.append(str(problem))
        else:
            break
    if not spans:
        return text, (), ""
    found = len(spans) > len(problems)
    start, end = spans[-1] if found else spans[0]
    rest = text[: start - len(_TOOLS_OPEN)] + "\n" + text[end + len(_TOOLS_CLOSE) :]
    return _without_boilerplate(rest), tools, "" if found else problems[0]


@lru_cache(1024)  # without its tools, a data set's system text is mostly the same in every row
def _without_boilerplate(text: str) -> str:
    for pattern in _BOILERPLATE:
        text = pattern.sub("", text)
    return re.sub(r"\n{3,}", "\n\n", text).strip()


def _tools_spans(text: str) -> Iterator[tuple[int, int]]:
    """Where a block of tools may begin and end, the likeliest first; empty tags are prose about them."""
    closes = [match.start() for match in re.finditer(_TOOLS_CLOSE, text)]
    opens = [match.end() for match in re.finditer(_TOOLS_OPEN, text)]
    for start in reversed(opens[-_MAX_TOOLS_TAGS:]):
        ends = [end for end in closes if end >= start][:_MAX_TOOLS_TAGS]
        if ends and text[start : ends[0]].strip():
            yield from ((start, end) for end in ends)
