"""Amazon Bedrock's Converse API: blocks with ``toolUse`` and ``toolResult``, tools under ``toolConfig``."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from fc_lightning.conversation.types import Conversation
from fc_lightning.data.formats.chat import COMMON_KEYS, decoded_list, read_chat, turns_of
from fc_lightning.data.formats.values import Row

KEYS = COMMON_KEYS | {"messages", "system", "toolConfig", "modelId", "inferenceConfig"}


def is_bedrock(row: Row) -> bool:
    """Whether a message has a block of Bedrock's, or the row its ``toolConfig``."""
    turns = [turn for turn in decoded_list(row.get("messages")) or [] if isinstance(turn, dict)]
    blocks = [block for turn in turns for block in _blocks(turn) if isinstance(block, dict)]
    return bool(turns and row.get("toolConfig")) or any("toolUse" in one or "toolResult" in one for one in blocks)


def _blocks(turn: dict[str, Any]) -> list[Any]:
    content = turn.get("content")
    return content if isinstance(content, list) else []


def read_bedrock(row: Row) -> Conversation:
    """Read a row of the Converse API."""
    config, system = row.get("toolConfig"), row.get("system")
    specs = config.get("tools") if isinstance(config, dict) else None
    tools = [_tool(one) for one in specs] if isinstance(specs, list) else row.get("tools")
    if isinstance(system, list):
        system = "\n".join(str(block.get("text") or "") for block in system if isinstance(block, dict))
    turns = [message for turn in turns_of(row, ("messages",)) for message in _messages(turn)]
    return read_chat({**row, "tools": tools}, turns, system if isinstance(system, str) else "")


def _tool(value: Any) -> Any:
    spec = value.get("toolSpec") if isinstance(value, dict) else None
    schema = spec.get("inputSchema") if isinstance(spec, dict) else None
    if not isinstance(spec, dict):
        return value
    return {**spec, "inputSchema": schema["json"]} if isinstance(schema, dict) and "json" in schema else spec


def _messages(turn: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """A turn as OpenAI's messages: results are messages of their own, before the text beside them."""
    rest, calls = [], []
    for block in _blocks(turn):
        use = block.get("toolUse") if isinstance(block, dict) else None
        result = block.get("toolResult") if isinstance(block, dict) else None
        thought = block.get("reasoningContent") if isinstance(block, dict) else None
        if isinstance(use, dict):
            calls.append({"name": use.get("name"), "arguments": use.get("input"), "id": use.get("toolUseId")})
        elif isinstance(result, dict):
            yield {"role": "tool", "content": _result(result.get("content")), "tool_call_id": result.get("toolUseId")}
        elif isinstance(thought, dict) and isinstance(thought.get("reasoningText"), dict):
            rest.append({"type": "reasoning", "text": thought["reasoningText"].get("text")})
        else:
            rest.append(block)
    if not isinstance(turn.get("content"), list):
        yield turn
    elif rest or calls:
        yield {**turn, "content": rest, **({"tool_calls": calls} if calls else {})}


def _result(content: Any) -> Any:
    """A result: its text, its JSON value, or the list of its blocks."""
    if not isinstance(content, list) or len(content) != 1 or not isinstance(content[0], dict):
        return content
    return next((content[0][key] for key in ("json", "text") if key in content[0]), content)
