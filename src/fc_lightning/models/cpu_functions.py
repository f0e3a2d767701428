"""Gemma's RMSNorm and a LoRA layer as single functions with gradients of their own, for training on a CPU.

On a CPU, memory limits a training step as much as matrix products do, and these functions read and write tensors fewer
times than the operations they replace. On a GPU, the compiler fuses such operations.
"""

from __future__ import annotations

from types import MethodType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from transformers.models.gemma2.modeling_gemma2 import Gemma2RMSNorm
from transformers.models.gemma3.modeling_gemma3 import Gemma3RMSNorm

FAST_NORMS = (Gemma2RMSNorm, Gemma3RMSNorm)


def use_fast_norms(model: nn.Module) -> None:
    """Replace the forward pass of frozen norms of Gemma 2 and Gemma 3 on a CPU. Results differ by rounding in fp32."""
    for module in model.modules():
        if isinstance(module, FAST_NORMS) and not module.weight.requires_grad:
            module.forward = MethodType(_norm_forward, module)


def _norm_forward(self: Any, x: Tensor) -> Tensor:
    if x.device.type != "cpu" or self.weight.requires_grad or torch.compiler.is_compiling():
        return type(self).forward(self, x)
    return _RMSNorm.apply(x, self.weight, self.eps)


class _RMSNorm(torch.autograd.Function):
    """``x / rms(x) * (1 + weight)`` with a frozen weight, computed in fp32 and rounded once.

    Copies in fp32 are changed in place while they are in the processor's cache: a result in new memory would take
    several times as long. So the normed values are not kept; the backward pass computes them again from the input.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        values = _copy_in_fp32(x)
        mean_square = torch.linalg.vector_norm(values, dim=-1, keepdim=True).square_().div_(x.shape[-1])
        inverse = mean_square.add_(eps).rsqrt_()
        scale = 1 + weight.float()
        ctx.save_for_backward(x, inverse, scale)
        return values.mul_(inverse).mul_(scale).to(x.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None, None]:
        x, inverse, scale = ctx.saved_tensors
        gradient = _copy_in_fp32(upstream).mul_(scale)
        projection = _copy_in_fp32(x).mul_(gradient).mean(-1, keepdim=True).mul_(inverse.square())
        return gradient.addcmul_(x.float(), projection, value=-1).mul_(inverse).to(upstream.dtype), None, None


def _copy_in_fp32(x: Tensor) -> Tensor:
    return x.to(torch.float32, copy=True)


def lora_linear(
    x: Tensor, weight: Tensor, lora_a: Tensor, lora_b: Tensor, scaling: float, dtype: torch.dtype
) -> Tensor:
    """``weight x + scaling · B A x``, shape ``(…, out)``.

    Args:
        x: ``(…, in)``.
        weight: ``(out, in)``, frozen.
        lora_a: ``(r, in)``.
        lora_b: ``(out, r)``.
        scaling: Factor of the adapter.
        dtype: Precision of the products.
    """
    flat = x.flatten(0, -2).to(dtype)
    return _LoraLinear.apply(flat, weight.to(dtype), lora_a, lora_b, scaling).unflatten(0, x.shape[:-1])


class _LoraLinear(torch.autograd.Function):
    """The adapter's products are added in place, to the layer's result and to the gradient of its input."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, lora_a: Tensor, lora_b: Tensor, scaling: float) -> Tensor:
        down, up = lora_a.to(x.dtype), lora_b.to(x.dtype)
        inner = (x @ down.T).mul_(scaling)  # (n, r)
        ctx.save_for_backward(x, weight, down, up, inner)
        ctx.scaling, ctx.dtypes = scaling, (lora_a.dtype, lora_b.dtype)
        return F.linear(x, weight).addmm_(inner, up.T)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, down, up, inner = ctx.saved_tensors
        inner_gradient = (upstream @ up).mul_(ctx.scaling)  # (n, r)
        of_a = (inner_gradient.T @ x).to(ctx.dtypes[0])
        of_b = (inner.T @ upstream).T.to(ctx.dtypes[1]).contiguous()  # faster than upstream.T @ inner
        of_x = (upstream @ weight).addmm_(inner_gradient, down) if ctx.needs_input_grad[0] else None
        return of_x, None, of_a, of_b, None
