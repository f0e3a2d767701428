"""Rendered chats: one ``text`` with the turn markers of Gemma, ChatML or Llama 3, and FunctionGemma's declarations."""

from __future__ import annotations

import json
import re
from typing import Any

from fc_lightning.conversation.parsing import CallSyntaxError
from fc_lightning.conversation.types import Conversation
from fc_lightning.data.formats.call_bodies import parse_gemma_object
from fc_lightning.data.formats.call_syntax import without_end_markers
from fc_lightning.data.formats.chat import COMMON_KEYS, read_chat
from fc_lightning.data.formats.format import Format
from fc_lightning.data.formats.gemini import lower_types
from fc_lightning.data.formats.values import Row, RowError, column_text

_TURN = re.compile(
    r"<start_of_turn>(?P<gemma>\w+)\n|<\|im_start\|>(?P<chatml>\w+)\n|<\|start_header_id\|>(?P<llama>\w+)<\|end_header_id\|>\n\n"
)
_END = ("<end_of_turn>", "<|im_end|>", "<|eot_id|>", "<|eom_id|>", "<|end_of_text|>", "<|endoftext|>", "<eos>", "</s>")
_DECLARATION = re.compile(
    r"<start_function_declaration>declaration:(?P<name>[\w.\-]+)(?P<body>\{.*?\})<end_function_declaration>", re.DOTALL
)
_RESPONSE = re.compile(
    r"<start_function_response>response:(?P<name>[\w.\-]+)(?P<body>\{.*?\})<end_function_response>", re.DOTALL
)


def _detect(row: Row) -> bool:
    return isinstance(row.get("text"), str) and bool(_TURN.search(row["text"]))


def _read(row: Row) -> Conversation:
    text = column_text(row, "text", needed=True)
    marks = list(_TURN.finditer(text))
    if not marks:
        raise RowError("`text` has no turn markers")
    tools = [_tool(match) for match in _DECLARATION.finditer(text)]
    turns: list[dict[str, Any]] = []
    for index, mark in enumerate(marks):
        end = marks[index + 1].start() if index + 1 < len(marks) else len(text)
        content = _DECLARATION.sub("", text[mark.end() : end])
        before, found, after = _split_responses(without_end_markers(content.rstrip(), _END))
        if before.strip() or not found:
            turns.append({"role": mark.group(mark.lastindex or 0), "content": before})
        turns += found
        if after.strip():
            turns.append({"role": mark.group(mark.lastindex or 0), "content": after})
    turns = [turn for turn in turns if turn["content"].strip() or turn["role"] not in ("developer", "system")]
    return read_chat({**row, "tools": row.get("tools") or tools}, turns)


def _tool(match: re.Match[str]) -> dict[str, Any]:
    try:
        declared = parse_gemma_object(match["body"])
    except CallSyntaxError as problem:
        raise RowError(f"the declaration of {match['name']}: {problem}") from None
    return {"name": match["name"], **lower_types(declared)}


def _split_responses(text: str) -> tuple[str, list[dict[str, Any]], str]:
    """The text before FunctionGemma's responses, these as turns, and the text after them."""
    matches = list(_RESPONSE.finditer(text))
    if not matches:
        return text, [], ""
    try:
        results = [{"role": "tool", "name": m["name"], "content": parse_gemma_object(m["body"])} for m in matches]
    except CallSyntaxError as problem:
        raise RowError(f"a function response: {problem}") from None
    results = [{**result, "content": json.dumps(result["content"], ensure_ascii=False)} for result in results]
    return text[: matches[0].start()], results, text[matches[-1].end() :]


FORMAT = Format(_read, _detect, COMMON_KEYS | {"text"}, ("text",))
