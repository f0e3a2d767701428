"""The metrics themselves, each with an example."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import groupby
from typing import Any

import torch
from torchmetrics import Metric, MetricCollection

from fc_lightning.evaluation.metrics.ratios import TurnRatio, TurnShare
from fc_lightning.evaluation.turns import EvaluatedTurn, argument_pairs


class ToolCallExactMatch(TurnShare):
    """Share of turns whose calls are exactly right: the same tools with the same arguments, in any order.

    A turn that should call nothing is right if it calls nothing and ends.

    Example:
        >>> from fc_lightning.evaluation.metrics import ToolCallExactMatch, evaluate_turn
        >>> from fc_lightning.conversation.parsing import ToolCall
        >>> metric = ToolCallExactMatch()
        >>> right, wrong = evaluate_turn("Hello.", []), evaluate_turn("Hello.", [ToolCall("clock", {})])
        >>> metric.update([right, wrong])
        >>> metric.compute()
        tensor(0.5000)
        >>> metric = ToolCallExactMatch(groups=["calls/none", "calls/one"])
        >>> metric([right, wrong])
        tensor([0.5000, 1.0000, 0.0000])
    """

    def holds(self, turn: EvaluatedTurn) -> bool:
        """See the class."""
        return turn.exact_match


class ToolCallAlternativesMatch(TurnShare):
    """Share of turns whose calls are among the row's alternatives; rows without alternatives do not count.

    Example:
        >>> from fc_lightning.evaluation.metrics import ToolCallAlternativesMatch, evaluate_turn
        >>> text = '<tool_call>{"name": "clock", "arguments": {"city": "ROME"}}</tool_call>'
        >>> metric = ToolCallAlternativesMatch()
        >>> metric([evaluate_turn(text, [], gold=[{"clock": {"city": ["Rome"], "zone": [""]}}])])
        tensor(1.)
    """

    def holds(self, turn: EvaluatedTurn) -> bool | None:
        """See the class."""
        return turn.alternatives_match


class ToolCallNameMatch(TurnShare):
    """Share of turns that call the right tools, whatever the arguments.

    Example:
        >>> from fc_lightning.evaluation.metrics import ToolCallNameMatch, evaluate_turn
        >>> from fc_lightning.conversation.parsing import ToolCall
        >>> text = '<tool_call>{"name": "clock", "arguments": {}}</tool_call>'
        >>> ToolCallNameMatch()([evaluate_turn(text, [ToolCall("clock", {"city": "Rome"})])])
        tensor(1.)
    """

    def holds(self, turn: EvaluatedTurn) -> bool:
        """See the class."""
        return turn.name_match


class ToolCallParseRate(TurnShare):
    """Share of turns in which every call that was begun can be read.

    Example:
        >>> from fc_lightning.evaluation.metrics import ToolCallParseRate, evaluate_turn
        >>> ToolCallParseRate()([evaluate_turn("<tool_call>{oops</tool_call>", []), evaluate_turn("Hello.", [])])
        tensor(0.5000)
    """

    def holds(self, turn: EvaluatedTurn) -> bool:
        """See the class."""
        return turn.parsed


class TurnGrammar(TurnShare):
    """Share of turns that follow the grammar: an optional closed think, then calls alone or an answer, then the end.

    Example:
        >>> from fc_lightning.evaluation.metrics import TurnGrammar, evaluate_turn
        >>> TurnGrammar()([evaluate_turn("<think>So.</think>Hello.", []), evaluate_turn("<think>So.", [])])
        tensor(0.5000)
    """

    def holds(self, turn: EvaluatedTurn) -> bool:
        """See the class."""
        return turn.grammar


class Overcall(TurnShare):
    """Share of turns with a call among those that should have none.

    Example:
        >>> from fc_lightning.evaluation.metrics import Overcall, evaluate_turn
        >>> text = '<tool_call>{"name": "clock", "arguments": {}}</tool_call>'
        >>> Overcall()([evaluate_turn(text, []), evaluate_turn("Hello.", [])])
        tensor(0.5000)
    """

    higher_is_better = False

    def holds(self, turn: EvaluatedTurn) -> bool | None:
        """See the class."""
        return None if turn.expected else bool(turn.predicted) or not turn.parsed


class MissedCall(TurnShare):
    """Share of turns without any call among those that should have one.

    Example:
        >>> from fc_lightning.evaluation.metrics import MissedCall, evaluate_turn
        >>> from fc_lightning.conversation.parsing import ToolCall
        >>> MissedCall()([evaluate_turn("Hello.", [ToolCall("clock", {})])])
        tensor(1.)
    """

    higher_is_better = False

    def holds(self, turn: EvaluatedTurn) -> bool | None:
        """See the class."""
        return not turn.predicted and turn.parsed if turn.expected else None


class Abstention(TurnShare):
    """Share of turns that rightly call nothing and end, among those that should have no call.

    Example:
        >>> from fc_lightning.evaluation.metrics import Abstention, evaluate_turn
        >>> Abstention()([evaluate_turn("Hello.", []), evaluate_turn("Hello, hello, hello", [], finished=False)])
        tensor(0.5000)
    """

    def holds(self, turn: EvaluatedTurn) -> bool | None:
        """See the class."""
        return None if turn.expected else turn.exact_match


class UnofferedCalls(TurnRatio):
    """Share of the predicted calls that are to tools which were not on offer.

    Example:
        >>> from fc_lightning.evaluation.metrics import UnofferedCalls, evaluate_turn
        >>> from fc_lightning.conversation.parsing import Tool
        >>> text = '<tool_call>{"name": "clock", "arguments": {}}</tool_call>'
        >>> UnofferedCalls()([evaluate_turn(text, [], tools=[Tool("weather")])])
        tensor(1.)
    """

    higher_is_better = False

    def count(self, turn: EvaluatedTurn) -> tuple[float, float]:
        """See the class."""
        return turn.unoffered, len(turn.predicted)


class ArgumentsValid(TurnRatio):
    """Share of the predicted calls whose arguments are valid by the tool's schema, among those to tools on offer.

    Example:
        >>> from fc_lightning.evaluation.metrics import ArgumentsValid, evaluate_turn
        >>> from fc_lightning.conversation.parsing import Tool
        >>> text = '<tool_call>{"name": "clock", "arguments": {}}</tool_call>'
        >>> ArgumentsValid()([evaluate_turn(text, [], tools=[Tool("clock", "", {"required": ["city"]})])])
        tensor(0.)
    """

    def count(self, turn: EvaluatedTurn) -> tuple[float, float]:
        """See the class."""
        return turn.valid, turn.checked


class ArgumentPrecision(TurnRatio):
    """Share of the predicted (call, argument) pairs that were expected.

    A pair is a tool, one of its arguments and the value; a call without arguments is one pair too.

    Example:
        >>> from fc_lightning.evaluation.metrics import ArgumentPrecision, evaluate_turn
        >>> from fc_lightning.conversation.parsing import ToolCall
        >>> text = '<tool_call>{"name": "clock", "arguments": {"city": "Rome", "zone": 2}}</tool_call>'
        >>> ArgumentPrecision()([evaluate_turn(text, [ToolCall("clock", {"city": "Rome"})])])
        tensor(0.5000)
    """

    def count(self, turn: EvaluatedTurn) -> tuple[float, float]:
        """See the class."""
        common, predicted, _ = _pair_counts(turn)
        return common, predicted


class ArgumentRecall(TurnRatio):
    """Share of the expected (call, argument) pairs that were predicted; see :class:`ArgumentPrecision`.

    Example:
        >>> from fc_lightning.evaluation.metrics import ArgumentRecall, evaluate_turn
        >>> from fc_lightning.conversation.parsing import ToolCall
        >>> text = '<tool_call>{"name": "clock", "arguments": {"city": "Rome", "zone": 2}}</tool_call>'
        >>> ArgumentRecall()([evaluate_turn(text, [ToolCall("clock", {"city": "Rome"})])])
        tensor(1.)
    """

    def count(self, turn: EvaluatedTurn) -> tuple[float, float]:
        """See the class."""
        common, _, expected = _pair_counts(turn)
        return common, expected


class ArgumentF1(TurnRatio):
    """Harmonic mean of precision and recall over all (call, argument) pairs; see :class:`ArgumentPrecision`.

    Example:
        >>> from fc_lightning.evaluation.metrics import ArgumentF1, evaluate_turn
        >>> from fc_lightning.conversation.parsing import ToolCall
        >>> text = '<tool_call>{"name": "clock", "arguments": {"city": "Rome", "zone": 2}}</tool_call>'
        >>> ArgumentF1()([evaluate_turn(text, [ToolCall("clock", {"city": "Rome"})])])
        tensor(0.6667)
    """

    def count(self, turn: EvaluatedTurn) -> tuple[float, float]:
        """See the class."""
        common, predicted, expected = _pair_counts(turn)
        return 2 * common, predicted + expected


class JsonAnswer(TurnShare):
    """In JSON mode, the share of answers that are valid JSON, valid by the row's schema, or equal to the held-out one.

    Args:
        what: ``json_valid``, ``json_schema_valid`` or ``json_equal``.
        kwargs: See :class:`TurnRatio`.

    Example:
        >>> from fc_lightning.evaluation.metrics import JsonAnswer, evaluate_turn
        >>> turn = evaluate_turn('{"n": 2}', [], response_schema={"required": ["n"]}, answer='{"n": 1}')
        >>> [JsonAnswer(what)([turn]).item() for what in ("json_valid", "json_schema_valid", "json_equal")]
        [1.0, 1.0, 0.0]
    """

    def __init__(self, what: str, **kwargs: Any):
        super().__init__(**kwargs)
        self.what = what

    def holds(self, turn: EvaluatedTurn) -> bool | None:
        """See the class."""
        return getattr(turn, self.what)


class PassAtK(TurnRatio):
    """How likely it is that one of k generations from a prompt is exactly right, after Chen et al., arXiv:2107.03374.

    All generations from a prompt are given in one update, one behind the other.

    Args:
        k: Generations to choose from; at most as many as there are.
        kwargs: See :class:`TurnRatio`.

    Example:
        >>> from fc_lightning.evaluation.metrics import PassAtK, evaluate_turn
        >>> from fc_lightning.conversation.parsing import ToolCall
        >>> some = [evaluate_turn(text, [], sample=n) for n, text in enumerate(["Hello.", "<tool_call>", "<think>"])]
        >>> PassAtK(1)(some[:2]), PassAtK(2)(some[:2])
        (tensor(0.5000), tensor(1.))
    """

    dtype_of_sums = torch.float32  # a prompt adds a likelihood

    def __init__(self, k: int, **kwargs: Any):
        super().__init__(**kwargs)
        self.k = k

    def update(self, turns: Sequence[EvaluatedTurn]) -> None:
        """Count prompts."""
        counted = []
        for _, some in groupby(turns, key=lambda turn: (turn.id, turn.turn)):
            samples = list(some)
            wrong = sum(not sample.exact_match for sample in samples)
            counted.append((samples[0], 1 - math.comb(wrong, self.k) / math.comb(len(samples), self.k), 1.0))
        self._add(counted)


def tool_call_metrics(
    prefix: str = "", groups: Sequence[str] = (), samples: int = 1, sync: bool = True
) -> MetricCollection:
    """All of them, under the names that they are logged by.

    Args:
        prefix: Of the names.
        groups: See :class:`TurnRatio`.
        samples: Generations from a prompt; with more than one there is ``pass_at_k`` too.
        sync: Whether ``compute`` sums over all ranks. torchmetrics reads this in the constructor only.
    """
    options: dict[str, Any] = {"groups": groups, "sync_on_compute": sync}
    metrics: dict[str, Metric | MetricCollection] = {
        "exact_match": ToolCallExactMatch(**options),
        "alternatives_match": ToolCallAlternativesMatch(**options),
        "name_match": ToolCallNameMatch(**options),
        "parse_rate": ToolCallParseRate(**options),
        "grammar": TurnGrammar(**options),
        "unoffered": UnofferedCalls(**options),
        "arguments_valid": ArgumentsValid(**options),
        "argument_precision": ArgumentPrecision(**options),
        "argument_recall": ArgumentRecall(**options),
        "argument_f1": ArgumentF1(**options),
        "overcall": Overcall(**options),
        "missed_call": MissedCall(**options),
        "abstention": Abstention(**options),
        **{what: JsonAnswer(what, **options) for what in ("json_valid", "json_schema_valid", "json_equal")},
    }
    if samples > 1:
        metrics[f"pass_at_{samples}"] = PassAtK(samples, **options)
    return MetricCollection(metrics, prefix=prefix, compute_groups=False)


def _pair_counts(turn: EvaluatedTurn) -> tuple[int, int, int]:
    """Of the (call, argument) pairs: those in common, the predicted and the expected ones."""
    predicted, expected = argument_pairs(turn.predicted), argument_pairs(turn.expected)
    return (predicted & expected).total(), predicted.total(), expected.total()
