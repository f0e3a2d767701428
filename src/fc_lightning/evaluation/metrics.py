"""Metrics over generated model turns: ratios of two sums, exact for any split of the turns over batches and ranks.

:data:`RULES` names every metric and says how a turn counts in it; :class:`TurnRatio` sums that up. The verdict on each
turn, such as ``exact_match``, comes from `evaluation/turns.py`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import torch
from torchmetrics import Metric, MetricCollection

from fc_lightning.evaluation.turns import EvaluatedTurn, argument_pairs, evaluate_turn
from fc_lightning.evaluation.ways import meets_request

__all__ = [
    "RULES",
    "CountingRule",
    "EvaluatedTurn",
    "PassAtK",
    "TurnRatio",
    "evaluate_turn",
    "groups_of",
    "tool_call_metrics",
]


@dataclass(frozen=True)
class CountingRule:
    """How one turn counts in a ratio.

    Attributes:
        description: The ratio, in one line.
        count: What the turn adds to the numerator and to the denominator.
        higher_is_better: Whether a good model has a high ratio.
    """

    description: str
    count: Callable[[EvaluatedTurn], tuple[int, int]]
    higher_is_better: bool = True


def share_of_turns(
    description: str, holds: Callable[[EvaluatedTurn], bool | None], higher_is_better: bool = True
) -> CountingRule:
    """The rule of a fraction of turns: those for which ``holds`` is true, among those for which it is not None."""

    def count(turn: EvaluatedTurn) -> tuple[int, int]:
        verdict = holds(turn)
        return int(verdict is True), int(verdict is not None)

    return CountingRule(description, count, higher_is_better)


def _calls_something(turn: EvaluatedTurn) -> bool:
    """Whether the turn begins a call, readable or not."""
    return bool(turn.predicted) or not turn.parsed


def _pair_counts(turn: EvaluatedTurn) -> tuple[int, int, int]:
    """The number of common, predicted and expected (tool, argument, value) triples."""
    predicted, expected = argument_pairs(turn.predicted), argument_pairs(turn.expected)
    return (predicted & expected).total(), predicted.total(), expected.total()


def _argument_precision(turn: EvaluatedTurn) -> tuple[int, int]:
    common, predicted, _ = _pair_counts(turn)
    return common, predicted


def _argument_recall(turn: EvaluatedTurn) -> tuple[int, int]:
    common, _, expected = _pair_counts(turn)
    return common, expected


def _argument_f1(turn: EvaluatedTurn) -> tuple[int, int]:
    common, predicted, expected = _pair_counts(turn)
    return 2 * common, predicted + expected


RULES: dict[str, CountingRule] = {
    "exact_match": share_of_turns(
        "turns that terminate and make exactly the reference calls, in any order", lambda turn: turn.exact_match
    ),
    "alternatives_match": share_of_turns(
        "turns whose calls are among the row's accepted alternatives", lambda turn: turn.alternatives_match
    ),
    "name_match": share_of_turns("turns that call the reference tools", lambda turn: turn.name_match),
    "parse_rate": share_of_turns("turns in which every call can be parsed", lambda turn: turn.parsed),
    "grammar": share_of_turns(
        "turns that follow the output grammar: reasoning that is closed, if any, then calls or an answer, then the end",
        lambda turn: turn.grammar,
    ),
    "unoffered": CountingRule(
        "predicted calls to tools that are not offered",
        lambda turn: (turn.unoffered, len(turn.predicted)),
        higher_is_better=False,
    ),
    "arguments_valid": CountingRule(
        "predicted calls to offered tools whose arguments are valid under the tool's schema",
        lambda turn: (turn.valid, turn.checked),
    ),
    "argument_precision": CountingRule(
        "predicted (tool, argument, value) triples that are in the reference", _argument_precision
    ),
    "argument_recall": CountingRule("reference (tool, argument, value) triples that are predicted", _argument_recall),
    "argument_f1": CountingRule("harmonic mean of argument precision and recall", _argument_f1),
    "overcall": share_of_turns(
        "turns with a call, among those that should have none",
        lambda turn: None if turn.expected else _calls_something(turn),
        higher_is_better=False,
    ),
    "missed_call": share_of_turns(
        "turns without a call, among those that should have one",
        lambda turn: not _calls_something(turn) if turn.expected else None,
        higher_is_better=False,
    ),
    "abstention": share_of_turns(
        "turns that terminate without a call, among those that should have none",
        lambda turn: None if turn.expected else turn.exact_match,
    ),
    "way_match": share_of_turns(
        "turns that answer, call, ask a follow-up question or refuse, as the row's category says", meets_request
    ),
    "json_valid": share_of_turns("JSON mode: answers that are valid JSON", lambda turn: turn.json_valid),
    "json_schema_valid": share_of_turns(
        "JSON mode: answers that are valid under the row's schema", lambda turn: turn.json_schema_valid
    ),
    "json_equal": share_of_turns("JSON mode: answers equal to the reference", lambda turn: turn.json_equal),
}


class TurnRatio(Metric):
    """A ratio over turns: overall, and within groups of turns.

    The value is NaN where no turn counts.

    Args:
        name: Which ratio, a key of :data:`RULES`.
        groups: Names of groups; see :attr:`EvaluatedTurn.groups`.
        kwargs: Arguments of ``torchmetrics.Metric``.

    Example:
        >>> from fc_lightning.conversation.types import ToolCall
        >>> from fc_lightning.evaluation.metrics import TurnRatio, evaluate_turn
        >>> text = '<tool_call>{"name": "clock", "arguments": {"city": "Rome", "zone": 2}}</tool_call>'
        >>> clock, hello = evaluate_turn(text, [ToolCall("clock", {"city": "Rome"})]), evaluate_turn("Hello.", [])
        >>> metric = TurnRatio("exact_match")
        >>> metric.update([clock, hello])
        >>> metric.compute()
        tensor(0.5000)
        >>> TurnRatio("exact_match", groups=["calls/none", "calls/one"])([clock, hello])
        tensor([0.5000, 1.0000, 0.0000])
        >>> [TurnRatio(f"argument_{name}")([clock]).item() for name in ("precision", "recall")]
        [0.5, 1.0]
    """

    is_differentiable = False
    full_state_update = False
    numerator: torch.Tensor
    denominator: torch.Tensor

    def __init__(self, name: str, groups: Sequence[str] = (), **kwargs: Any):
        super().__init__(**kwargs)
        self.name = name
        self.groups = tuple(groups)
        for state in ("numerator", "denominator"):  # (1 + groups,), all turns first
            self.add_state(state, default=torch.zeros(1 + len(self.groups), dtype=torch.long), dist_reduce_fx="sum")

    @property
    def higher_is_better(self) -> bool:  # type: ignore[override]
        """Whether a good model has a high ratio."""
        return RULES[self.name].higher_is_better

    def update(self, turns: Sequence[EvaluatedTurn]) -> None:
        """Count turns."""
        self._add([(turn, *RULES[self.name].count(turn)) for turn in turns])

    def compute(self) -> torch.Tensor:
        """The ratio, a scalar; with groups ``(1 + groups,)``, that of all turns first."""
        ratio = self.numerator / self.denominator
        return ratio if self.groups else ratio[0]

    def _add(self, counts: Sequence[tuple[EvaluatedTurn, float, int]]) -> None:
        index = {name: number for number, name in enumerate(self.groups, 1)}
        numerator, denominator = [0.0] * (1 + len(index)), [0] * (1 + len(index))
        for turn, upper, lower in counts:
            for place in (0, *(index[name] for name in turn.groups if name in index)):
                numerator[place] += upper
                denominator[place] += lower
        self.numerator += torch.tensor(numerator).to(self.numerator)
        self.denominator += torch.tensor(denominator).to(self.denominator)


class PassAtK(TurnRatio):
    """The probability that at least one of k generations from a prompt is an exact match (arXiv:2107.03374).

    All generations from a prompt must be consecutive and in one update.

    Args:
        k: Generations to choose from; at most as many as there are.
        kwargs: Arguments of :class:`TurnRatio`.

    Example:
        >>> from fc_lightning.evaluation.metrics import PassAtK, evaluate_turn
        >>> samples = [evaluate_turn(text, [], sample=n) for n, text in enumerate(["Hello.", "<tool_call>", "<think>"])]
        >>> PassAtK(1)(samples[:2]), PassAtK(2)(samples[:2])
        (tensor(0.5000), tensor(1.))
    """

    def __init__(self, k: int, **kwargs: Any):
        super().__init__("exact_match", **kwargs)
        self.k = k
        zeros = torch.zeros(1 + len(self.groups))  # the numerator is a sum of probabilities
        self.add_state("numerator", default=zeros, dist_reduce_fx="sum")

    def update(self, turns: Sequence[EvaluatedTurn]) -> None:
        """Count prompts."""
        counts = []
        for _, generations in groupby(turns, key=lambda turn: (turn.id, turn.turn)):
            samples = list(generations)
            num_wrong = sum(not sample.exact_match for sample in samples)
            probability = 1 - math.comb(num_wrong, self.k) / math.comb(len(samples), self.k)
            counts.append((samples[0], probability, 1))
        self._add(counts)


def tool_call_metrics(
    prefix: str = "", groups: Sequence[str] = (), samples: int = 1, sync: bool = True
) -> MetricCollection:
    """All metrics, under the names they are logged by.

    Args:
        prefix: Put before each name.
        groups: Names of groups; see :class:`TurnRatio`.
        samples: Generations per prompt; with more than one, ``pass_at_k`` is added.
        sync: Whether ``compute`` sums over all ranks. torchmetrics reads this in the constructor only.
    """
    options: dict[str, Any] = {"groups": groups, "sync_on_compute": sync}
    metrics: dict[str, Metric | MetricCollection] = {name: TurnRatio(name, **options) for name in RULES}
    if samples > 1:
        metrics[f"pass_at_{samples}"] = PassAtK(samples, **options)
    return MetricCollection(metrics, prefix=prefix, compute_groups=False)


def groups_of(turns: Sequence[EvaluatedTurn]) -> list[str]:
    """The names of the groups that the turns belong to, sorted."""
    return sorted({group for turn in turns for group in turn.groups})
