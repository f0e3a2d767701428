"""Berkeley Function Calling Leaderboard: ``question``, ``function`` and ``ground_truth`` with every accepted value."""

from __future__ import annotations

from typing import Any

from fc_lightning.conversation.types import Conversation
from fc_lightning.data.formats.chat import COMMON_KEYS, decoded_list, read_chat
from fc_lightning.data.formats.format import Format
from fc_lightning.data.formats.values import Row, RowError, as_list


def _detect(row: Row) -> bool:
    return "question" in row and "function" in row


def _read(row: Row) -> Conversation:
    turns = decoded_list(row.get("question")) or []
    if len(turns) == 1 and isinstance(turns[0], list):
        turns = turns[0]
    if not turns or not all(isinstance(turn, dict) for turn in turns):
        raise RowError("`question` is not one conversation (rows with several exchanges have no reference calls)")
    gold = as_list(row.get("ground_truth"))
    if not gold:  # irrelevance: no tool fits, and there is no reference answer
        raise RowError("the row has no `ground_truth`, so there is no answer to learn")
    call = [_call(one) for one in gold]
    return read_chat({**row, "gold": gold}, [*turns, {"role": "assistant", "content": "", "tool_calls": call}])


def _call(alternatives: Any) -> Any:
    """The call with the first accepted value of each argument; optional arguments are omitted."""
    if not isinstance(alternatives, dict) or len(alternatives) != 1:
        return alternatives
    name, accepted = next(iter(alternatives.items()))
    if not isinstance(accepted, dict):
        return alternatives
    return {"name": name, "arguments": {key: _resolved(value) for key, value in _first_values(accepted).items()}}


def _first_values(accepted: dict[str, Any]) -> dict[str, Any]:
    """The first accepted value of each key; a key whose first value is empty is omitted."""
    first = {key: values[0] if isinstance(values, list) else values for key, values in accepted.items() if values != []}
    return {key: value for key, value in first.items() if value != ""}


def _resolved(value: Any) -> Any:
    """An object, or each object of a list, has accepted values for its keys too; what is inside of these is literal."""
    if isinstance(value, list):
        return [_first_values(item) if isinstance(item, dict) else item for item in value]
    return _first_values(value) if isinstance(value, dict) else value


FORMAT = Format(_read, _detect, COMMON_KEYS | {"question", "function", "ground_truth"}, ("question", "function"))
