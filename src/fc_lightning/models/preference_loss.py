"""Preference losses: raise the probability of the chosen turn over that of the rejected one.

All of them take the cross-entropies of the supervised tokens of one packed forward pass, and the number of the document
that each token belongs to. Documents come in pairs: 2 i is chosen, 2 i + 1 is its rejected counterpart::

    token_losses  0.3 0.1 | 0.9 1.2 0.4 | 0.2 …      (tokens,)
    document        0   0 |   1   1   1 |   2 …      (tokens,)
                   chosen     rejected    chosen of the second pair
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


def document_log_probs(token_losses: Tensor, document: Tensor, num_documents: int) -> tuple[Tensor, Tensor]:
    """The log-probability of each document's supervised tokens in fp32, and their number; ``(documents,)`` each.

    A document without supervised tokens has log-probability 0.
    """
    zeros = torch.zeros(num_documents, dtype=torch.float32, device=token_losses.device)
    sums = zeros.index_add(0, document, -token_losses.float())
    return sums, zeros.index_add(0, document, torch.ones_like(document, dtype=torch.float32))


def simpo_losses(log_probs: Tensor, counts: Tensor, beta: float, margin: float) -> Tensor:
    """The loss of each pair without a reference model, ``(pairs,)`` (Meng et al., "SimPO", arXiv:2405.14734).

    ``-log sigmoid(beta * (mean log-probability of chosen - of rejected) - margin)``. The mean is over a turn's tokens,
    so that longer turns are neither favored nor penalized. ``(2 * pairs,)`` log-probabilities and counts of supervised
    tokens are alternately of a chosen and of a rejected turn.
    """
    chosen, rejected = (log_probs / counts.clamp(min=1)).view(-1, 2).unbind(1)  # (pairs,) each
    return -F.logsigmoid(beta * (chosen - rejected) - margin)


@dataclass(frozen=True)
class Preference:
    """The preference loss that is added to the token loss for rows with a rejected turn (CPO, arXiv:2401.08417).

    Both losses are sums, divided by the number of weighted supervised tokens of the optimizer step. A pair counts as
    much as the tokens of its chosen turn, so the step does not depend on packing and ranks.

    Attributes:
        weight: Weight of the preference loss relative to the token loss.
        beta: Scale of the difference between the turns' mean log-probabilities.
        margin: Target of the scaled difference.
    """

    weight: float = 1.0
    beta: float = 2.0
    margin: float = 1.0

    def __call__(self, token_losses: Tensor, weights: Tensor, pair_side: Tensor, num_pairs: int) -> Tensor:
        """The loss of a micro-batch, a scalar.

        Args:
            token_losses: Cross-entropy of each supervised token, ``(tokens,)``.
            weights: Weight of each in the token loss, 0 in rejected turns, ``(tokens,)``.
            pair_side: ``2 * pair`` in the chosen turn of a pair, one more in its rejected turn, -1 elsewhere,
                ``(tokens,)``.
            num_pairs: Number of pairs.
        """
        compared = pair_side >= 0
        log_probs, counts = document_log_probs(token_losses[compared], pair_side[compared], 2 * num_pairs)
        pairs = simpo_losses(log_probs, counts, self.beta, self.margin)
        return (token_losses * weights).sum() + self.weight * (counts[::2] * pairs).sum()

    def gradient(
        self, token_losses: Tensor, weights: Tensor, pair_side: Tensor, num_pairs: int
    ) -> tuple[Tensor, Tensor]:
        """The loss of a micro-batch, and its derivative by each token loss, ``(tokens,)``."""
        with torch.enable_grad():
            losses = token_losses.detach().requires_grad_()
            loss = self(losses, weights, pair_side, num_pairs)
            (derivative,) = torch.autograd.grad(loss, losses)
        return loss.detach(), derivative
