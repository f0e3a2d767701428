"""Leaner forward passes for PEFT's layers: the same parameters and the same results, with less copying.

PEFT's own code stays in charge of creating, saving and merging; only the way through a layer in training changes.
"""

from __future__ import annotations

from types import MethodType
from typing import Any

import torch
import torch.nn.functional as F
from peft.tuners.lora.layer import Linear as LoraLinear
from peft.tuners.trainable_tokens.layer import TrainableTokensLayer
from torch import Tensor, nn


def make_lean(model: nn.Module) -> None:
    """Replace the forward pass of plain LoRA layers and of rows of new tokens, wherever they are in a model."""
    for module in model.modules():
        if isinstance(module, TrainableTokensLayer):
            indices = torch.tensor(next(iter(module.token_indices.values())))
            module.register_buffer("new_tokens", indices, persistent=False)
            module.forward = MethodType(_rows_forward, module)
        elif type(module) is LoraLinear and type(module.base_layer) is nn.Linear and not module.lora_variant:
            module.forward = MethodType(_lora_forward, module)


def _lora_forward(self: Any, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """``base(x) + scaling · B A dropout(x)``.

    PEFT casts the whole input to the adapter's precision and scales the whole output; here the small matrices are cast
    (by autocast), the scale goes onto the ``(…, r)`` product, and the sum is part of the second matrix product.
    """
    if self.disable_adapters or self.merged or args or kwargs:
        return type(self).forward(self, x, *args, **kwargs)
    x = x.contiguous()  # see below
    out = self.base_layer(x)
    for name in self.active_adapters:
        if name not in self.lora_A:
            continue
        if not torch.is_autocast_enabled(x.device.type):
            x = x.to(self.lora_A[name].weight.dtype)
        inner = self.lora_A[name](self.lora_dropout[name](x)) * self.scaling[name]
        flat = torch.addmm(
            out.flatten(0, -2).to(inner.dtype), inner.flatten(0, -2), self.lora_B[name].weight.T.to(inner.dtype)
        )
        out = flat.view(out.shape).to(out.dtype)
    return out


def _rows_forward(self: Any, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """The base's rows, but for the new tokens their trained ones; PEFT copies the whole matrix to put them in.

    In an embedding ``x`` are ids; in a tied head it is the hidden state, and the new tokens' logits are put over those
    that the base gives.
    """
    if self.disable_adapters or self.merged or args or kwargs:
        return type(self).forward(self, x, *args, **kwargs)
    (name,) = self.active_adapters
    rows = self.trainable_tokens_delta[name]  # (new, width)
    # A slice of the last positions is not contiguous, and torch then multiplies row by row: seconds on a CPU.
    out = self.base_layer(x.contiguous())
    if isinstance(self.base_layer, nn.Linear):
        return out.index_copy_(-1, self.new_tokens, F.linear(x.to(out.dtype), rows.to(out.dtype)))
    hits = x.unsqueeze(-1) == self.new_tokens  # (…, new)
    scale = self._get_embed_scale()
    rows = rows if scale is None else rows * scale.to(rows.dtype)
    # One hot picks the row; its backward pass sums the gradients of a row, all within (…, new) and (new, width).
    new = hits.to(rows.dtype) @ rows
    return torch.where(hits.any(-1, keepdim=True), new.to(out.dtype), out)
