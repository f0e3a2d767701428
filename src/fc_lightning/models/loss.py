"""The loss: summed cross-entropy of the supervised tokens. Other positions have no logits."""

from __future__ import annotations

from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.utils.checkpoint import checkpoint

from fc_lightning.data.collator import Batch
from fc_lightning.models.attention import BY_DOCUMENT
from fc_lightning.models.flex_masks import flex_arguments
from fc_lightning.models.head_loss import frozen_head_loss
from fc_lightning.models.lora import unwrap_peft
from fc_lightning.models.peft_internals import frozen_head
from fc_lightning.models.transformers_internals import attention_implementation

HEAD_CHUNK = 512  # rows of logits that are held at a time


def token_loss_sum(model: nn.Module, batch: Batch, chunk: int = HEAD_CHUNK) -> Tensor:
    """The sum of the cross-entropies of all supervised tokens of a batch, a scalar in fp32.

    Logits are computed only for positions that have a label, at most ``chunk`` rows of them at a time. The gradient of
    a frozen head is computed in the forward pass, see :mod:`fc_lightning.models.head_loss`. The logits of a trained
    head are computed again in the backward pass if there is more than one chunk.

    Args:
        model: A causal language model of transformers, or a PeftModel around one.
        batch: See :class:`fc_lightning.data.collator.Batch`.
        chunk: Rows of logits held at a time.
    """
    causal = unwrap_peft(model)
    if isinstance(causal, FSDPModule):
        return cast(Any, causal).token_loss_sum(batch, chunk)
    return causal_loss_sum(causal, batch, chunk)


def causal_loss_sum(causal: Any, batch: Batch, chunk: int) -> Tensor:
    """:func:`token_loss_sum` of a model that is not wrapped."""
    # With neither a mask nor a cache, transformers separates documents where positions restart.
    hidden = causal.get_decoder()(
        input_ids=batch["input_ids"],
        position_ids=batch["position_ids"],
        use_cache=False,
        **_attention_arguments(causal, batch),
    ).last_hidden_state  # (rows, length, width)
    hidden = hidden.flatten(0, 1)[batch["supervised_index"]]  # (supervised, width)
    labels = batch["labels"].flatten()[batch["supervised_index"]]  # (supervised,)
    cap = getattr(causal.config, "final_logit_softcapping", None)
    return _head_loss(causal.get_output_embeddings(), hidden, labels, cap, chunk)


def _attention_arguments(causal: Any, batch: Batch) -> dict[str, Any]:
    """What the model's attention implementation needs beyond positions to keep documents apart."""
    attention = attention_implementation(causal.config)
    if attention == BY_DOCUMENT:
        return {"documents": batch["documents"]}
    if attention == "flex_attention":
        return flex_arguments(causal.config, batch)
    return _flash_arguments(batch) if "flash" in attention else {}


def _flash_arguments(batch: Batch) -> dict[str, Any]:
    """The ends of the documents in the concatenated rows, as flash kernels expect them.

    If they are missing, transformers searches for them in every layer, with a device sync each, and only in batches of
    one row.
    """
    sizes = torch.tensor([0] + [end - start for _, start, end in batch["documents"]], dtype=torch.int32)
    ends = sizes.cumsum(0, dtype=torch.int32).to(batch["input_ids"].device, non_blocking=True)  # (documents + 1,)
    longest = int(sizes.max())
    return {"cu_seq_lens_q": ends, "cu_seq_lens_k": ends, "max_length_q": longest, "max_length_k": longest}


def _head_loss(head: nn.Module, hidden: Tensor, labels: Tensor, cap: float | None, chunk: int) -> Tensor:
    """Summed cross-entropy of ``(n, width)`` hidden states against ``(n,)`` labels, in chunks of rows."""
    frozen = frozen_head(head)
    # In fp16 the gradients of logits are too small to be represented before the loss is scaled.
    if frozen is not None and torch.is_grad_enabled() and not _autocasts_to_fp16(hidden.device):
        return frozen_head_loss(frozen, hidden, labels, cap, chunk)
    if len(labels) <= chunk:
        return _chunk_loss(head, hidden, labels, cap)
    parts = zip(hidden.split(chunk), labels.split(chunk), strict=True)
    losses = [checkpoint(_chunk_loss, head, part, targets, cap, use_reentrant=False) for part, targets in parts]
    return torch.stack(losses).sum()


def _autocasts_to_fp16(device: torch.device) -> bool:
    return torch.is_autocast_enabled(device.type) and torch.get_autocast_dtype(device.type) == torch.float16


def _chunk_loss(head: nn.Module, hidden: Tensor, labels: Tensor, cap: float | None) -> Tensor:
    logits = head(hidden).float()  # (chunk, vocabulary)
    if cap is not None:
        logits = cap * torch.tanh(logits / cap)
    return F.cross_entropy(logits, labels, reduction="sum")
