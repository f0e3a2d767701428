"""A model turn that was generated: parsed, and compared with what was expected in every way that the metrics count."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from fc_lightning.conversation.json_schema import fits_schema
from fc_lightning.conversation.parsing import Turn, parse_turn, same_calls, same_names
from fc_lightning.conversation.types import Tool, ToolCall
from fc_lightning.evaluation.alternatives import matches_alternatives

_LAST_TURN = 4  # turns from here on are one group


@dataclass(frozen=True)
class EvaluatedTurn:
    """A model turn that was generated and compared.

    Attributes:
        id: The conversation's.
        turn: Which of the conversation's model turns it is, from 0.
        category: The conversation's.
        prompt: What the model was given, as text.
        text: What it generated, tags included, without the token that ends the turn.
        finished: Whether it ended its turn itself; one that ran into the limit of new tokens did not.
        expected: The calls of the held-out conversation.
        predicted: The calls that could be read from ``text``.
        exact_match: The same calls, in any order, all of them readable, and the turn ended.
        name_match: The same tools, equally often.
        parsed: Every call that was begun could be read.
        grammar: The turn follows the grammar, and ended.
        alternatives_match: The calls are among the row's alternatives (``gold``); None without alternatives.
        unoffered: How many of the predicted calls are to tools that were not on offer.
        checked: How many of the predicted calls have arguments that the tool's schema can be asked of.
        valid: How many of these are valid.
        json_valid: In JSON mode: the answer is JSON; None otherwise.
        json_schema_valid: In JSON mode: it is valid by the row's schema.
        json_equal: In JSON mode: it equals the held-out answer.
        sample: Which of several generations from the same prompt it is.
        labelled: Whether it is known what was expected; false for prompts that came without an answer.
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

    def to_dict(self) -> dict[str, Any]:
        """The turn in JSON's types, as ``predictions.jsonl`` has it."""
        return asdict(self)

    @property
    def groups(self) -> tuple[str, ...]:
        """What the turn counts under besides all turns: its kind of calls, its number and its category.

        The kinds are ``none``, ``one``, ``parallel`` (one tool more than once) and ``several`` (different tools).
        """
        names = [call.name for call in self.expected]
        kind = "none" if not names else "one" if len(names) == 1 else "several" if len(set(names)) > 1 else "parallel"
        number = f"{self.turn + 1}" if self.turn + 1 < _LAST_TURN else f"{_LAST_TURN}+"
        return (f"calls/{kind}", f"turn/{number}", *([f"category/{self.category}"] if self.category else []))


def evaluate_turn(
    text: str,
    expected: Sequence[ToolCall],
    *,
    finished: bool = True,
    tools: Sequence[Tool] | None = None,
    gold: Sequence[Mapping[str, Any]] = (),
    response_schema: dict[str, Any] | None = None,
    answer: str = "",
    **about: Any,
) -> EvaluatedTurn:
    """Parse what was generated and compare it with the calls that were expected; none is an expectation too.

    Args:
        text: What was generated.
        expected: The calls of the held-out turn.
        finished: Whether the turn ended.
        tools: Those on offer; None if that is not known.
        gold: Alternatives, see :func:`fc_lightning.evaluation.metrics.matches_alternatives`.
        response_schema: In JSON mode, the schema of the answer.
        answer: In JSON mode, the held-out answer.
        about: ``id``, ``turn``, ``category``, ``prompt``, ``sample`` and ``labelled`` of :class:`EvaluatedTurn`.

    Example:
        >>> text = '<tool_call>{"name": "clock", "arguments": {"city": "Rome"}}</tool_call>'
        >>> evaluate_turn(text, [ToolCall("clock", {"city": "Rome"})]).exact_match
        True
        >>> evaluate_turn("It is noon.", []).exact_match, evaluate_turn("It is", [], finished=False).exact_match
        (True, False)
    """
    parsed = parse_turn(text)
    calls = parsed.tool_calls
    whole = not parsed.errors and finished
    return EvaluatedTurn(
        **{"id": "", "turn": 0, "category": "", "prompt": "", **about},
        text=text,
        finished=finished,
        expected=tuple(expected),
        predicted=calls,
        exact_match=whole and same_calls(calls, expected),
        name_match=whole and same_names(calls, expected),
        parsed=not parsed.errors,
        grammar=parsed.grammatical and finished,
        alternatives_match=whole and matches_alternatives(calls, gold, tools or []) if gold else None,
        **_by_schema(calls, tools),
        **({} if response_schema is None else _json_mode(parsed, finished, response_schema, answer)),
    )


def argument_pairs(calls: Sequence[ToolCall]) -> Counter[Hashable]:
    """The (call, argument) pairs: tool, argument and value of each; a call without arguments is a pair with nothing."""
    pairs: Counter[Hashable] = Counter()
    for call in calls:
        pairs.update(ToolCall(call.name, {name: value}) for name, value in call.arguments.items())
        pairs.update([] if call.arguments else [call])
    return pairs


def _by_schema(calls: Sequence[ToolCall], tools: Sequence[Tool] | None) -> dict[str, Any]:
    offered = {tool.name: tool.parameters for tool in tools or []}
    answers = [fits_schema(call.arguments, offered[call.name]) for call in calls if call.name in offered]
    unoffered = 0 if tools is None else sum(call.name not in offered for call in calls)
    return {"unoffered": unoffered, "checked": len(answers) - answers.count(None), "valid": answers.count(True)}


def _json_mode(parsed: Turn, finished: bool, schema: dict[str, Any], answer: str) -> dict[str, Any]:
    try:
        value = json.loads(parsed.content)
    except (ValueError, RecursionError):
        return {"json_valid": False, "json_schema_valid": False, "json_equal": False}
    try:
        # Equal as arguments are: the order of keys does not count, 1 and 1.0 are one number, 1 and true are not.
        equal = ToolCall("", {"answer": value}) == ToolCall("", {"answer": json.loads(answer)})
    except (ValueError, RecursionError):
        equal = False
    return {
        "json_valid": finished,
        "json_schema_valid": finished and fits_schema(value, schema) is True,
        "json_equal": finished and equal,
    }
