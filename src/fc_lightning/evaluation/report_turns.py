"""Turns of the report: the reference calls next to what each evaluation has generated."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

from fc_lightning.chat_template.tool_formats import CHAT_FORMATS
from fc_lightning.evaluation.error_types import Piece, compare_calls, error_type
from fc_lightning.evaluation.report_tables import EvaluatedRun
from fc_lightning.evaluation.turns import EvaluatedTurn

_MAX_TEXT = 240  # characters of a question, and of a text that is shown instead of calls
_MAX_LINES = 8
_CHANGES = {
    (False, True): "corrected",
    (True, False): "now wrong",
    (False, False): "still wrong",
    (True, True): "still correct",
}


@dataclass(frozen=True)
class Side:
    """A generated or expected turn."""

    name: str  # `expected`, or the name of an evaluation
    verdict: str  # an error type, or `correct`
    pieces: list[Piece]


@dataclass(frozen=True)
class ComparedTurn:
    """A turn in all evaluations."""

    turn: EvaluatedTurn  # of the last evaluation
    tags: dict[str, str]  # what turns are filtered by: kind, category, and change since the first evaluation
    question: str
    expected: Side
    generated: list[Side]


def compared_turns(columns: Sequence[EvaluatedRun], per_kind: int) -> list[ComparedTurn]:
    """Turns of the last evaluation by kind, the most frequent error type first and correct turns last.

    Args:
        columns: The evaluations.
        per_kind: The number of turns of each kind, from the first.
    """
    turns = [turn for turn in columns[-1].turns if turn.labelled]
    kinds = [error_type(turn) for turn in turns]
    order = sorted(range(len(turns)), key=lambda place: (not kinds[place], -kinds.count(kinds[place]), kinds[place]))
    by_kind = groupby(order, key=lambda place: kinds[place])
    known = [{(turn.id, turn.turn, turn.sample): turn for turn in column.turns} for column in columns]
    return [
        _compare(turns[place], [(column.name, found) for column, found in zip(columns, known, strict=True)])
        for _, places in by_kind
        for place in list(places)[:per_kind]
    ]


def question_of(prompt: str) -> str:
    """The text of the last user turn in a rendered prompt, without the tools that precede it in a first turn."""
    for chat_format in CHAT_FORMATS:
        opening = f"{chat_format.turn_start}user{chat_format.role_end}"
        if opening in prompt:
            text = prompt.rpartition(opening)[2].partition(chat_format.turn_end)[0]
            return text.rpartition("</tools>")[2].strip()
    return prompt.strip()


def _compare(
    turn: EvaluatedTurn, columns: Sequence[tuple[str, dict[tuple[str, int, int], EvaluatedTurn]]]
) -> ComparedTurn:
    key = (turn.id, turn.turn, turn.sample)
    versions = [(name, turns[key]) for name, turns in columns if key in turns]
    tags = {"kind": error_type(turn) or "correct", "category": turn.category or "none"}
    if len(versions) > 1:
        first_name, first = versions[0]
        tags[f"change since {first_name}"] = _CHANGES[first.exact_match, turn.exact_match]
    return ComparedTurn(
        turn=turn,
        tags=tags,
        question=_shorten(question_of(turn.prompt)),
        expected=Side("expected", "", compare_calls(turn.expected, turn.predicted)),
        generated=[Side(name, error_type(one) or "correct", _generated(one)) for name, one in versions],
    )


def _generated(turn: EvaluatedTurn) -> list[Piece]:
    """The predicted calls; the text itself where the turn has none, or is not a readable, complete turn."""
    if not turn.parsed or not turn.finished:
        return [(_shorten(turn.text), True)]
    pieces = compare_calls(turn.predicted, turn.expected)
    return pieces if turn.predicted else [*pieces, (f": {_shorten(turn.text)}", False)]


def _shorten(text: str) -> str:
    short = "\n".join(text[:_MAX_TEXT].split("\n")[:_MAX_LINES])
    return short if short == text else f"{short}…"
