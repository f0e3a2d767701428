"""What training will need of a device's memory, estimated before it begins.

The formulas of docs/scaling.md, with the numbers of the model that is really there.
"""

from __future__ import annotations

from typing import Any

import psutil
import torch
from peft import PeftModel
from torch import nn

_FUSED = ("sdpa", "flex_attention", "flash")  # attention that keeps no scores


def held_bytes(device: torch.device) -> int:
    """What is taken now: by tensors on a GPU, or by this process, its libraries with it."""
    if device.type == "cuda":
        return torch.cuda.memory_allocated(device)
    return psutil.Process().memory_info().rss


def training_bytes(
    model: nn.Module, tokens: int, longest: int, supervised: int, checkpointing: bool, half: bool
) -> int:
    """What training adds to the weights.

    Gradients and Adam's two moments, 12 bytes a trained weight in fp32; the activations of a micro-batch, for a layer
    the inputs and outputs of its matrices and four times its width, of all layers or with checkpointing of one and the
    others' inputs; attention scores and their softmax where the implementation keeps them; 16 bytes a logit, for
    itself, its softmax and their gradients. What the allocator keeps of freed memory comes on top.

    Args:
        model: A causal language model, or a PeftModel around one.
        tokens: Of a micro-batch.
        longest: Tokens of its longest document.
        supervised: Rows of logits that are held at a time.
        checkpointing: Whether layers are computed again in the backward pass.
        half: Whether activations are in half precision.
    """
    causal: Any = model.get_base_model() if isinstance(model, PeftModel) else model
    config, layers = causal.config.get_text_config(), causal.get_decoder().layers
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    matrices = [one for name, one in layers[0].named_modules() if isinstance(one, nn.Linear) and "lora_" not in name]
    width = config.hidden_size
    inside = sum(one.in_features + one.out_features for one in matrices) + 4 * width  # values a token
    if not str(config._attn_implementation).startswith(_FUSED):
        inside += 2 * config.num_attention_heads * longest
    kept = width * len(layers) + inside if checkpointing else inside * len(layers)
    return 12 * trained + (2 if half else 4) * tokens * kept + 16 * supervised * config.vocab_size
