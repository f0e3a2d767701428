"""Amazon Bedrock's Converse API: blocks with ``toolUse`` and ``toolResult``, tools under ``toolConfig``."""

from __future__ import annotations

from typing import Any

from fc_lightning.conversation.types import Conversation
from fc_lightning.data.formats.anthropic import read_blocks
from fc_lightning.data.formats.chat import COMMON_KEYS, objects_in
from fc_lightning.data.formats.format import Format
from fc_lightning.data.formats.values import Row

_KEYS = COMMON_KEYS | {"messages", "system", "toolConfig", "modelId", "inferenceConfig"}


def _detect(row: Row) -> bool:
    turns = objects_in(row, "messages")
    blocks = [block for turn in turns for block in objects_in(turn, "content")]
    return bool(turns and row.get("toolConfig")) or any("toolUse" in one or "toolResult" in one for one in blocks)


def _read(row: Row) -> Conversation:
    config = row.get("toolConfig")
    specs = config.get("tools") if isinstance(config, dict) else None
    return read_blocks({**row, "tools": _tools(specs)} if isinstance(specs, list) else row, _to_anthropic)


def _tools(specs: list[Any]) -> list[Any]:
    """Tools without Bedrock's two wrappings, ``toolSpec`` and ``inputSchema.json``."""
    tools = []
    for value in specs:
        spec = value.get("toolSpec", value) if isinstance(value, dict) else value
        if isinstance(spec, dict) and isinstance(spec.get("inputSchema"), dict):
            spec = {**spec, "inputSchema": spec["inputSchema"].get("json", spec["inputSchema"])}
        tools.append(spec)
    return tools


def _to_anthropic(block: dict[str, Any]) -> dict[str, Any]:
    use, result, thought = (block.get(key) for key in ("toolUse", "toolResult", "reasoningContent"))
    if isinstance(use, dict):
        return {**use, "type": "tool_use", "id": use.get("toolUseId")}
    if isinstance(result, dict):
        return {
            "type": "tool_result",
            "content": _result(result.get("content")),
            "tool_use_id": result.get("toolUseId"),
        }
    if isinstance(thought, dict) and isinstance(thought.get("reasoningText"), dict):
        return {"type": "reasoning", "text": thought["reasoningText"].get("text")}
    return block


def _result(content: Any) -> Any:
    """A result: its text, its JSON value, or the list of its blocks."""
    if not isinstance(content, list) or len(content) != 1 or not isinstance(content[0], dict):
        return content
    return next((content[0][key] for key in ("json", "text") if key in content[0]), content)


FORMAT = Format(_read, _detect, _KEYS)
