"""Merges an adapter into its base: permanently for an export, temporarily for an evaluation."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import psutil
import torch
from peft import PeftModel
from peft.tuners.lora.layer import Linear as LoraLinear
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import ModulesToSaveWrapper, TrainableTokensWrapper
from torch import nn
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel

from fc_lightning.models.attention import generation_mode
from fc_lightning.models.lora import untie_head, unwrap_peft


def merge_adapter(model: PeftModel) -> PreTrainedModel:
    """Merge an adapter into its base, which consumes the PeftModel.

    If the head or the embedding has an adapter and they share a matrix, each gets its own first: merging one would
    change the other too.
    """
    causal = unwrap_peft(model)
    head = causal.get_output_embeddings()
    adapted = any(
        isinstance(module, BaseTunerLayer | ModulesToSaveWrapper) for module in (head, causal.get_input_embeddings())
    )
    if adapted and causal.config.tie_word_embeddings:
        untie_head(causal)
    if isinstance(getattr(head, "base_layer", None), TrainableTokensWrapper):
        # PEFT merges a LoRA into a copy of a matrix with trained rows. Put the rows into the matrix itself.
        rows = head.base_layer
        head.base_layer = rows.original_module
        head.base_layer.weight.data = rows.weight.detach()
    return model.merge_and_unload()


@contextlib.contextmanager
def merged_for_inference(model: nn.Module) -> Iterator[Any]:
    """The causal language model to generate with: not compiled, and with its LoRA layers merged.

    The evaluated model equals the one that :func:`merge_adapter` makes for an export in the same precision: base and
    adapter are added in fp32 and rounded once. In half precision autocast is off, as it is on a server. Afterwards the
    weights are restored bit-exactly.

    Not merged: layers that are not plain LoRA on a linear layer, such as quantized ones and DoRA; sharded layers;
    new-token rows, which cost nothing; and every layer if memory does not suffice for a second copy.
    """
    with generation_mode(model), _merged(model):
        yield unwrap_peft(model)


@contextlib.contextmanager
def _merged(model: nn.Module) -> Iterator[None]:
    layers = [module for module in model.modules() if _is_mergeable(module)] if isinstance(model, PeftModel) else []
    if not layers or not _fits_twice(layers):
        yield
        return
    originals = [layer.base_layer.weight.data for layer in layers]
    device_type, dtype = originals[0].device.type, originals[0].dtype
    try:
        for layer in layers:
            layer.base_layer.weight.data = _merged_weight(layer)
            layer.merged_adapters += layer.active_adapters  # PEFT then computes the base layer alone
        # In fp32, autocast decides the precision of products as it does in training.
        no_autocast = torch.autocast(device_type, enabled=False) if dtype != torch.float32 else contextlib.nullcontext()
        with no_autocast:
            yield
    finally:
        for layer, original in zip(layers, originals, strict=True):
            layer.base_layer.weight.data = original
            layer.merged_adapters.clear()


@torch.no_grad()
def _merged_weight(layer: Any) -> torch.Tensor:
    (name,) = layer.active_adapters
    weight = layer.base_layer.weight.data
    with torch.autocast(weight.device.type, enabled=False):
        return (weight.float() + layer.get_delta_weight(name).float()).to(weight.dtype)


def _is_mergeable(module: Any) -> bool:
    if type(module) is not LoraLinear or type(module.base_layer) is not nn.Linear or module.lora_variant:
        return False
    if isinstance(module.base_layer.weight, DTensor):  # sharded
        return False
    return len(module.active_adapters) == 1 and not module.merged and not module.disable_adapters


def _fits_twice(layers: list[Any]) -> bool:
    """Whether memory has room for another copy of the layers' weights, and as much again for generation."""
    weights = [layer.base_layer.weight for layer in layers]
    needed = sum(weight.nbytes for weight in weights)
    device = weights[0].device
    if device.type != "cuda":
        return psutil.virtual_memory().available > 2 * needed
    unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return torch.cuda.mem_get_info(device)[0] + unused > 2 * needed
