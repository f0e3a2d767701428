"""Error types: what is wrong with a turn, and where its calls differ from the expected ones."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from fc_lightning.conversation.parsing import dump_json
from fc_lightning.conversation.types import ToolCall
from fc_lightning.evaluation.turns import EvaluatedTurn

Piece = tuple[str, bool]  # of a call as text, and whether it differs


def error_type(turn: EvaluatedTurn) -> str:
    """The first error type that applies to a turn; empty if the turn is an exact match."""
    expected = Counter(call.name for call in turn.expected)
    predicted = Counter(call.name for call in turn.predicted)
    if turn.exact_match:
        return ""
    rules = (
        ("unreadable call", not turn.parsed),
        ("unterminated turn", not turn.finished),
        ("missing call", not predicted),
        ("unnecessary call", not expected),
        ("tool not offered", turn.unoffered > 0),
        ("wrong tool", set(expected) != set(predicted)),
        ("too many calls", predicted.total() > expected.total()),
        ("too few calls", predicted.total() < expected.total()),
        ("accepted alternative", turn.alternatives_match is True),
    )
    return next((name for name, applies in rules if applies), None) or _argument_error(turn)


def compare_calls(calls: Sequence[ToolCall], others: Sequence[ToolCall]) -> list[Piece]:
    """Write calls in pieces and mark what differs from the others; each call is compared with the most similar one."""
    unmatched = list(others)
    pieces: list[Piece] = []
    for call in calls:
        candidates = [other for other in unmatched if other.name == call.name]
        other = max(candidates, key=lambda candidate: len(_items(call) & _items(candidate)), default=None)
        if other is not None:
            unmatched.remove(other)
        pieces += [(", ", False)] if pieces else []
        pieces += [(call.name, other is None), ("(", False)]
        for number, (name, value) in enumerate(call.arguments.items()):
            same = other is not None and name in other.arguments and _same(value, other.arguments[name])
            pieces += [(", ", False)] if number else []
            pieces.append((f"{name}={dump_json(value)}", not same))
        pieces.append((")", False))
    return pieces or [("no call", bool(others))]


def _argument_error(turn: EvaluatedTurn) -> str:
    """How the arguments are wrong in a turn that calls the reference tools."""
    expected = Counter((call.name, name) for call in turn.expected for name in call.arguments)
    predicted = Counter((call.name, name) for call in turn.predicted for name in call.arguments)
    if expected - predicted:
        return "missing argument"
    return "unexpected argument" if predicted - expected else "wrong value"


def _items(call: ToolCall) -> set[ToolCall]:
    return {ToolCall("", {name: value}) for name, value in call.arguments.items()}


def _same(first: Any, second: Any) -> bool:
    return ToolCall("", {"": first}) == ToolCall("", {"": second})
