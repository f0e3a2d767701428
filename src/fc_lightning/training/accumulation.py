"""Loss totals of the micro-batches in an optimizer step, reduced over ranks."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.distributed
from torch import Tensor

from fc_lightning.data.collator import Batch
from fc_lightning.evaluation.evaluator import gather_objects
from fc_lightning.utils.device import copy_to_device
from fc_lightning.utils.errors import UserError


class NonFiniteError(UserError):
    """A loss or a gradient is NaN or infinite. The message names the rows; no weight has changed."""


class MicroBatchLoss(NamedTuple):
    """The loss of a micro-batch."""

    loss: Tensor  # summed over its supervised tokens, a scalar
    num_tokens: int  # supervised
    ids: list[list[str]]  # of the documents in each of its rows
    weight: float  # divisor of the loss: the sum of the tokens' weights, their number if they have none

    @classmethod
    def of(cls, loss: Tensor, batch: Batch) -> MicroBatchLoss:
        num_tokens = batch["num_supervised"]
        return cls(loss.detach(), num_tokens, batch["ids"], batch.get("total_weight", num_tokens))


@dataclass(frozen=True)
class StepTotals:
    """Sums over all micro-batches of an optimizer step and all ranks.

    Attributes:
        loss: Summed token loss, a scalar on the device.
        num_tokens: Supervised tokens; a scalar on the device.
        weight: Sum of their weights, 1 if it is 0 so that it can be divided by; a scalar on the device.
        is_loss_finite: Whether the loss is finite.
        is_gradient_finite: Whether the gradients of all ranks are finite.
        peer_flags: For each flag, the number of ranks that have raised it.
    """

    loss: Tensor
    num_tokens: Tensor
    weight: Tensor
    is_loss_finite: bool
    is_gradient_finite: bool
    peer_flags: list[float]


def sum_over_ranks(
    window: Sequence[MicroBatchLoss],
    is_gradient_finite: Tensor,
    flags: Sequence[float],
    world_size: int,
    device: torch.device,
) -> StepTotals:
    """Reduce the totals of a step over ranks: one all-reduce and one device synchronization."""
    loss = sum((micro.loss for micro in window), torch.zeros((), device=device))
    num_tokens = sum(micro.num_tokens for micro in window)
    weight = sum(micro.weight for micro in window)
    counts = copy_to_device(torch.tensor([num_tokens, weight, *flags], dtype=torch.float32), device)
    num_broken = 1.0 - is_gradient_finite.reshape(1).to(counts)
    sums = torch.cat([loss.reshape(1), num_broken, counts])  # (4 + flags,)
    if world_size > 1:
        torch.distributed.all_reduce(sums)
    total_loss, num_broken_ranks, _, _, *peer_flags = sums.tolist()
    return StepTotals(
        loss=sums[0],
        num_tokens=sums[2],
        weight=torch.where(sums[3] > 0, sums[3], 1.0),
        is_loss_finite=math.isfinite(total_loss),
        is_gradient_finite=not num_broken_ranks,
        peer_flags=peer_flags,
    )


def describe_non_finite(window: Sequence[MicroBatchLoss], what: str, step: int) -> str:
    """Which rows may be the cause of a ``loss`` or ``gradient`` that is not finite. A collective.

    A gradient cannot be traced to particular rows, because it is already summed over ranks.
    """
    suspects = [micro.ids for micro in window if what == "gradient" or not micro.loss.isfinite()]
    rows = "; ".join(
        f"rank {rank}: {', '.join(document for batch in batches for pack in batch for document in pack)}"
        for rank, batches in enumerate(gather_objects(suspects))
        if batches
    )
    return f"optimizer step {step}: the {what} is not finite; affected rows: {rows}"
