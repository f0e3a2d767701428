"""How certain a measured ratio is, and whether two evaluations of the same turns differ by more than chance."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from fc_lightning.evaluation.metrics import RULES
from fc_lightning.evaluation.turns import EvaluatedTurn

# A difference is called significant below this p-value.
LEVEL = 0.05


@dataclass(frozen=True)
class PairedComparison:
    """The exact matches of two evaluations on the turns that both have.

    Attributes:
        num_turns: Turns in common.
        only_first: Turns that only the first evaluation has right.
        only_second: Turns that only the second has right.
    """

    num_turns: int
    only_first: int
    only_second: int

    @property
    def difference(self) -> float:
        """Exact match of the second minus that of the first."""
        return (self.only_second - self.only_first) / self.num_turns

    @property
    def standard_error(self) -> float:
        """Of the difference, over turns."""
        discordant = (self.only_first + self.only_second) / self.num_turns
        return math.sqrt(max(0.0, discordant - self.difference**2) / self.num_turns)

    @property
    def p_value(self) -> float:
        """McNemar's exact test: how likely a split of the discordant turns at least as uneven is if both are equal.

        Example:
            >>> PairedComparison(20, 1, 5).p_value  # 2 · (1 + 6) / 2⁶
            0.21875
        """
        num_discordant, smaller = self.only_first + self.only_second, min(self.only_first, self.only_second)
        tail = sum(math.comb(num_discordant, n) for n in range(smaller + 1))
        return min(1.0, 2 * tail / 2**num_discordant)


def standard_error(turns: Sequence[EvaluatedTurn], metric: str) -> float:
    """The standard error of a ratio; NaN where no turn counts.

    Turns of one conversation are not independent: what counts is how much conversations deviate from the ratio.

    Args:
        turns: Evaluated turns.
        metric: A key of :data:`fc_lightning.evaluation.metrics.RULES`.

    Example:
        >>> from fc_lightning.evaluation.metrics import evaluate_turn
        >>> turns = [evaluate_turn("Hello.", [], id=str(n), finished=n < 5) for n in range(20)]
        >>> round(standard_error(turns, "exact_match"), 4)  # of a share: √(0.25 · 0.75 / 20)
        0.0968
    """
    counts: dict[tuple[str, int], list[int]] = defaultdict(lambda: [0, 0])
    for turn in turns:
        numerator, denominator = RULES[metric].count(turn)
        of_conversation = counts[turn.id, turn.sample]
        of_conversation[0] += numerator
        of_conversation[1] += denominator
    total = sum(denominator for _, denominator in counts.values())
    if not total:
        return math.nan
    ratio = sum(numerator for numerator, _ in counts.values()) / total
    return math.sqrt(sum((numerator - ratio * denominator) ** 2 for numerator, denominator in counts.values())) / total


def compare_turns(first: Sequence[EvaluatedTurn], second: Sequence[EvaluatedTurn]) -> PairedComparison | None:
    """Pair two evaluations by conversation, turn and sample; None if they have no turn in common."""
    matches = {(turn.id, turn.turn, turn.sample): turn.exact_match for turn in first}
    pairs = [
        (matches[key], turn.exact_match) for turn in second if (key := (turn.id, turn.turn, turn.sample)) in matches
    ]
    if not pairs:
        return None
    return PairedComparison(len(pairs), pairs.count((True, False)), pairs.count((False, True)))


def holm_adjusted(p_values: Sequence[float]) -> list[float]:
    """p-values of several tests together, after Holm: the chance that any equal pair is called different stays small.

    Example:
        >>> holm_adjusted([0.04, 0.01, 0.5])
        [0.08, 0.03, 0.5]
    """
    adjusted = list(p_values)
    highest = 0.0
    for rank, place in enumerate(sorted(range(len(p_values)), key=lambda place: p_values[place])):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[place]))
        adjusted[place] = highest
    return adjusted
