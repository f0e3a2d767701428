"""Attention by document: each document of a pack attends to itself only, and no work is wasted on other pairs.

A dense mask over a row of packed documents costs the square of the row's length; attention by document costs the sum
of the squares of the documents' lengths. It is registered with transformers as :data:`BY_DOCUMENT`. Without documents,
as in generation, it follows the attention mask. On a GPU, flex (`flex_masks.py`) and flash attention do the same.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import sdpa_mask
from transformers.utils import is_flash_attn_2_available

from fc_lightning.models.lora import unwrap_peft
from fc_lightning.models.transformers_internals import attention_implementation, set_attention_implementation

BY_DOCUMENT = "by_document"

# Queries whose scores are computed at a time. Keys after a block, or outside its window, are skipped.
_BLOCK = 512

Documents = list[tuple[int, int, int]]  # row, first position, one past the last position


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
    """Attention with the signature that transformers expects.

    Args:
        module: The attention layer.
        query: ``(rows, heads, length, width)``.
        key: ``(rows, key heads, keys, width)``; each key head serves a group of query heads.
        value: Shaped like the keys.
        attention_mask: ``(rows, 1, length, keys)``, true where a query attends; used if ``documents`` is missing.
        scaling: Factor of the scores; ``width ** -0.5`` if missing.
        dropout: Ignored: no supported model trains with attention dropout.
        sliding_window: Number of keys that a query attends to, its own position included.
        softcap: Soft cap of the scores.
        documents: Positions of the documents. They cover the rows.

    Returns:
        The result, ``(rows, length, heads, width)``, and no attention weights.
    """
    if documents is None:
        length, keys = query.shape[2], key.shape[2]
        if attention_mask is None:
            attention_mask = torch.ones(1, 1, length, keys, dtype=torch.bool, device=query.device).tril(keys - length)
        blocks = zip(query.split(_BLOCK, 2), attention_mask.split(_BLOCK, 2), strict=True)
        parts = [_attend_masked(q, key, value, mask, scaling, softcap) for q, mask in blocks]
        return torch.cat(parts, 2).transpose(1, 2), None
    out = torch.empty_like(query)  # (rows, heads, length, width)
    for row, first, last in documents:
        for start, end in pairwise((*range(first, last, _BLOCK), last)):
            first_key = first if sliding_window is None else max(first, start - sliding_window + 1)
            q = query[row : row + 1, :, start:end]  # (1, heads, block, width)
            k, v = (part[row : row + 1, :, first_key:end] for part in (key, value))  # (1, key heads, keys, width)
            bias = _causal_bias(end - start, end - first_key, sliding_window, q.dtype, q.device)
            out[row : row + 1, :, start:end] = _attend(q, k, v, bias, scaling, softcap)
    return out.transpose(1, 2), None


def _attend_masked(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor, scale: float | None, cap: float | None
) -> Tensor:
    """Attention where the mask is true. On a CPU, only the keys that a block of queries reaches are computed."""
    if query.shape[2] > 1 and query.device.type == "cpu":  # on a GPU this would need a sync
        reached = mask.any(dim=(0, 1, 2)).nonzero()  # empty if all queries are padding
        first, end = (int(reached[0]), int(reached[-1]) + 1) if len(reached) else (0, 1)
        key, value, mask = key[:, :, first:end], value[:, :, first:end], mask[..., first:end]
    return _attend(query, key, value, _as_bias(mask, query.dtype), scale, cap)


def _attend(query: Tensor, key: Tensor, value: Tensor, bias: Tensor, scale: float | None, cap: float | None) -> Tensor:
    """Attention as two matrix products, ``(rows, heads, length, width)``.

    On a CPU this trains twice as fast as ``scaled_dot_product_attention``. The query heads that share a key head form
    one tall matrix. As in the eager attention of transformers, scores have the precision of the query, and the softmax
    accumulates in fp32.
    """
    rows, heads, length, width = query.shape
    tall_shape = (rows, key.shape[1], heads // key.shape[1] * length)
    tall = (query * (scale or width**-0.5)).reshape(*tall_shape, width)
    scores = (tall @ key.transpose(2, 3)).view(*tall_shape[:2], -1, length, key.shape[2])
    if cap is not None:
        scores = torch.tanh(scores / cap) * cap
    # Insert a dimension for the query heads of a group: scores are (rows, key heads, group, length, keys).
    bias = bias.unsqueeze(2) if bias.dim() == 4 else bias
    weights = (scores + bias).softmax(-1)
    return (weights.view(*tall_shape, key.shape[2]) @ value).view(rows, heads, length, width)


@functools.lru_cache(maxsize=32)
def _causal_bias(length: int, keys: int, window: int | None, dtype: torch.dtype, device: torch.device) -> Tensor:
    """``(length, keys)``, for queries at the last ``length`` of the keys: 0 where a query attends, else the minimum."""
    mask = torch.ones(length, keys, dtype=torch.bool, device=device).tril(keys - length)
    return _as_bias(mask if window is None else mask.triu(keys - length + 1 - window), dtype)


def _as_bias(mask: Tensor, dtype: torch.dtype) -> Tensor:
    return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill_(~mask, torch.finfo(dtype).min)


AttentionInterface.register(BY_DOCUMENT, attention_by_document)
AttentionMaskInterface.register(BY_DOCUMENT, sdpa_mask)


def choose_attention(device: torch.device, mixed: bool, setting: str = "auto") -> tuple[str, str]:
    """The attention implementation for a device, in half precision or not, and the reason for it.

    All of them keep packed documents apart.
    """
    if setting != "auto":
        return setting, "as configured"
    if device.type != "cuda":
        return BY_DOCUMENT, "fastest without a GPU"
    if mixed and is_flash_attn_2_available():
        return "flash_attention_2", "flash-attn is installed"
    return "flex_attention", "skips blocks between documents"


def compile_layers(model: Any, device: torch.device) -> None:
    """Compile the layers; on a GPU, once for each row length, with and without gradients.

    On a GPU, rows are padded to a few lengths, and a graph with dynamic length would have no kernel for flex attention.
    Dynamo's limit of eight graphs is too low for the powers of two that unpacked rows are padded to.
    """
    torch._dynamo.config.recompile_limit = max(64, torch._dynamo.config.recompile_limit)
    for layer in model.get_decoder().layers:
        layer.compile(dynamic=False if device.type == "cuda" else None)


@contextmanager
def generation_mode(model: nn.Module) -> Iterator[None]:
    """Generate without disturbing compiled training.

    Each length that generation reaches would count as a recompilation. After eight of them, Dynamo never compiles the
    function again, flex attention included. So generation runs without compilation and without flex attention.
    """
    config = unwrap_peft(model).config
    attention = attention_implementation(config)
    set_attention_implementation(config, BY_DOCUMENT if attention == "flex_attention" else attention)
    try:
        with torch.compiler.set_stance("force_eager"):
            yield
    finally:
        set_attention_implementation(config, attention)
