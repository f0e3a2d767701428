"""Estimates the memory that training needs on a device before it begins.

The estimate counts what autograd keeps for the backward pass of the decoder layers that the Gemma, Llama and Qwen
families share, with the sizes of the loaded model.
"""

from __future__ import annotations

from typing import Any

import psutil
import torch
from torch import nn

from fc_lightning.models.attention import BY_DOCUMENT, scored_keys
from fc_lightning.models.cpu_functions import FAST_NORMS
from fc_lightning.models.lora import unwrap_peft
from fc_lightning.models.peft_internals import frozen_head
from fc_lightning.models.transformers_internals import attention_implementation
from fc_lightning.utils.pretrained import sliding_windows

_FUSED = ("sdpa", "flex_attention", "flash")  # attention that keeps no scores
_USABLE = 0.9  # share of a GPU's free memory: what the allocator loses between tensors is not in the estimate


def memory_in_use(device: torch.device) -> int:
    """Bytes in use now: of tensors on a GPU; otherwise of this process, with its libraries and all of its weights.

    Weights are mapped from their files, so pages that have not been read yet are added.
    """
    if device.type == "cuda":
        return torch.cuda.memory_allocated(device)
    process = psutil.Process()
    maps = process.memory_maps() if hasattr(process, "memory_maps") else []  # not on macOS
    unread = sum(mapped.size - mapped.rss for mapped in maps if mapped.path.endswith(".safetensors"))
    return process.memory_info().rss + unread


def estimate_training_bytes(
    model: nn.Module, tokens: int, attended: int, supervised: int, checkpointing: bool, half: bool, device: torch.device
) -> int:
    """The bytes that training adds to the weights.

    - Gradients and Adam's two moments take 12 bytes per trained weight, and under autocast a cast copy 2 more.
    - Without checkpointing, the activations of all layers and the logits are kept.
    - With checkpointing, the inputs of all layers are kept. On top comes the larger of the logits and one layer's
      activations with the gradients inside of it, because the logits are freed before the first layer is recomputed.
    - A logit takes 12 bytes, for the log-softmax and two gradients, and 16 if it is capped. Of a frozen head it takes
      the logit and its gradient, on a CPU one in place of the other.

    Freed memory that the allocator caches is not counted.

    Args:
        model: A causal language model, or a PeftModel around one.
        tokens: Tokens of a micro-batch.
        attended: Length of the documents, or of the rows if the attention does not keep documents apart.
        supervised: Rows of logits held at a time.
        checkpointing: Whether layers are recomputed in the backward pass.
        half: Whether activations are in half precision.
        device: Where the model will be trained.
    """
    causal = unwrap_peft(model)
    config, layers = causal.config.get_text_config(), causal.get_decoder().layers
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    kept, gradients = _bytes_per_token(layers[0], config, attended, half, device)
    inputs = tokens * config.hidden_size * len(layers) * (2 if half else 4)
    per_logit = 16 if getattr(config, "final_logit_softcapping", None) else 12
    if frozen_head(causal.get_output_embeddings()) is not None:
        per_logit = (2 if half else 4) * (2 if device.type == "cuda" else 1)
    logits = supervised * config.vocab_size * per_logit
    if checkpointing:
        activations = inputs + max(logits, tokens * (kept + gradients))
    else:
        activations = tokens * kept * len(layers) + logits
    return trained * (14 if half else 12) + activations


def set_checkpointing(
    model: nn.Module, setting: bool | str, tokens: int, chunk: int, half: bool, device: torch.device
) -> str:
    """Let layers be recomputed in the backward pass, or not, and say so with the reason.

    Args:
        model: The model, which need not be on the device yet.
        setting: ``auto`` recomputes layers if they do not fit otherwise.
        tokens: Tokens of a micro-batch; 0 if that is not known.
        chunk: Rows of logits held at a time.
        half: Whether activations are in half precision.
        device: Where the model will be trained.
    """
    is_on, reason = setting is True, "as configured"
    if setting == "auto":
        reason = "the size of micro-batches is not known" if device.type == "cuda" else "without a GPU"
        if device.type == "cuda" and tokens:
            added = estimate_training_bytes(model, tokens, tokens, min(chunk, tokens), False, half, device)
            missing = sum(weight.nbytes for weight in model.parameters() if weight.device.type != "cuda")
            free = torch.cuda.mem_get_info(device)[0]
            is_on = missing + added > _USABLE * free
            reason = f"without it {(missing + added) / 1e9:.1f} GB more expected, {free / 1e9:.1f} GB free"
    if is_on:
        unwrap_peft(model).gradient_checkpointing_enable({"use_reentrant": False})
    return f"gradient checkpointing {'on' if is_on else 'off'} ({reason})"


def is_checkpointing(model: nn.Module) -> bool:
    """Whether layers are recomputed in the backward pass."""
    return any(getattr(module, "gradient_checkpointing", False) for module in model.modules())


def _bytes_per_token(layer: nn.Module, config: Any, attended: int, half: bool, device: torch.device) -> tuple[int, int]:
    """The bytes that a decoder layer keeps per token, and those of the gradients that its backward pass holds.

    Attention keeps queries, keys, values and its result. The MLP keeps its two halves and the activation. Each norm
    keeps its input, in fp32 unless it is one of the fast ones on a CPU. Dropout before an adapter keeps its result and
    a mask; adapters without dropout keep their inputs, which are the two normed inputs and the product in the MLP.
    """
    size, width = 2 if half else 4, config.hidden_size
    num_heads = {"q": config.num_attention_heads, "k": config.num_key_value_heads}
    values = inner = normed = dropped = 0
    for name, module in layer.named_modules():
        if isinstance(module, nn.Linear) and "lora_" not in name:
            values += module.in_features if module.out_features == width else module.out_features
            inner = max(inner, module.in_features)
        elif isinstance(weight := getattr(module, "weight", None), nn.Parameter) and weight.dim() == 1:
            per_head = num_heads.get(name.rpartition(".")[2][0], 1) if weight.numel() < width else 1
            is_fast = device.type == "cpu" and isinstance(module, FAST_NORMS)
            normed += weight.numel() * per_head * (size if is_fast else 4)
        dropouts = getattr(module, "lora_dropout", nn.ModuleDict()).values()
        if any(isinstance(dropout, nn.Dropout) for dropout in dropouts):
            dropped += module.in_features
    mask = 1 if device.type == "cuda" else size
    inputs = dropped * (size + mask) if dropped else (inner + 2 * width) * size
    scores = _scores_per_token(config, attended, half)
    return size * (values + scores) + normed + inputs, size * (3 * inner + scores)


def _scores_per_token(config: Any, attended: int, half: bool) -> int:
    """The attention scores that a layer keeps per token: the softmax, the cap before it, and casts to fp32 and back."""
    attention = attention_implementation(config)
    if attention.startswith(_FUSED):
        return 0
    if attention == BY_DOCUMENT:
        by_layer = [scored_keys(attended, window) for window in sliding_windows(config)]
        attended = sum(by_layer) // len(by_layer)
    copies = 3 if half and attention != BY_DOCUMENT else 1  # the eager attention of transformers casts, ours does not
    copies += getattr(config, "attn_logit_softcapping", None) is not None
    return config.num_attention_heads * attended * copies
