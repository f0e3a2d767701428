"""Logs of OpenAI's API: a request and its response side by side."""

from __future__ import annotations

from typing import Any

from fc_lightning.conversation.types import Conversation
from fc_lightning.data.formats.chat import COMMON_KEYS, decoded_list, read_chat, tools_of
from fc_lightning.data.formats.format import Format
from fc_lightning.data.formats.values import Row, RowError


def _detect(row: Row) -> bool:
    return _request(row) is not None


def _request(row: Row) -> dict[str, Any] | None:
    for key in ("request", "body"):
        request = row.get(key)
        request = request.get("body", request) if isinstance(request, dict) else None
        if isinstance(request, dict) and decoded_list(request.get("messages")):
            return request
    return None


def _read(row: Row) -> Conversation:
    request, response = _request(row), row.get("response")
    if request is None:
        raise RowError("the row has no request with `messages`")
    response = response.get("body", response) if isinstance(response, dict) else None
    choices = response.get("choices") if isinstance(response, dict) else None
    answers = (
        [choice.get("message") for choice in choices if isinstance(choice, dict)] if isinstance(choices, list) else []
    )
    if not answers or not isinstance(answers[0], dict):
        raise RowError("the row has a request without a response, so there is no answer to learn")
    turns = [*(decoded_list(request["messages"]) or []), answers[0]]
    if not all(isinstance(turn, dict) for turn in turns):
        raise RowError("the messages of the request are not objects")
    return read_chat({**row, "tools": tools_of(request)}, turns)


FORMAT = Format(_read, _detect, COMMON_KEYS | {"request", "body", "response"}, ("request", "response"))
