"""The loss: summed cross-entropy of the supervised tokens. Other positions have no logits.

The module divides by the number of tokens, once for an optimizer step: `on_before_optimizer_step`.
"""

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
from fc_lightning.models.head_loss import frozen_head_loss, split_rows
from fc_lightning.models.lora import unwrap_peft
from fc_lightning.models.peft_internals import frozen_head
from fc_lightning.models.preference_loss import Preference
from fc_lightning.models.transformers_internals import attention_implementation
from fc_lightning.utils.device import copy_to_device

HEAD_CHUNK = 512  # rows of logits that are held at a time


def token_loss_sum(
    model: nn.Module, batch: Batch, chunk: int = HEAD_CHUNK, preference: Preference | None = None
) -> Tensor:
    """The sum of the cross-entropies of all supervised tokens of a batch, weighted if it has weights, a scalar in fp32.

    Logits are computed only for positions that have a label, at most ``chunk`` rows of them at a time. The gradient of
    a frozen head is computed in the forward pass; see :mod:`fc_lightning.models.head_loss`. The logits of a trained
    head are computed again in the backward pass if there is more than one chunk. ``preference`` adds the loss of the
    batch's pairs.
    """
    causal = unwrap_peft(model)
    if isinstance(causal, FSDPModule):
        return cast(Any, causal).token_loss_sum(batch, chunk, preference)
    return causal_loss_sum(causal, batch, chunk, preference)


def causal_loss_sum(causal: Any, batch: Batch, chunk: int, preference: Preference | None = None) -> Tensor:
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
    config = causal.config.get_text_config()
    head, cap = causal.get_output_embeddings(), getattr(config, "final_logit_softcapping", None)
    if (scale := _logit_scale(config)) != 1:
        hidden = hidden * scale
    weights = batch.get("weights")  # (supervised,)
    if preference is None or not batch.get("num_pairs"):
        return _head_loss(head, hidden, labels, cap, chunk, weights)
    # The derivative by each token's loss depends on the other tokens of its pair. It is computed first, and is then the
    # weight of the token in a sum whose gradient is the gradient of the preference loss.
    with torch.no_grad():
        parts = zip(hidden.split(chunk), labels.split(chunk), strict=True)
        losses = torch.cat([_token_losses(head, part, targets, cap) for part, targets in parts])  # (supervised,)
    loss, weights = preference.gradient(losses, batch["weights"], batch["pair_side"], batch["num_pairs"])
    weighted = _head_loss(head, hidden, labels, cap, chunk, weights)
    return weighted + (loss - weighted.detach())


def _logit_scale(config: Any) -> float:
    """The factor of a model's logits: Cohere and HyperCLOVA X multiply by one, Granite divides by one."""
    scaling = getattr(config, "logits_scaling", None) or 1.0
    return (getattr(config, "logit_scale", None) or 1.0) * (
        scaling if config.model_type == "hyperclovax" else 1.0 / scaling
    )


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
    ends = copy_to_device(sizes.cumsum(0, dtype=torch.int32), batch["input_ids"].device)  # (documents + 1,)
    longest = int(sizes.max())
    return {"cu_seq_lens_q": ends, "cu_seq_lens_k": ends, "max_length_q": longest, "max_length_k": longest}


def _head_loss(
    head: nn.Module, hidden: Tensor, labels: Tensor, cap: float | None, chunk: int, weights: Tensor | None
) -> Tensor:
    """Summed cross-entropy of ``(n, width)`` hidden states against ``(n,)`` labels, in chunks of rows.

    With ``(n,)`` weights each token's loss is multiplied by its weight.
    """
    frozen = frozen_head(head)
    # In fp16 the gradients of logits are too small to be represented before the loss is scaled.
    if frozen is not None and torch.is_grad_enabled() and not _autocasts_to_fp16(hidden.device):
        return frozen_head_loss(frozen, hidden, labels, cap, chunk, weights)
    if len(labels) <= chunk:
        return _chunk_loss(head, hidden, labels, cap, weights)
    parts = zip(*split_rows(chunk, hidden, labels, weights), strict=True)
    losses = [
        checkpoint(_chunk_loss, head, part, targets, cap, part_weights, use_reentrant=False)
        for part, targets, part_weights in parts
    ]
    return torch.stack(losses).sum()


def _autocasts_to_fp16(device: torch.device) -> bool:
    return torch.is_autocast_enabled(device.type) and torch.get_autocast_dtype(device.type) == torch.float16


def _chunk_loss(head: nn.Module, hidden: Tensor, labels: Tensor, cap: float | None, weights: Tensor | None) -> Tensor:
    losses = _token_losses(head, hidden, labels, cap)
    return losses.sum() if weights is None else (losses * weights).sum()


def _token_losses(head: nn.Module, hidden: Tensor, labels: Tensor, cap: float | None) -> Tensor:
    """The cross-entropy of each of ``(n, width)`` hidden states against its label, ``(n,)``."""
    logits = head(hidden).float()  # (n, vocabulary)
    if cap is not None:
        logits = cap * torch.tanh(logits / cap)
    return F.cross_entropy(logits, labels, reduction="none")
