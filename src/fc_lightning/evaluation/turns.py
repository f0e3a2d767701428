"""Evaluated turns: a generated model turn, parsed and compared with the expected one in every way a metric counts."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from fc_lightning.conversation.json_schema import fits_schema
from fc_lightning.conversation.native_calls import NativeSyntax
from fc_lightning.conversation.parsing import parse_turn, same_calls, same_names
from fc_lightning.conversation.types import Tool, ToolCall
from fc_lightning.evaluation.alternatives import matches_alternatives

_LAST_TURN = 4  # turns from this number on are one group


@dataclass(frozen=True)
class EvaluatedTurn:
    """A generated model turn and its verdicts.

    Attributes:
        id: ID of the conversation.
        turn: Index of the turn among the conversation's model turns.
        category: Category of the conversation.
        prompt: Text given to the model.
        text: Generated text, tags included, without the token that ends the turn.
        finished: Whether the model ended its turn; false if it ran into the limit of new tokens.
        expected: Calls of the held-out conversation.
        predicted: Calls parsed from ``text``.
        exact_match: The same calls in any order, all of them parsed, and the turn ended.
        name_match: The same tools, each called the same number of times.
        parsed: Every call that was begun could be parsed.
        grammar: The turn follows the grammar, and ended.
        alternatives_match: The calls are among the row's alternatives (``gold``); None without alternatives.
        unoffered: Number of predicted calls to tools that are not offered.
        checked: Number of predicted calls whose arguments can be checked against a schema.
        valid: Number of checked calls that are valid.
        json_valid: JSON mode: the answer is JSON; otherwise None.
        json_schema_valid: JSON mode: the answer is valid under the row's schema.
        json_equal: JSON mode: the answer equals the held-out one.
        sample: Index among several generations from the same prompt.
        labelled: Whether the expected turn is known; false for prompts without an answer.
        perturbation: How the prompt was perturbed, a value of ``data.perturbations``; empty if it was not.
    """

    id: str
    turn: int
    category: str
    prompt: str
    text: str
    finished: bool
    expected: tuple[ToolCall, ...]
    predicted: tuple[ToolCall, ...]
    exact_match: bool
    name_match: bool
    parsed: bool
    grammar: bool
    alternatives_match: bool | None = None
    unoffered: int = 0
    checked: int = 0
    valid: int = 0
    json_valid: bool | None = None
    json_schema_valid: bool | None = None
    json_equal: bool | None = None
    sample: int = 0
    labelled: bool = True
    perturbation: str = ""

    def to_dict(self) -> dict[str, Any]:
        """The turn as JSON-serializable values, as written to ``predictions.jsonl``."""
        return asdict(self)

    @property
    def groups(self) -> tuple[str, ...]:
        """Groups that the turn is counted in: by its reference calls, its position and its category."""
        number = str(self.turn + 1) if self.turn + 1 < _LAST_TURN else f"{_LAST_TURN}+"
        groups = [f"calls/{call_pattern(self.expected)}", f"turn/{number}"]
        return (*groups, f"category/{self.category}") if self.category else tuple(groups)


def call_pattern(calls: Sequence[ToolCall]) -> str:
    """``none``, ``one``, ``parallel`` (one tool more than once) or ``several`` (different tools)."""
    if len(calls) < 2:
        return "one" if calls else "none"
    return "parallel" if len({call.name for call in calls}) == 1 else "several"


def evaluate_turn(
    text: str,
    expected: Sequence[ToolCall],
    *,
    finished: bool = True,
    syntax: NativeSyntax | None = None,
    tools: Sequence[Tool] | None = None,
    gold: Sequence[Mapping[str, Any]] = (),
    response_schema: dict[str, Any] | None = None,
    answer: str = "",
    **about: Any,
) -> EvaluatedTurn:
    """Parse a generated turn and compare it with the reference calls; an empty list means a turn without calls.

    Args:
        text: Generated text.
        expected: Calls of the held-out turn.
        finished: Whether the turn ended.
        syntax: The native tool language of the text; None for Hermes.
        tools: Offered tools; None if unknown.
        gold: Alternatives; see :func:`fc_lightning.evaluation.alternatives.matches_alternatives`.
        response_schema: JSON mode: schema of the answer.
        answer: JSON mode: the held-out answer.
        about: ``id``, ``turn``, ``category``, ``prompt``, ``sample``, ``labelled`` and ``perturbation`` of
            :class:`EvaluatedTurn`.

    Example:
        >>> text = '<tool_call>{"name": "clock", "arguments": {"city": "Rome"}}</tool_call>'
        >>> evaluate_turn(text, [ToolCall("clock", {"city": "Rome"})]).exact_match
        True
        >>> evaluate_turn("It is noon.", []).exact_match, evaluate_turn("It is", [], finished=False).exact_match
        (True, False)
    """
    parsed = syntax.parse_turn(text) if syntax else parse_turn(text, strict=True)
    calls = parsed.tool_calls
    all_parsed = not parsed.errors
    # A truncated turn, or one with an unreadable call, matches nothing: a server would not deliver it.
    complete = all_parsed and finished

    # Calls to offered tools are checked against the tool's schema; None is a schema that cannot be checked.
    schemas = {tool.name: tool.parameters for tool in tools or ()}
    checks = [fits_schema(call.arguments, schemas[call.name]) for call in calls if call.name in schemas]
    num_unoffered = 0 if tools is None else sum(call.name not in schemas for call in calls)

    json_verdicts: dict[str, Any] = {}
    if response_schema is not None:
        json_verdicts = _judge_json_answer(parsed.content, finished, response_schema, answer)

    return EvaluatedTurn(
        **{"id": "", "turn": 0, "category": "", "prompt": "", **about},
        text=text,
        finished=finished,
        expected=tuple(expected),
        predicted=calls,
        exact_match=complete and same_calls(calls, expected),
        name_match=complete and same_names(calls, expected),
        parsed=all_parsed,
        grammar=parsed.grammatical and finished,
        alternatives_match=complete and matches_alternatives(calls, gold, tools or []) if gold else None,
        unoffered=num_unoffered,
        checked=len(checks) - checks.count(None),
        valid=checks.count(True),
        **json_verdicts,
    )


def argument_pairs(calls: Sequence[ToolCall]) -> Counter[Hashable]:
    """Count each (tool, argument, value) of the calls; a call without arguments counts as one of its own."""
    pairs: Counter[Hashable] = Counter()
    for call in calls:
        pairs.update(ToolCall(call.name, {name: value}) for name, value in call.arguments.items())
        pairs.update([] if call.arguments else [call])
    return pairs


def _judge_json_answer(content: str, finished: bool, schema: dict[str, Any], answer: str) -> dict[str, bool]:
    try:
        value = json.loads(content)
    except (ValueError, RecursionError):
        return {"json_valid": False, "json_schema_valid": False, "json_equal": False}
    try:
        # Compared as arguments are: key order is ignored, 1 equals 1.0, and 1 does not equal true.
        equal = ToolCall("", {"answer": value}) == ToolCall("", {"answer": json.loads(answer)})
    except (ValueError, RecursionError):
        equal = False
    return {
        "json_valid": finished,
        "json_schema_valid": finished and fits_schema(value, schema) is True,
        "json_equal": finished and equal,
    }
