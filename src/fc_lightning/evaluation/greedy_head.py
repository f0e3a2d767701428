"""The likeliest token of an fp32 head on a CPU, found in bf16 and confirmed in fp32.

A step of greedy decoding multiplies the last hidden states by a matrix with a row for each token of the vocabulary, and
keeps one number. In bf16 that takes a fraction of the time. Rounding moves a score by less than a bound, so that only
tokens close to the highest rounded score can be the likeliest: their scores are computed again in fp32.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

# Rounding to bf16 changes a number by less than this fraction of it.
_ROUNDING = 2.0**-8
_BLOCK = 64  # tokens whose highest score is looked at first, so that few scores are compared one by one
_MAX_CANDIDATES = 256  # of a row; with more, all scores are computed again


class GreedyHead:
    """A head that names the likeliest token; what models do to scores afterwards, scaling and soft caps, keeps it.

    Args:
        weight: fp32 weights ``(vocabulary, width)``.
    """

    def __init__(self, weight: Tensor):
        self.weight = weight
        size, width = weight.shape
        # Whole blocks: the last token is repeated.
        self.rounded = weight.new_empty(size + -size % _BLOCK, width, dtype=torch.bfloat16)
        self.rounded[:size], self.rounded[size:] = weight, weight[-1]
        self.largest_norm = weight.norm(dim=1).max()

    @classmethod
    def of(cls, head: nn.Module) -> GreedyHead | None:
        """The counterpart of a head, or None if it is not a plain fp32 matrix on a CPU."""
        is_plain = type(head) is nn.Linear and head.bias is None and not torch.is_autocast_enabled("cpu")
        if not is_plain or head.weight.dtype != torch.float32 or head.weight.device.type != "cpu":
            return None
        return cls(head.weight)

    def best(self, hidden: Tensor) -> Tensor:
        """The id of the likeliest token for each hidden state ``(rows, width)``."""
        scores = (hidden.bfloat16() @ self.rounded.T).unflatten(1, (-1, _BLOCK))  # (rows, blocks, _BLOCK)
        of_blocks = scores.amax(2)
        highest = of_blocks.amax(1).float()
        # Both factors of each product are rounded, and so is the sum. Cauchy and Schwarz bound the sum of products.
        bound = 2.5 * _ROUNDING * hidden.norm(dim=1) * self.largest_norm
        margin = 2 * (bound + _ROUNDING * highest.abs())
        # Compared in bf16, which rounds again: one more unit is allowed for.
        threshold = (highest - margin - _ROUNDING * (highest - margin).abs()).bfloat16()
        rows, blocks = (of_blocks >= threshold[:, None]).nonzero(as_tuple=True)
        found, places = (scores[rows, blocks] >= threshold[rows, None]).nonzero(as_tuple=True)
        rows, ids = rows[found], (blocks[found] * _BLOCK + places).clamp_(max=len(self.weight) - 1)
        if len(ids) > _MAX_CANDIDATES * len(hidden):
            return (hidden @ self.weight.T).argmax(1)
        exact = (self.weight[ids] * hidden[rows]).sum(1)
        counts = rows.bincount(minlength=len(hidden)).tolist()
        chosen = [part.argmax() for part in exact.split(counts)]
        return torch.stack([part[one] for part, one in zip(ids.split(counts), chosen, strict=True)])
