"""Attention by document, for CPUs: each document of a pack attends to itself alone, and nothing is computed in vain.

A dense mask over a row of packed documents costs the square of the row's length; this costs the sum of the squares of
the documents' lengths. Registered with transformers under :data:`BY_DOCUMENT`; without documents, as in generation, it
goes by the mask.
"""

from __future__ import annotations

import functools
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PretrainedConfig
from transformers.masking_utils import sdpa_mask
from transformers.utils import is_flash_attn_2_available

BY_DOCUMENT = "by_document"

# Positions whose scores are made at a time: what they cannot see, behind them or out of the window, is left out.
_BLOCK = 512

Documents = list[tuple[int, int, int]]  # row, first position, one past the last


def attention_by_document(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    softcap: float | None = None,
    documents: Documents | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """Attention in transformers' form.

    Args:
        module: The attention layer.
        query: ``(rows, heads, length, width)``.
        key: ``(rows, key heads, keys, width)``; each serves a group of query heads.
        value: As the keys.
        attention_mask: ``(rows, 1, length, keys)``, true where attended; used when no documents are given.
        scaling: Of the scores.
        dropout: Not supported, as no model that this serves trains with it.
        sliding_window: How many positions back a position sees, itself included.
        softcap: Cap of the scores.
        documents: Where documents stand in the rows. They cover them.

    Returns:
        ``(rows, length, heads, width)``, and no weights.
    """
    if documents is None:
        seen = attention_mask
        length = query.shape[2]
        bias = _causal_bias(length, length, None, query.dtype) if seen is None else _bias(seen, query.dtype)
        return _attend(query, key, value, bias, scaling, softcap).transpose(1, 2), None
    out = torch.empty_like(query)
    for row, first, last in documents:
        for start, end in pairwise((*range(first, last, _BLOCK), last)):
            seen_from = first if sliding_window is None else max(first, start - sliding_window + 1)
            q = query[row : row + 1, :, start:end]
            k, v = (part[row : row + 1, :, seen_from:end] for part in (key, value))
            bias = _causal_bias(end - start, end - seen_from, sliding_window, q.dtype)
            out[row : row + 1, :, start:end] = _attend(q, k, v, bias, scaling, softcap)
    return out.transpose(1, 2), None


def _attend(query: Tensor, key: Tensor, value: Tensor, bias: Tensor, scale: float | None, cap: float | None) -> Tensor:
    """Attention of ``(rows, heads, length, width)`` by two matrix products.

    On a CPU this trains twice as fast as sdpa. The query heads that share a key head are one tall matrix. As in the
    eager attention of transformers, scores have the precision of the query and softmax sums in fp32.
    """
    rows, heads, length, width = query.shape
    shared = (rows, key.shape[1], heads // key.shape[1] * length)
    tall = (query * (scale or width**-0.5)).reshape(*shared, width)
    scores = (tall @ key.transpose(2, 3)).view(*shared[:2], -1, length, key.shape[2])
    if cap is not None:
        scores = torch.tanh(scores / cap) * cap
    weights = (scores + (bias.unsqueeze(2) if bias.dim() == 4 else bias)).softmax(-1)
    return (weights.view(*shared, key.shape[2]) @ value).view(rows, heads, length, width)


@functools.lru_cache(maxsize=32)
def _causal_bias(length: int, keys: int, window: int | None, dtype: torch.dtype) -> Tensor:
    """``(length, keys)``, the positions being the last of the keys: 0 where one sees another, itself or before it."""
    seen = torch.ones(length, keys, dtype=torch.bool).tril(keys - length)
    return _bias(seen if window is None else seen.triu(keys - length + 1 - window), dtype)


def _bias(seen: Tensor, dtype: torch.dtype) -> Tensor:
    return torch.zeros(seen.shape, dtype=dtype, device=seen.device).masked_fill_(~seen, torch.finfo(dtype).min)


AttentionInterface.register(BY_DOCUMENT, attention_by_document)
AttentionMaskInterface.register(BY_DOCUMENT, sdpa_mask)


def choose_attention(config: PretrainedConfig, device: torch.device, mixed: bool) -> tuple[str, str]:
    """The attention implementation for a model on a device, and why.

    Each of them keeps packed documents apart; the tests show it for those that run on a CPU.

    Args:
        config: Of the model.
        device: Where it runs.
        mixed: Whether it runs in half precision, as flash kernels must.
    """
    if device.type != "cuda":
        return BY_DOCUMENT, "without a GPU, each document by itself costs least"
    if mixed and is_flash_attn_2_available():
        return "flash_attention_2", "flash-attn is installed, and computes nothing between documents"
    if getattr(config, "attn_logit_softcapping", None):
        return "flex_attention", "the model caps its attention logits, which flex does on a GPU"
    return "sdpa", "the model caps no attention logits"
