"""Cross-entropy of a frozen head, whose gradient is computed in the forward pass.

The gradient with respect to the hidden states needs the logits, which the forward pass has already computed. This takes
two matrix products per chunk instead of the three that recomputation needs, and neither the logits nor their softmax
are kept for the backward pass.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

_CACHED_ROWS = 2  # rows of logits in fp32 that fit into a processor's cache: a megabyte each for Gemma


class FrozenHead(NamedTuple):
    """The weights of a head that is frozen except for its new-token rows.

    Attributes:
        weight: ``(vocabulary, width)``.
        rows: ``(new, width)``, trained, in place of some rows of the weight.
        new_tokens: ``(new,)``, which rows these are.
    """

    weight: Tensor
    rows: Tensor | None = None
    new_tokens: Tensor | None = None


def frozen_head_loss(
    head: FrozenHead, hidden: Tensor, labels: Tensor, cap: float | None, chunk: int, weights: Tensor | None = None
) -> Tensor:
    """Summed cross-entropy, a scalar in fp32.

    Args:
        head: The weights.
        hidden: ``(n, width)``.
        labels: ``(n,)``.
        cap: Soft cap of the logits.
        chunk: Rows of logits held at a time.
        weights: ``(n,)``, factors of the tokens' cross-entropies.
    """
    return _FrozenHeadLoss.apply(hidden, head.weight, head.rows, head.new_tokens, labels, weights, cap, chunk)


def split_rows(chunk: int, *tensors: Tensor | None) -> list[Sequence[Tensor | None]]:
    """Each tensor in chunks of rows; as many times None for what is None."""
    parts = [None if tensor is None else tensor.split(chunk) for tensor in tensors]
    count = next(len(split) for split in parts if split is not None)
    return [[None] * count if split is None else split for split in parts]


class _FrozenHeadLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        rows: Tensor | None,
        new_tokens: Tensor | None,
        labels: Tensor,
        weights: Tensor | None,
        cap: float | None,
        chunk: int,
    ) -> Tensor:
        differentiate = _compiled() if hidden.is_cuda else _in_place
        total = hidden.new_zeros((), dtype=torch.float32)
        hidden_gradient = torch.empty_like(hidden)
        rows_gradient = None if rows is None else torch.zeros_like(rows)  # (new, width)
        rows_of: Any = zip(*split_rows(chunk, hidden, labels, hidden_gradient, weights), strict=True)
        for part, targets, out, part_weights in rows_of:
            logits = F.linear(part, weight)  # (chunk, vocabulary)
            if rows is not None and new_tokens is not None:
                logits.index_copy_(-1, new_tokens, F.linear(part, rows.to(part.dtype)).to(logits.dtype))
            loss, gradient = differentiate(logits, targets, cap, part_weights)
            total += loss
            if rows is None or new_tokens is None:
                out.copy_(gradient @ weight)
            else:
                of_new = gradient.index_select(-1, new_tokens)  # (chunk, new)
                gradient.index_fill_(-1, new_tokens, 0.0)
                out.copy_(gradient @ weight + of_new @ rows.to(of_new.dtype))
                rows_gradient += of_new.T @ part
            del logits, gradient  # before there are those of the next chunk
        ctx.save_for_backward(hidden_gradient, rows_gradient)
        return total

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        hidden_gradient, rows_gradient = ctx.saved_tensors
        scaled_rows = None if rows_gradient is None else rows_gradient * upstream
        return hidden_gradient * upstream.to(hidden_gradient.dtype), None, scaled_rows, None, None, None, None, None


def _loss_and_gradient(
    logits: Tensor, labels: Tensor, cap: float | None, weights: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Summed cross-entropy in fp32, and its gradient with respect to ``(n, vocabulary)`` logits, in their precision.

    Nothing is changed in place: every element of a compiled kernel depends on inputs alone.
    """
    values = logits.float()
    if cap is not None:
        values = cap * torch.tanh(values / cap)
    log_sum = values.logsumexp(-1, keepdim=True)  # (n, 1)
    is_label = torch.arange(values.shape[-1], device=labels.device) == labels.unsqueeze(-1)
    losses = log_sum.squeeze(-1) - torch.where(is_label, values, 0.0).sum(-1)  # (n,)
    gradient = torch.exp(values - log_sum) - is_label.float()
    if cap is not None:
        gradient = gradient * (1 - (values / cap).square())
    if weights is not None:
        losses, gradient = losses * weights, gradient * weights.unsqueeze(-1)
    return losses.sum(), gradient.to(logits.dtype)


def _in_place(logits: Tensor, labels: Tensor, cap: float | None, weights: Tensor | None) -> tuple[Tensor, Tensor]:
    """:func:`_loss_and_gradient`, with the gradient in place of the logits.

    On a CPU this is bound by memory. So it takes a few rows at a time, which stay in the processor's cache.
    """
    total = logits.new_zeros((), dtype=torch.float32)
    rows_of: Any = zip(*split_rows(_CACHED_ROWS, logits, labels, weights), strict=True)
    for part, targets, part_weights in rows_of:
        places = (torch.arange(len(targets)), targets)
        values = part.float()  # (rows, vocabulary)
        if cap is not None:
            tanh = values.div_(cap).tanh_()
            values = tanh * cap
        log_sum = values.logsumexp(-1)  # (rows,)
        losses = log_sum - values[places]  # (rows,)
        gradient = values.sub_(log_sum.unsqueeze(-1)).exp_()
        gradient[places] -= 1
        if cap is not None:
            gradient.mul_(tanh.square_().neg_().add_(1))
        if part_weights is not None:
            losses = losses * part_weights
            gradient.mul_(part_weights.unsqueeze(-1))
        total += losses.sum()
        part.copy_(gradient)
    return total, logits


@cache
def _compiled() -> Callable[..., tuple[Tensor, Tensor]]:
    """On a GPU one kernel or two replace a dozen. The last chunk is shorter, so the number of rows is dynamic."""
    return torch.compile(_loss_and_gradient, dynamic=True)
