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
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import sdpa_mask
from transformers.utils import is_flash_attn_2_available

from fc_lightning.models.lora import unwrap_peft
from fc_lightning.models.transformers_internals import attention_implementation, set_attention_implementation

BY_DOCUMENT = "by_document"

# Queries whose scores are computed at a time. Keys after a block, or outside its window, are skipped.
_BLOCK = 192
# Documents are padded with zeros to a multiple of this, and the keys of a block begin at one. On a CPU, oneDNN
# generates kernels for each new shape, which takes milliseconds and about a megabyte.
_MULTIPLE = 32

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
        pairs = zip(query.split(_BLOCK, 2), attention_mask.split(_BLOCK, 2), strict=True)
        parts = [_attend_masked(q, key, value, mask, scaling, softcap) for q, mask in pairs]
        return torch.cat(parts, 2).transpose(1, 2), None
    kind = query.device.type
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else query.dtype
    query, key, value = query.to(dtype), key.to(dtype), value.to(dtype)
    with torch.autocast(kind, enabled=False):  # on a GPU it would compute the softmax in fp32
        return _DocumentAttention.apply(query, key, value, documents, sliding_window, scaling, softcap), None


class _Block(NamedTuple):
    """Successive queries of a document, and the keys that they reach. Positions are relative to the document."""

    start: int  # first query
    end: int  # one past the last query, and past the last key
    first_key: int


def _blocks(length: int, window: int | None) -> Iterator[_Block]:
    """A document of a length, padded, in blocks of at most ``_BLOCK`` queries."""
    padded = length + -length % _MULTIPLE
    for start, end in pairwise((*range(0, padded, _BLOCK), padded)):
        reached = 0 if window is None else max(0, start - window + 1)
        yield _Block(start, end, reached - reached % _MULTIPLE)


def scored_keys(length: int, window: int | None) -> int:
    """Keys for which attention by document computes scores, per query of a document of a length, on average."""
    return sum((end - start) * (end - first_key) for start, end, first_key in _blocks(length, window)) // length


class _DocumentAttention(torch.autograd.Function):
    """Attention of all documents, ``(rows, length, heads, width)``, as two matrix products for each block.

    On a CPU they train faster than ``scaled_dot_product_attention``. The gradient of a document is written into its
    slice; automatic differentiation would fill a tensor of the size of all rows with zeros for each document.
    """

    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        documents: Documents,
        window: int | None,
        scale: float | None,
        cap: float | None,
    ) -> Tensor:
        rows, heads, length, width = query.shape
        ctx.scale = width**-0.5 if scale is None else scale
        out = query.new_empty(rows, length, heads, width)
        saved = []
        for row, first, last in documents:
            padding = (0, 0, 0, -(last - first) % _MULTIPLE)  # after the last query and the last key
            k = F.pad(key[row, :, first:last], padding)  # (key heads, keys, width)
            v = F.pad(value[row, :, first:last], padding)
            q = _merge_groups(F.pad(query[row, :, first:last], padding), len(k)) * ctx.scale
            result = torch.empty_like(q)
            saved += [q, k, v]
            for block in _blocks(last - first, window):
                queries, keys = _slices(block, heads // len(k))
                bias = _causal_bias(block.end - block.start, block.end - block.first_key, window, q.dtype, q.device)
                weights, tanh = _softmax(q[:, queries] @ k[:, keys].mT, bias, cap)
                result[:, queries] = weights @ v[:, keys]
                saved += [weights, tanh]
            out[row, first:last] = _split_groups(result, heads)[: last - first]
        ctx.save_for_backward(*saved)
        ctx.documents, ctx.window, ctx.key_shape = documents, window, key.shape
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        saved = iter(ctx.saved_tensors)
        rows, length, heads, width = upstream.shape
        of_query = upstream.new_empty(rows, length, heads, width)
        of_key, of_value = upstream.new_empty(2, *ctx.key_shape)
        for row, first, last in ctx.documents:
            q, k, v = next(saved), next(saved), next(saved)
            padding = (0, 0, 0, 0, 0, -(last - first) % _MULTIPLE)
            of_result = _merge_groups(F.pad(upstream[row, first:last], padding).transpose(0, 1), len(q))
            of_q = torch.empty_like(q)
            precise = torch.promote_types(k.dtype, torch.float32)  # for the sums over blocks
            of_k, of_v = torch.zeros_like(k, dtype=precise), torch.zeros_like(v, dtype=precise)
            for block in _blocks(last - first, ctx.window):
                queries, keys = _slices(block, heads // len(k))
                weights, tanh = next(saved), next(saved)
                of_out = of_result[:, queries]
                of_v[:, keys] += weights.mT @ of_out
                of_scores = torch._softmax_backward_data(of_out @ v[:, keys].mT, weights, -1, weights.dtype)
                if tanh is not None:
                    of_scores.mul_(1 - tanh.square())
                of_k[:, keys] += of_scores.mT @ q[:, queries]
                of_q[:, queries] = of_scores @ k[:, keys]
            of_query[row, first:last] = _split_groups(of_q.mul_(ctx.scale), heads)[: last - first]
            of_key[row, :, first:last] = of_k[:, : last - first]
            of_value[row, :, first:last] = of_v[:, : last - first]
        return of_query.transpose(1, 2), of_key, of_value, None, None, None, None


def _slices(block: _Block, group: int) -> tuple[slice, slice]:
    """The queries of a block, in tall matrices of so many query heads, and its keys."""
    return slice(block.start * group, block.end * group), slice(block.first_key, block.end)


def _merge_groups(x: Tensor, key_heads: int) -> Tensor:
    """``(heads, length, width)`` as ``(key heads, length · group, width)``: a tall matrix for each key head."""
    return x.unflatten(0, (key_heads, -1)).transpose(1, 2).flatten(1, 2)


def _split_groups(x: Tensor, heads: int) -> Tensor:
    """``(key heads, length · group, width)`` as ``(length, heads, width)``."""
    key_heads, tall, width = x.shape
    return x.view(key_heads, tall * key_heads // heads, -1, width).transpose(0, 1).flatten(1, 2)


def _softmax(scores: Tensor, bias: Tensor, cap: float | None) -> tuple[Tensor, Tensor | None]:
    """Attention weights, shaped like the scores ``(key heads, length · group, keys)``, and tanh of capped scores."""
    tanh = None
    if cap is not None:
        tanh = scores.div_(cap).tanh_()
        scores = tanh * cap
    length, keys = bias.shape
    scores.view(len(scores), length, -1, keys).add_(bias.unsqueeze(1))
    return scores.softmax(-1), tanh


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

    The query heads that share a key head form one tall matrix. As in the eager attention of transformers, scores have
    the precision of the query, and the softmax accumulates in fp32.
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
