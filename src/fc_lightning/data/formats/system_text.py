"""System texts: the tools in them, and the prose that stays without the instructions around the tools."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from functools import lru_cache
from typing import Any

from fc_lightning.conversation.parsing import CallSyntaxError
from fc_lightning.conversation.types import Tool
from fc_lightning.data.formats.values import as_list, read_tools

_TOOLS_OPEN, _TOOLS_CLOSE = "<tools>", "</tools>"
# Prose and descriptions may contain tags too: this many are tried as the borders of a block of tools.
_MAX_TOOLS_TAGS = 8
# The schema of a call, with two levels of objects inside, as Hermes rows print it.
_OBJECT = r"\{(?:[^{}]|\{(?:[^{}]|\{[^{}]{0,300}\}){0,300}\}){0,300}\}"
# All patterns have a bounded lookahead, so that a hostile text costs linear time.
_BOILERPLATE = tuple(
    re.compile(pattern + r"[^\S\n]{0,9}", re.IGNORECASE)
    for pattern in (
        # Any sentence about the tags around the tools, which are gone.
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


_TAG_BEFORE = re.compile(r"[<\[]\w{1,40}[>\]]\s{0,99}$")
_TAG_AFTER = re.compile(r"^\s{0,99}[<\[]/\w{1,40}[>\]]")
_MAX_LISTS = 8  # lists that are tried
_LIST_START = re.compile(r"\[\s*\{")
_OBJECT_START = re.compile(
    r"^[^\S\n]{0,9}\{(?=\s{0,99}\"(?:type|function|name|description|parameters)\")", re.MULTILINE
)
_SCHEMA_KEYS = ("parameters", "input_schema", "inputSchema")
_TOOL_KEYS = {"parameters", "input_schema", "inputSchema", "description"}
_INTRODUCTION = re.compile(
    r"(?:You are a helpful assistant with access to the following functions\. )?Use them if required -\s*$|"
    r"(?:(?<=[.!?\n])|^)[^.!?\n]{0,300}:\s*$"
)
# A sentence with an example of a call: another syntax than the one that is trained.
_SYNTAX_SENTENCE = re.compile(r"[^.!?\n]{0,300}\[\s*[\w.]{1,60}\([^\n\]]{0,300}\][^.!?\n]{0,100}[.!?]?[^\S\n]{0,9}")


def blocks(text: str, tag: str) -> tuple[list[str], str]:
    """The text inside each pair of tags, and the text outside of all of them."""
    opening, closing = f"<{tag}>", f"</{tag}>"
    inside: list[str] = []
    outside: list[str] = []
    position = 0
    while (start := text.find(opening, position)) >= 0 and (end := text.find(closing, start)) >= 0:
        outside.append(text[position:start])
        inside.append(text[start + len(opening) : end])
        position = end + len(closing)
    return inside, "".join([*outside, text[position:]])


def split_system(text: str, read: bool = True) -> tuple[str, tuple[Tool, ...], str]:
    """Split a system text into its prose, the tools that it offers, and an error about them.

    The chat template writes the tools, so text that only introduces them is removed. A text without tools between
    tags (the schema of a JSON-mode row is not a tool) is kept unchanged. Without ``read`` the tools are parsed only
    where their position is ambiguous.
    """
    spans: list[tuple[int, int]] = []
    problems: list[str] = []
    tools: tuple[Tool, ...] = ()
    candidates = list(_tools_spans(text))
    if len(candidates) == 1 and not read:
        spans, candidates = candidates, []
    for start, end in candidates:
        spans.append((start, end))
        try:
            tools = read_tools(text[start:end])
        except CallSyntaxError as problem:
            problems.append(str(problem))
        else:
            break
    if not spans:
        return _split_bare(text) if read else (text, (), "")
    is_readable = len(spans) > len(problems)
    start, end = spans[-1] if is_readable else spans[0]
    rest = text[: start - len(_TOOLS_OPEN)] + "\n" + text[end + len(_TOOLS_CLOSE) :]
    return _without_boilerplate(rest), tools, "" if is_readable else problems[0]


def _split_bare(text: str) -> tuple[str, tuple[Tool, ...], str]:
    """Split a system text whose tools are a bare list, as in ToolACE and ToolLLaMA, or objects, as in Glaive and Llama.

    The sentence that introduces them is removed, and so are sentences that demand another syntax of calls.
    """
    for start in list(_LIST_START.finditer(text))[:_MAX_LISTS]:
        for value, end in _list_at(text, start.start()):
            try:
                tools = read_tools(value)
            except CallSyntaxError:
                continue
            are_tools = all(isinstance(one, dict) and _TOOL_KEYS & {*one, *_function(one)} for one in value)
            if tools and are_tools and any(map(_has_schema, value)):
                return _joined([text[: start.start()], text[end:]]), tools, ""
    objects = list(_objects_in(text))
    if not any(_has_schema(value) for value, _, _ in objects):
        return text, (), ""  # names and descriptions of something else, such as products
    try:
        tools = read_tools([value for value, _, _ in objects])
    except CallSyntaxError as problem:
        return text, (), str(problem)
    edges = [0, *(edge for _, start, end in objects for edge in (start, end)), len(text)]
    parts = [text[start:end] for start, end in zip(edges[::2], edges[1::2], strict=True)]
    return (_joined(parts), tools, "") if tools else (text, (), "")


def _joined(parts: list[str]) -> str:
    """The prose around tools."""
    for index in range(len(parts) - 1):
        parts[index] = _INTRODUCTION.sub("", _TAG_BEFORE.sub("", parts[index])).rstrip()
    parts[-1] = _SYNTAX_SENTENCE.sub("", _TAG_AFTER.sub("", parts[-1])).lstrip()
    return re.sub(r"\n{3,}", "\n\n", "\n".join(part for part in parts if part.strip(" \t\n,;"))).strip()


def _function(value: dict[str, Any]) -> dict[str, Any]:
    function = value.get("function")
    return function if isinstance(function, dict) else value


def _has_schema(tool: dict[str, Any]) -> bool:
    return not set(_SCHEMA_KEYS).isdisjoint(_function(tool))


def _objects_in(text: str) -> Iterator[tuple[dict[str, Any], int, int]]:
    """The JSON objects at the beginning of a line that declare a tool, with their borders.

    An example of a call is no declaration: it has no schema.
    """
    end = 0
    for line in _OBJECT_START.finditer(text):
        start = line.end() - 1
        if start < end:  # inside of the object before
            continue
        try:
            value, end = json.JSONDecoder().raw_decode(text, start)
        except (ValueError, RecursionError):
            continue
        function = _function(value)
        schema = next((function[key] for key in _SCHEMA_KEYS if isinstance(function.get(key), dict)), None)
        has_schema = schema is not None and not {"type", "properties"}.isdisjoint(schema)
        if isinstance(function.get("name"), str) and (has_schema or "description" in function):
            yield value, start, end


def _list_at(text: str, start: int) -> Iterator[tuple[list[Any], int]]:
    """The list of JSON or of Python literals that begins at an index, with its end."""
    try:
        value, end = json.JSONDecoder().raw_decode(text, start)
        yield value, end
    except (ValueError, RecursionError):
        for end in [match.end() for match in re.finditer(r"\}\s*\]", text[start:])][-_MAX_LISTS:]:
            try:
                yield as_list(text[start : start + end]), start + end
            except CallSyntaxError:
                continue


@lru_cache(1024)  # without its tools, most rows of a dataset have the same system text
def _without_boilerplate(text: str) -> str:
    for pattern in _BOILERPLATE:
        text = pattern.sub("", text)
    return re.sub(r"\n{3,}", "\n\n", text).strip()


def _tools_spans(text: str) -> Iterator[tuple[int, int]]:
    """Possible borders of the block of tools, the likeliest first; empty tags are prose about it."""
    closes = [match.start() for match in re.finditer(_TOOLS_CLOSE, text)]
    opens = [match.end() for match in re.finditer(_TOOLS_OPEN, text)]
    for start in reversed(opens[-_MAX_TOOLS_TAGS:]):
        ends = [end for end in closes if end >= start][:_MAX_TOOLS_TAGS]
        if ends and text[start : ends[0]].strip():
            yield from ((start, end) for end in ends)
