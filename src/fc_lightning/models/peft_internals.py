"""Faster forward passes for PEFT's layers. Every use of a private PEFT name is in this file.

PEFT has no public way to replace a layer's forward pass. Parameters and results stay the same; PEFT still creates,
saves and merges the layers.
"""

from __future__ import annotations

from types import MethodType
from typing import Any

import torch
import torch.nn.functional as F
from peft.tuners.lora.layer import Linear as LoraLinear
from peft.tuners.lora.layer import LoraLayer
from peft.tuners.trainable_tokens.layer import TrainableTokensLayer
from peft.utils.other import TrainableTokensWrapper
from torch import Tensor, nn

from fc_lightning.models.cpu_functions import lora_linear, use_fast_norms
from fc_lightning.models.head_loss import FrozenHead

_PLAIN = (nn.Linear, TrainableTokensWrapper)  # what a LoRA may adapt for its forward pass to be replaced
_QUANTIZED = ("Linear4bit", "Linear8bitLt")  # PEFT's layers on those of bitsandbytes, which may not be installed


def use_fast_forward(model: nn.Module) -> None:
    """Replace the forward pass of plain LoRA layers, of new-token rows and of frozen norms throughout a model."""
    use_fast_norms(model)
    for module in model.modules():
        if isinstance(module, TrainableTokensLayer):
            indices = torch.tensor(next(iter(module.token_indices.values())))  # (new,)
            module.register_buffer("new_tokens", indices, persistent=False)
            module.forward = MethodType(_token_rows_forward, module)
        elif _is_plain_lora(module):
            module.forward = MethodType(_lora_forward, module)


def _is_plain_lora(module: nn.Module) -> bool:
    if not isinstance(module, LoraLayer) or module.lora_variant or any(module.lora_bias.values()):
        return False
    return type(module).__name__ in _QUANTIZED or (type(module) is LoraLinear and type(module.base_layer) in _PLAIN)


def _lora_forward(self: Any, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """``base(x) + scaling · B A dropout(x)``.

    PEFT casts the whole input to the adapter's precision and scales the whole output. Here autocast casts the small
    matrices, the ``(…, r)`` product is scaled, and the sum is part of the second matrix product.
    """
    if self.disable_adapters or self.merged or args or kwargs:
        return type(self).forward(self, x, *args, **kwargs)
    if (dtype := _dtype_on_cpu(self, x)) is not None:
        (name,) = self.active_adapters
        lora_a, lora_b = self.lora_A[name].weight, self.lora_B[name].weight
        return lora_linear(x, self.base_layer.weight, lora_a, lora_b, self.scaling[name], dtype)
    # A slice of the last positions is not contiguous, and torch then multiplies row by row: seconds on a CPU.
    x = x.contiguous()
    out = self.base_layer(x)
    for name in self.active_adapters:
        if name not in self.lora_A:
            continue
        if not torch.is_autocast_enabled(x.device.type):
            x = x.to(self.lora_A[name].weight.dtype)
        inner = self.lora_A[name](self.lora_dropout[name](x)) * self.scaling[name]  # (…, r)
        flat = torch.addmm(
            out.flatten(0, -2).to(inner.dtype), inner.flatten(0, -2), self.lora_B[name].weight.T.to(inner.dtype)
        )
        out = flat.view(out.shape).to(out.dtype)
    return out


def _dtype_on_cpu(layer: Any, x: Tensor) -> torch.dtype | None:
    """The precision of the layer's products if :func:`lora_linear` can train it here, else ``None``."""
    if x.device.type != "cpu" or not torch.is_grad_enabled() or torch.compiler.is_compiling():
        return None
    base, names = layer.base_layer, layer.active_adapters
    if type(base) is not nn.Linear or base.bias is not None or base.weight.requires_grad:
        return None
    if len(names) != 1 or names[0] not in layer.lora_A:
        return None
    if layer.training and not isinstance(layer.lora_dropout[names[0]], nn.Identity):
        return None
    if torch.is_autocast_enabled("cpu"):
        return torch.get_autocast_dtype("cpu")
    return x.dtype if x.dtype == base.weight.dtype == layer.lora_A[names[0]].weight.dtype else None


def _token_rows_forward(self: Any, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """The base's rows, with the trained rows in place of those of new tokens. PEFT copies the whole matrix instead.

    In an embedding ``x`` holds ids. In a tied head it is the hidden state, and the logits of new tokens replace those
    that the base computes.
    """
    if self.disable_adapters or self.merged or args or kwargs:
        return type(self).forward(self, x, *args, **kwargs)
    (name,) = self.active_adapters
    rows = self.trainable_tokens_delta[name]  # (new, width)
    out = self.base_layer(x.contiguous())  # contiguous for the reason given in _lora_forward
    if isinstance(self.base_layer, nn.Linear):
        return out.index_copy_(-1, self.new_tokens, F.linear(x.to(out.dtype), rows.to(out.dtype)))
    is_new = x.unsqueeze(-1) == self.new_tokens  # (…, new)
    scale = self._get_embed_scale()  # Gemma multiplies embeddings by a scale of its own
    rows = rows if scale is None else rows * scale.to(rows.dtype)
    # A one-hot product picks the row. Its backward pass sums the gradients of a row within (…, new) and (new, width).
    new = is_new.to(rows.dtype) @ rows  # (…, width)
    return torch.where(is_new.any(-1, keepdim=True), new.to(out.dtype), out)


def frozen_head(head: nn.Module) -> FrozenHead | None:
    """The weights of a head that is frozen, except for new-token rows; ``None`` of any other head."""
    rows = new_tokens = None
    if isinstance(head, TrainableTokensWrapper):
        adapter = head.token_adapter
        if adapter.disable_adapters or adapter.merged or "new_tokens" not in adapter._buffers:
            return None
        (name,) = adapter.active_adapters
        rows, new_tokens = adapter.trainable_tokens_delta[name], adapter.new_tokens
        head = head.original_module
    if type(head) is not nn.Linear or head.bias is not None or head.weight.requires_grad:
        return None
    return FrozenHead(head.weight, rows, new_tokens)
