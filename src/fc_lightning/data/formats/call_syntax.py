"""Syntaxes of calls in text: finds and reads the calls of a model turn, whatever model it was written for.

No code is executed: values are JSON or Python literals, and a Python call is parsed, not run.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from fc_lightning.conversation.parsing import CALL_OPEN, CallSyntaxError, parse_literal
from fc_lightning.conversation.types import ToolCall
from fc_lightning.data.formats.call_bodies import FENCE, parse_calls, typed_argument
from fc_lightning.data.formats.python_calls import Tools
from fc_lightning.data.formats.values import read_call

# A broken call is searched for its end a limited number of times, so that hostile text costs linear time.
_MAX_CLOSING_MARKERS = 16
_MAX_CALLS = 1000


class Delimiter(NamedTuple):
    """The markers around calls in a text."""

    open: str  # the opening marker
    close: str  # the closing marker
    closes_at_end: bool = False  # whether the end of the text may stand for the closing marker


DELIMITERS = (
    Delimiter(CALL_OPEN, "</tool_call>"),
    Delimiter("<TOOLCALL>", "</TOOLCALL>"),
    Delimiter("<tool_calls>", "</tool_calls>"),
    Delimiter("<function_calls>", "</function_calls>"),
    Delimiter("<functioncall>", "<|endoftext|>", True),
    Delimiter("[TOOL_CALLS]", "</s>", True),
    Delimiter("<|python_tag|>", "<|eom_id|>", True),
    Delimiter("<start_function_call>", "<end_function_call>", True),
    Delimiter("<|tool_call>", "<tool_call|>", True),
    Delimiter("<|tool_call|>", "<|/tool_call|>", True),
    Delimiter("<|action_start|><|plugin|>", "<|action_end|>", True),
    Delimiter("<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>"),
    Delimiter("<|tool_calls_section_begin|>", "<|tool_calls_section_end|>"),
    Delimiter("```tool_code", "```"),
    Delimiter("```tool_call", "```"),
)
_END_MARKERS = ("[/TOOL_CALLS]", "<|eot_id|>", "<|eom_id|>", "<|im_end|>", "<end_of_turn>", "</s>", "<|endoftext|>")
_BY_OPEN = {delimiter.open: delimiter for delimiter in DELIMITERS}
_FUNCTION_TAG = "<function="
_OPEN = re.compile("|".join(map(re.escape, [*_BY_OPEN, _FUNCTION_TAG])))

_REASONING = re.compile(
    r"\s*(?:<(think|thinking|reasoning|thought|scratch_pad)>(?P<tag>.*?)</\1>|\[THINK\](?P<bracket>.*?)\[/THINK\])",
    re.DOTALL,
)
_ACTION = re.compile(
    r"(?P<before>.*?)^[ \t]*Action:[ \t]*(?P<name>[^\n]{1,200})\n\s*Action Input:[ \t]*(?P<input>.*)",
    re.DOTALL | re.MULTILINE,
)
_FINAL_ANSWER = re.compile(r"(?P<before>.*?)^[ \t]*Final Answer:\s*(?P<answer>.*)", re.DOTALL | re.MULTILINE)
_SUSPICIOUS = re.compile(
    r"<[|/]?(?:tool|function)[ _]?calls?\b|\[/?TOOL_CALLS?\]|^[^\S\n]*Action Input:|<invoke\b|<function=|</?arg_key>"
    r"|\"(?:tool_)?name\"\s*:\s*\"[^\"]{1,128}\"\s*,\s*\"(?:arguments|parameters)\"\s*:|\[\s{0,9}[\w.]{1,128}\((?:\s{0,9}|\s{0,9}\w{1,128}\s{0,9}=[^()\n]{0,999})\)\s{0,9}[,\]]",
    re.IGNORECASE | re.MULTILINE,
)


@dataclass
class ParsedText:
    """The text of a model turn, split into its parts."""

    content: str = ""  # the text without reasoning and calls, stripped
    reasoning: str | None = None  # the reasoning at its beginning; None without any
    calls: tuple[ToolCall, ...] = ()  # the calls that could be read
    errors: tuple[str, ...] = ()  # one sentence for each call that could not be read
    has_text_after_call: bool = False  # whether text follows a call


def split_reasoning(text: str) -> tuple[str | None, str]:
    """Split reasoning between tags from the text after it."""
    match = _REASONING.match(text)
    if match is None:
        return None, text
    reasoning = match["bracket"] if match["tag"] is None else match["tag"]
    return reasoning.strip(), text[match.end() :]


def parse_text(text: str, tools: Tools) -> ParsedText:
    """Parse the text of a model turn.

    Calls between markers are read whatever their name. A text that is a call as a whole, without markers, is read as
    one only if it names available tools: it might be an answer in JSON or in Python otherwise.
    """
    reasoning, rest = split_reasoning(text)
    if _OPEN.search(rest):
        return _parse_marked(rest, reasoning, tools)
    react = _parse_react(rest, reasoning, tools)
    if react is not None:
        return react
    if tools and (calls := _parse_unmarked(rest, tools)):
        return ParsedText("", reasoning, calls)
    return ParsedText(without_end_markers(rest).strip(), reasoning)


def looks_like_call(text: str) -> bool:
    """Whether a text that was read as an answer contains something like a call."""
    return bool(_SUSPICIOUS.search(text))


def _parse_marked(text: str, reasoning: str | None, tools: Tools) -> ParsedText:
    calls: list[ToolCall] = []
    errors: list[str] = []
    outside: list[str] = []
    position, after_call = 0, False
    while match := _OPEN.search(text, position):
        if len(calls) + len(errors) >= _MAX_CALLS:
            errors.append(f"more than {_MAX_CALLS:,} calls")
            break
        outside.append(text[position : match.start()])
        after_call = after_call or bool((calls or errors) and outside[-1].strip())
        position, found, error = _take_calls(text, match, tools)
        calls += found
        errors += [f"call {len(calls) + len(errors) + 1}: {error}"] if error else []
    outside.append(without_end_markers(text[position:]))
    after_call = after_call or bool(calls and outside[-1].strip())
    return ParsedText("".join(outside).strip(), reasoning, tuple(calls), tuple(errors), after_call)


def without_end_markers(text: str, markers: Sequence[str] = _END_MARKERS) -> str:
    """A text without the markers at its end, and the whitespace around them."""
    whole, end = len(text), len(text.rstrip())
    while marker := next((marker for marker in markers if text.endswith(marker, 0, end)), ""):
        whole = end = end - len(marker)
        while end and text[end - 1].isspace():
            whole = end = end - 1
    return text[:whole]


def _take_calls(text: str, match: re.Match[str], tools: Tools) -> tuple[int, list[ToolCall], str]:
    """Read the calls after an opening marker: where they end, the calls, and what is wrong with them."""
    if match[0] == _FUNCTION_TAG:
        delimiter, start = Delimiter(_FUNCTION_TAG, "</function>"), match.start()
    else:
        delimiter, start = _BY_OPEN[match[0]], match.end()
    end, first_end, error = start - 1, -1, ""
    for _ in range(_MAX_CLOSING_MARKERS):
        end = text.find(delimiter.close, end + 1)
        if end < 0:
            break
        body_end = end + len(delimiter.close) if delimiter.open == _FUNCTION_TAG else end
        try:
            return end + len(delimiter.close), parse_calls(text[start:body_end], tools), ""
        except CallSyntaxError as problem:
            error = error or str(problem)
            first_end = end if first_end < 0 else first_end
    if first_end >= 0:
        return first_end + len(delimiter.close), [], error
    if not delimiter.closes_at_end:
        return len(text), [], f"{match[0]} is not closed: {text[start : start + 80]}"
    following = text.find(delimiter.open, start)
    end = len(text) if following < 0 else following
    try:
        return end, parse_calls(without_end_markers(text[start:end]), tools), ""
    except CallSyntaxError as problem:
        return end, [], str(problem)


def _parse_unmarked(text: str, tools: Tools) -> tuple[ToolCall, ...]:
    """The calls of a text that is nothing but calls of available tools; none if it is anything else."""
    fence = FENCE.fullmatch(re.sub(r"^\s{0,9}Action:\s{0,9}(?=```)", "", text))
    body = (fence["body"] if fence else text).strip()
    if not body or not (
        body[0] in "[{" or body.split("(", 1)[0].strip() in tools or body.split("\n", 1)[0].strip() in tools
    ):
        return ()
    try:
        calls = parse_calls(body, tools)
    except CallSyntaxError:
        return ()
    return tuple(calls) if all(call.name in tools for call in calls) else ()


def _parse_react(text: str, reasoning: str | None, tools: Tools) -> ParsedText | None:
    """ReAct: ``Thought:``, ``Action:`` and ``Action Input:``, or a ``Final Answer:``."""
    if "Action:" in text and (match := _ACTION.fullmatch(text)):
        name, given = match["name"].strip(), match["input"].strip()
        thought = _thought(match["before"], reasoning)
        if name.lower() == "finish" and name not in tools:
            return ParsedText(_final_answer(given), thought)
        try:
            call = read_call({"name": name, "arguments": _action_input(given, name, tools)})
        except CallSyntaxError as problem:
            return ParsedText("", thought, (), (f"call 1: {problem}",))
        return ParsedText("", thought, (call,))
    if "Final Answer:" in text and text.lstrip().startswith(("Thought:", "Final Answer:")):
        match = _FINAL_ANSWER.fullmatch(text)
        return match and ParsedText(match["answer"].strip(), _thought(match["before"], reasoning))
    return None


def _thought(text: str, reasoning: str | None) -> str | None:
    return text.strip().removeprefix("Thought:").strip() or reasoning


def _final_answer(text: str) -> str:
    try:
        value = parse_literal(text)
    except CallSyntaxError:
        return text
    return str(value["final_answer"]) if isinstance(value, dict) and "final_answer" in value else text


def _action_input(text: str, name: str, tools: Tools) -> Any:
    """The arguments of an action: an object, or a bare text for a tool with one argument."""
    properties = tools[name].parameters.get("properties") if name in tools else None
    if isinstance(properties, dict) and len(properties) == 1 and not text.startswith("{"):
        return {next(iter(properties)): typed_argument(text, name, next(iter(properties)), tools)}
    return text
