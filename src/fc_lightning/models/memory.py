"""What training will need of a device's memory, estimated before it begins.

Counted is what autograd keeps for the backward pass of the decoder layers that the Gemma, Llama and Qwen families
share, with the sizes of the model that is really there.
"""

from __future__ import annotations

from typing import Any

import psutil
import torch
from peft import PeftModel
from torch import nn

from fc_lightning.models.attention import BY_DOCUMENT

_FUSED = ("sdpa", "flex_attention", "flash")  # attention that keeps no scores


def memory_in_use(device: torch.device) -> int:
    """What is taken now: by tensors on a GPU; or by this process, its libraries and all of its weights with it.

    Weights are mapped from their files, and of these only what has been read is in memory yet.
    """
    if device.type == "cuda":
        return torch.cuda.memory_allocated(device)
    process = psutil.Process()
    maps = process.memory_maps() if hasattr(process, "memory_maps") else []
    unread = sum(one.size - one.rss for one in maps if one.path.endswith(".safetensors"))
    return process.memory_info().rss + unread


def estimate_training_bytes(
    model: nn.Module, tokens: int, attended: int, supervised: int, checkpointing: bool, half: bool
) -> int:
    """What training adds to the weights.

    Gradients and Adam's two moments are 12 bytes a trained weight in fp32, and under autocast its copy 2 more. The
    activations of a micro-batch are those of all layers; with checkpointing the layers' inputs, and of one layer, while
    it is computed again, its activations and their gradients, unless the logits, which are gone by then, are more.
    A logit takes 12 bytes, for the log of its softmax and two gradients, and 16 where it is capped. Not counted is what
    the allocator keeps of freed memory.

    Args:
        model: A causal language model, or a PeftModel around one.
        tokens: Of a micro-batch.
        attended: Positions that a token's attention scores are computed for.
        supervised: Rows of logits that are held at a time.
        checkpointing: Whether layers are computed again in the backward pass.
        half: Whether activations are in half precision.
    """
    causal: Any = model.get_base_model() if isinstance(model, PeftModel) else model
    config, layers = causal.config.get_text_config(), causal.get_decoder().layers
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    inside = tokens * _token_bytes(layers[0], config, attended, half)
    inputs = tokens * config.hidden_size * len(layers) * (2 if half else 4)
    logits = supervised * config.vocab_size * (16 if getattr(config, "final_logit_softcapping", None) else 12)
    moving = inputs + max(logits, 2 * inside) if checkpointing else inside * len(layers) + logits
    return trained * (14 if half else 12) + moving


def _token_bytes(layer: nn.Module, config: Any, attended: int, half: bool) -> int:
    """What a decoder layer keeps of a token.

    Attention keeps queries, keys, values and its result; the MLP both of its halves, the activation and the product;
    the adapters the two normed inputs. Each norm keeps what it saw in fp32; dropout before an adapter keeps its result,
    and where it was.
    """
    size, width = 2 if half else 4, config.hidden_size
    heads = {"q": config.num_attention_heads, "k": config.num_key_value_heads}
    values = inner = normed = dropped = 0
    for name, module in layer.named_modules():
        if isinstance(module, nn.Linear) and "lora_" not in name:
            values += module.out_features + (module.in_features if module.out_features == width else 0)
            inner = max(inner, module.in_features)
        elif isinstance(weight := getattr(module, "weight", None), nn.Parameter) and weight.dim() == 1:
            per_head = heads.get(name.rpartition(".")[2][0], 1) if weight.numel() < width else 1
            normed += weight.numel() * per_head
        dropouts = getattr(module, "lora_dropout", nn.ModuleDict()).values()
        if any(isinstance(dropout, nn.Dropout) for dropout in dropouts):
            dropped += module.in_features
    scores = 0
    if not str(config._attn_implementation).startswith(_FUSED):
        # Softmax, before it the cap; transformers' own eager attention casts to fp32 and back for it.
        copies = 1 if config._attn_implementation == BY_DOCUMENT or not half else 3
        copies += getattr(config, "attn_logit_softcapping", None) is not None
        scores = config.num_attention_heads * attended * copies
    return size * (values + inner + scores) + 4 * normed + (size + 1) * dropped
