"""The loss: summed cross-entropy of the supervised tokens, with logits for these alone."""

from __future__ import annotations

from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.utils.checkpoint import checkpoint

from fc_lightning.data.collator import Batch
from fc_lightning.models.attention import BY_DOCUMENT
from fc_lightning.models.lora import unwrap_peft

HEAD_CHUNK = 512  # rows of logits that are held at a time


def token_loss_sum(model: nn.Module, batch: Batch, chunk: int = HEAD_CHUNK) -> Tensor:
    """The sum of the cross-entropies of all supervised tokens of a batch, a scalar in fp32.

    Logits are made only where there is a label, and no more than ``chunk`` rows of them at a time: past that, chunks
    are computed again in the backward pass.

    Args:
        model: A causal language model of transformers, or a PeftModel around one.
        batch: See :class:`fc_lightning.data.packing.Batch`.
        chunk: Rows of logits held at a time.
    """
    causal = unwrap_peft(model)
    if isinstance(causal, FSDPModule):
        return cast(Any, causal).token_loss_sum(batch, chunk)
    return causal_loss_sum(causal, batch, chunk)


def causal_loss_sum(causal: Any, batch: Batch, chunk: int) -> Tensor:
    # No mask and no cache: transformers then tells documents apart by positions that start again.
    extra: dict[str, Any] = {}
    if causal.config._attn_implementation == BY_DOCUMENT:
        extra = {"documents": batch["documents"]}
    elif "flash" in causal.config._attn_implementation:
        extra = _flash_arguments(batch)
    hidden = causal.get_decoder()(
        input_ids=batch["input_ids"], position_ids=batch["position_ids"], use_cache=False, **extra
    ).last_hidden_state
    places = batch["supervised_index"]
    hidden = hidden.flatten(0, 1)[places]  # (supervised, width)
    labels = batch["labels"].flatten()[places]  # (supervised,)
    head, cap = causal.get_output_embeddings(), getattr(causal.config, "final_logit_softcapping", None)
    if len(labels) <= chunk:
        return _head_loss(head, hidden, labels, cap)
    parts = zip(hidden.split(chunk), labels.split(chunk), strict=True)
    losses = [checkpoint(_head_loss, head, part, targets, cap, use_reentrant=False) for part, targets in parts]
    return torch.stack(losses).sum()


def _flash_arguments(batch: Batch) -> dict[str, Any]:
    """Where documents end in the rows one behind the other, as flash kernels want it.

    Left to itself, transformers finds them again in every layer, with a sync each, and only where a batch is one row.
    """
    sizes = torch.tensor([0] + [end - start for _, start, end in batch["documents"]], dtype=torch.int32)
    ends = sizes.cumsum(0, dtype=torch.int32).to(batch["input_ids"].device, non_blocking=True)
    longest = int(sizes.max())
    return {"cu_seq_lens_q": ends, "cu_seq_lens_k": ends, "max_length_q": longest, "max_length_k": longest}


def _head_loss(head: nn.Module, hidden: Tensor, labels: Tensor, cap: float | None) -> Tensor:
    """Summed cross-entropy of ``(n, width)`` hidden states against ``(n,)`` labels."""
    logits = head(hidden).float()
    if cap is not None:
        logits = cap * torch.tanh(logits / cap)
    return F.cross_entropy(logits, labels, reduction="sum")
