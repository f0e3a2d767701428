"""Gemini and Vertex AI: ``contents`` with ``parts``, ``functionCall`` and ``functionResponse``."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from fc_lightning.conversation.types import Conversation
from fc_lightning.data.formats.chat import COMMON_KEYS, decoded_list, read_chat, turns_of
from fc_lightning.data.formats.format import Format
from fc_lightning.data.formats.values import Row, RowError, as_list


def _detect(row: Row) -> bool:
    return bool(decoded_list(row.get("contents")))


def _read(row: Row) -> Conversation:
    system = row.get("systemInstruction", row.get("system_instruction"))
    if isinstance(system, dict):
        system = "\n".join(str(part.get("text") or "") for part in _parts(system, "the system instruction"))
    turns = enumerate(turns_of(row, ("contents",)), 1)
    messages = [message for number, turn in turns for message in _messages(turn, number)]
    return read_chat({**row, "tools": lower_types(_tools(row))}, messages, system if isinstance(system, str) else "")


def _tools(row: Row) -> Any:
    tools = row.get("tools")
    return as_list(tools) if isinstance(tools, str) else tools


def _parts(turn: dict[str, Any], name: str) -> list[dict[str, Any]]:
    parts = turn.get("parts")
    parts = [parts] if isinstance(parts, dict) else parts
    if not isinstance(parts, list) or not all(isinstance(part, dict) for part in parts):
        raise RowError(f"{name}: its `parts` are not a list of objects")
    return parts


def _messages(turn: dict[str, Any], number: int) -> Iterator[dict[str, Any]]:
    """A turn as OpenAI's messages: results are separate messages, before the text of the turn."""
    texts, thoughts, calls = [], [], []
    for part in _parts(turn, f"turn {number}"):
        call = part.get("functionCall") or part.get("function_call")
        result = part.get("functionResponse") or part.get("function_response")
        if isinstance(call, dict):
            calls.append({"name": call.get("name"), "arguments": call.get("args") or {}, "id": call.get("id")})
        elif isinstance(result, dict):
            content = result.get("response")
            yield {"role": "tool", "content": content, "name": result.get("name"), "tool_call_id": result.get("id")}
        elif part.get("thought") is True:
            thoughts.append({"type": "reasoning", "text": part.get("text") or ""})
        elif "text" in part:
            texts.append({"type": "text", "text": part["text"] or ""})
        else:
            texts.append({"type": next(iter(part), "empty")})  # a defect: images, files, code
    if texts or thoughts or calls:
        rest = {key: value for key, value in turn.items() if key not in ("parts", "role")}
        role = turn.get("role")
        if not role and number > 1:
            raise RowError(f"turn {number} has no role")
        yield {
            **rest,
            "role": role or "user",
            "content": [*thoughts, *texts],
            **({"tool_calls": calls} if calls else {}),
        }


def lower_types(schema: Any, is_schema: bool = True) -> Any:
    """A schema with JSON schema's type names instead of ``OBJECT`` and ``STRING``."""
    if isinstance(schema, list):
        return [lower_types(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    return {
        key: value.lower()
        if is_schema and key == "type" and isinstance(value, str)
        else lower_types(value, key != "properties")
        for key, value in schema.items()
    }


FORMAT = Format(
    _read,
    _detect,
    COMMON_KEYS | {"contents", "systemInstruction", "system_instruction", "toolConfig", "tool_config"},
    ("contents",),
)
