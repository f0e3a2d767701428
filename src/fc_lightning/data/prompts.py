"""Prompts for prediction: from a file of rows, or one question with a tools file."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fc_lightning.chat_template.template import ChatTemplate, ChatTemplateError
from fc_lightning.conversation.parsing import dump_json, tool_from_value
from fc_lightning.conversation.types import Conversation, Message, Tool
from fc_lightning.data.formats import RowError, read_row
from fc_lightning.data.sources import DataError, Source


def read_prompts(path: str | None, question: str | None, tools: str | None) -> list[Conversation]:
    """Read conversations that end before a model turn.

    Args:
        path: A file of rows with ``messages`` and ``tools``, or in any other known format.
        question: A single question instead.
        tools: A JSON file with a list of tools, for the question and for rows without tools.

    Raises:
        DataError: If a row cannot be read or ends with a model turn, if there is no row, or for a file with a question.
    """
    if path is not None and question is not None:
        raise DataError("give either a file of prompts (`--prompts`) or one question (`--question`)")
    offered = read_tools(tools) if tools else ()
    if path is None:
        return [Conversation("question", (Message("user", question or ""),), offered)]
    out = []
    for place, row in Source(path).rows():
        try:
            if isinstance(row, RowError):
                raise row
            conversation = read_row(row, None, place.rsplit("/", 1)[-1])
        except RowError as error:
            raise DataError(f"{place}: {error}") from error
        if conversation.defects:
            raise DataError(f"{place}: {conversation.defects[0]}")
        if conversation.messages[-1].role == "assistant":
            raise DataError(f"{place}: the last message is a model turn, so there is nothing to predict")
        own = conversation.tools or offered
        out.append(Conversation(conversation.id, conversation.messages, own, conversation.category))
    if not out:
        raise DataError(f"{path}: no rows (`--prompts`)")
    return out


def read_tools(path: str) -> tuple[Tool, ...]:
    """Read the tools of a JSON file.

    Raises:
        DataError: If it cannot be read.
    """
    try:
        value = json.loads(Path(path).read_text(encoding="utf-8"))
        return tuple(map(tool_from_value, value if isinstance(value, list) else [value]))
    except FileNotFoundError:
        raise DataError(f"{path}: file not found (`--tools`)") from None
    except (OSError, ValueError, RecursionError) as error:  # CallSyntaxError is a ValueError
        raise DataError(f"{path}: not a list of tools (`--tools`): {error}") from error


def prompt_rows(conversations: Sequence[Conversation], template: ChatTemplate) -> list[dict[str, Any]]:
    """Encode prompts in the columns of prepared prompts, with empty references."""
    try:
        rendered = [template.render(template.messages(one), one, generation_prompt=True) for one in conversations]
    except ChatTemplateError as error:
        raise DataError(f"the prompts cannot be rendered: {error}") from error
    empty = dict.fromkeys(("expected", "gold", "response_schema", "answer", "perturbation"), "")
    return [
        {
            **empty,
            "id": one.id,
            "turn": sum(message.role == "assistant" for message in one.messages),
            "category": one.category,
            "tools": dump_json([tool.to_openai() for tool in one.tools]),
            "input_ids": encoded.input_ids,
        }
        for one, encoded in zip(conversations, template.encode(rendered), strict=True)
    ]
