"""Preference losses: raise the probability of the chosen turn over that of the rejected one.

All work on the cross-entropies of supervised tokens, as one packed forward pass gives them, and on the number of the
document that each token belongs to. Documents come in pairs: 2 i is chosen, 2 i + 1 is its rejected counterpart::

    token_losses  0.3 0.1 | 0.9 1.2 0.4 | 0.2 …      (tokens,)
    document        0   0 |   1   1   1 |   2 …      (tokens,)
                   chosen     rejected    chosen of the second pair
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def document_log_probs(token_losses: Tensor, document: Tensor, num_documents: int) -> tuple[Tensor, Tensor]:
    """The log-probability of each document's supervised tokens, and their number.

    Args:
        token_losses: Cross-entropy of each supervised token, ``(tokens,)``.
        document: The number of the document of each token, ``(tokens,)``.
        num_documents: How many documents there are; one without supervised tokens has log-probability 0.

    Returns:
        Log-probabilities ``(documents,)`` in fp32, and counts ``(documents,)``.
    """
    zeros = torch.zeros(num_documents, dtype=torch.float32, device=token_losses.device)
    sums = zeros.index_add(0, document, -token_losses.float())
    return sums, zeros.index_add(0, document, torch.ones_like(document, dtype=torch.float32))


def simpo_loss_sum(log_probs: Tensor, counts: Tensor, beta: float = 2.0, margin: float = 1.0) -> Tensor:
    """The sum over pairs of a reference-free preference loss (Meng et al., "SimPO", arXiv:2405.14734).

    ``-log sigmoid(beta * (mean log-probability of chosen - of rejected) - margin)``. The mean is over a turn's tokens,
    so that longer turns are neither favoured nor punished.

    Args:
        log_probs: Of the documents, chosen and rejected by turns, ``(2 * pairs,)``.
        counts: Their supervised tokens, ``(2 * pairs,)``.
        beta: Scale of the difference.
        margin: How much larger the scaled difference should be than 0.
    """
    chosen, rejected = (log_probs / counts.clamp(min=1)).view(-1, 2).unbind(1)  # (pairs,) each
    return -F.logsigmoid(beta * (chosen - rejected) - margin).sum()


def dpo_loss_sum(log_probs: Tensor, reference_log_probs: Tensor, beta: float = 0.1) -> Tensor:
    """The sum over pairs of direct preference optimization's loss (Rafailov et al., "DPO", arXiv:2305.18290).

    ``-log sigmoid(beta * ((chosen - its reference) - (rejected - its reference)))``, with summed log-probabilities.

    Args:
        log_probs: Of the documents, chosen and rejected by turns, ``(2 * pairs,)``.
        reference_log_probs: The same documents' log-probabilities under the model before training, ``(2 * pairs,)``.
        beta: How closely the model is kept to the reference; smaller is freer.
    """
    chosen, rejected = (log_probs - reference_log_probs).view(-1, 2).unbind(1)  # (pairs,) each
    return -F.logsigmoid(beta * (chosen - rejected)).sum()


def weighted_loss_sum(token_losses: Tensor, weights: Tensor) -> Tensor:
    """The weighted sum of token losses; divided by the sum of an optimizer step's weights it is a weighted mean.

    Args:
        token_losses: Cross-entropy of each supervised token, ``(tokens,)``.
        weights: Weight of each, ``(tokens,)``.
    """
    return (token_losses * weights.to(token_losses.dtype)).sum()
