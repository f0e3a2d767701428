"""What all metrics are: a ratio of two sums, exact however the turns are spread over batches and ranks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torchmetrics import Metric

from fc_lightning.evaluation.turns import EvaluatedTurn


class TurnRatio(Metric):
    """A ratio of two sums over turns: overall, and within groups of turns.

    A subclass says in :meth:`count` what a turn adds to both. Where nothing was added, the value is NaN: there is no
    ratio of nothing.

    Args:
        groups: Names of groups, see :attr:`EvaluatedTurn.groups`.
        kwargs: torchmetrics' own.
    """

    higher_is_better = True
    is_differentiable = False
    full_state_update = False
    dtype_of_sums = torch.long
    hits: torch.Tensor
    total: torch.Tensor

    def __init__(self, groups: Sequence[str] = (), **kwargs: Any):
        super().__init__(**kwargs)
        self.groups = tuple(groups)
        for state in ("hits", "total"):  # (1 + groups,), all turns first
            zeros = torch.zeros(1 + len(self.groups), dtype=self.dtype_of_sums)
            self.add_state(state, default=zeros, dist_reduce_fx="sum")

    def count(self, turn: EvaluatedTurn) -> tuple[float, float]:
        """What a turn adds to the upper and to the lower sum."""
        raise NotImplementedError

    def update(self, turns: Sequence[EvaluatedTurn]) -> None:
        """Count turns."""
        self._add([(turn, *self.count(turn)) for turn in turns])

    def compute(self) -> torch.Tensor:
        """The ratio, a scalar; with groups ``(1 + groups,)``, that of all turns first."""
        ratio = self.hits / self.total
        return ratio if self.groups else ratio[0]

    def _add(self, counted: Sequence[tuple[EvaluatedTurn, float, float]]) -> None:
        place = {name: number for number, name in enumerate(self.groups, 1)}
        sums = torch.zeros(2, 1 + len(self.groups), dtype=self.dtype_of_sums)
        for turn, hits, total in counted:
            added = torch.tensor([hits, total], dtype=self.dtype_of_sums)
            sums[:, 0] += added
            for name in turn.groups if self.groups else ():
                if name in place:
                    sums[:, place[name]] += added
        self.hits += sums[0].to(self.hits.device)
        self.total += sums[1].to(self.total.device)


class TurnShare(TurnRatio):
    """The share of turns for which something holds, among those that it can be asked of."""

    def holds(self, turn: EvaluatedTurn) -> bool | None:
        """Whether it holds for a turn; None if the turn does not count."""
        raise NotImplementedError

    def count(self, turn: EvaluatedTurn) -> tuple[float, float]:
        """See the class."""
        answer = self.holds(turn)
        return (0, 0) if answer is None else (int(answer), 1)


def groups_of(turns: Sequence[EvaluatedTurn]) -> list[str]:
    """The groups that occur, sorted."""
    return sorted({group for turn in turns for group in turn.groups})
