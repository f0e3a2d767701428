"""Block masks of packed rows for flex attention, built on the CPU from document boundaries.

They are used wherever `choose_attention` in `models/attention.py` returns ``flex_attention``. By default, transformers
searches the position ids for document boundaries in every forward pass, which makes the CPU wait for the device, and
evaluates the mask for each pair of positions. Here a few comparisons classify each pair of blocks.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask
from transformers import PretrainedConfig

from fc_lightning.data.collator import Batch
from fc_lightning.utils.device import copy_to_device
from fc_lightning.utils.pretrained import sliding_windows

_BLOCK = 128  # positions of a block, for queries and keys


def flex_arguments(config: PretrainedConfig, batch: Batch) -> dict[str, Any]:
    """The masks of a batch by kind of layer, and kernel options where the device needs them."""
    config = config.get_text_config()
    device = batch["input_ids"].device
    documents = _document_numbers(batch)  # (rows, length)
    windows = sliding_windows(config)
    kinds = getattr(config, "layer_types", None) or [""] * len(windows)
    by_kind = dict(zip(kinds, windows, strict=True))
    masks = {kind: block_mask(documents, window, device) for kind, window in by_kind.items()}
    options = _kernel_options(device)
    # Models whose layers are all alike take the mask itself.
    return {"attention_mask": masks.get("", masks)} | ({"kernel_options": options} if options else {})


def block_mask(documents: Tensor, window: int | None, device: torch.device) -> BlockMask:
    """The causal mask of packed rows, from ``(rows, length)`` numbers of documents, counted from 0 in each row."""
    rows, length = documents.shape
    num_blocks = -(-length // _BLOCK)
    padded = torch.nn.functional.pad(documents, (0, num_blocks * _BLOCK - length), value=-1)
    blocks = padded.view(rows, num_blocks, _BLOCK)
    first, last = documents[:, ::_BLOCK], blocks.amax(-1)  # (rows, blocks): documents are in ascending order
    query, key = torch.arange(num_blocks).unsqueeze(1), torch.arange(num_blocks)
    distance = (query - key) * _BLOCK  # of the first positions of two blocks
    causal = query >= key
    # Some pair of positions attends: a document reaches into both blocks, and they are close enough.
    some = causal & (last.unsqueeze(1) >= first.unsqueeze(2))  # (rows, query blocks, key blocks)
    # Every pair attends: both blocks are inside one document, and the key block is before the query block.
    every = (query > key) & (first.unsqueeze(1) == last.unsqueeze(2))
    if length % _BLOCK:
        every[:, -1] = False  # the last block of queries is not full
    if window is not None:
        some &= distance - _BLOCK + 1 < window
        every &= distance + _BLOCK - 1 < window
    partial = _ordered(some & ~every, device)
    full = _ordered(every, device)
    allowed = _mask_function(copy_to_device(padded, device), window)
    return BlockMask.from_kv_blocks(*partial, *full, BLOCK_SIZE=_BLOCK, mask_mod=allowed, seq_lengths=(length, length))


def _mask_function(documents: Tensor, window: int | None) -> Callable[..., Tensor]:
    def allowed(row: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        mask = (query >= key) & (documents[row, query] == documents[row, key])
        return mask if window is None else mask & (query - key < window)

    return allowed


def _document_numbers(batch: Batch) -> Tensor:
    """``(rows, length)``, the number of each position's document in its row."""
    numbers = torch.zeros(batch["input_ids"].shape, dtype=torch.int32)
    for row, start, _ in batch["documents"]:
        if start:
            numbers[row, start] = 1
    return numbers.cumsum(1, dtype=torch.int32)


def _ordered(blocks: Tensor, device: torch.device) -> tuple[Tensor, Tensor]:
    """For each query block, how many key blocks it attends to, ``(rows, 1, blocks)``, and all blocks, those first."""
    counts = blocks.sum(-1, dtype=torch.int32).unsqueeze(1)
    order = blocks.int().argsort(dim=-1, descending=True, stable=True).to(torch.int32).unsqueeze(1)
    return copy_to_device(counts, device), copy_to_device(order, device)


def _kernel_options(device: torch.device) -> dict[str, int]:
    """Smaller blocks for the backward pass on cards with little shared memory (sm_86, sm_89, sm_120).

    For heads as wide as Gemma's, torch's default blocks ask for 114,688 bytes where these cards have 101,376.
    """
    properties: Any = torch.cuda.get_device_properties(device) if device.type == "cuda" else None
    if properties is None or properties.shared_memory_per_block_optin >= 114_688:
        return {}
    return {"BLOCK_M1": 32, "BLOCK_N1": 32, "BLOCK_M2": 32, "BLOCK_N2": 32}
